"""T2 for what no trace shows: coral with a step of a protocol taken out of its code. A fault test must notice.

Each is a few attributes replaced while the tests run that should find it: races (T9), scenarios (T1), a flipped bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import bit_rot
import numpy as np
import power_loss
import races
import remote_faults
from memory import MemoryFileSystem
from mutants import Verdict
from power_loss import Tally
from scenarios import CONFIG, FAST, UPKEEP, Scenario, limits

from coral import Repository, _naming
from coral.errors import CorruptObject
from coral.maintenance import _encoding, _gc, _marking, _trash
from coral.maintenance._gc import Collector
from coral.maintenance._inventory import settle
from coral.maintenance._marking import Marker, Marks
from coral.remotes import _receiving
from coral.store import Copies, Store, _chain, _committing
from coral.store._pack import path_of

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class CodeMutant:
    name: str
    patches: tuple[Patch, ...]
    killers: tuple[Callable[[], Tally], ...]

    @property
    def quick(self) -> bool:
        """Whether it is found within a few seconds."""
        return self.name not in SLOW


SLOW = {
    "no second marking",
    "bases are not kept",
    "a deletion that is under way is not made durable",
    "intents read after refs",
    "an announced pack in the trash stays there",
    "only known packs in the trash are read",
    "one trash for all",
    "nothing is recalled from others",
    "no fsync of a trash",
    "no fsync of the folder of trashes",
    "a note that is under way is not made durable",
    "the trash is not read",
    "names of packs are not made durable",
    "what frees is not made durable",
}


def _race(name: str, *, thin: int = 40, shuffles: int = 150, states: int = 1) -> Callable[[], Tally]:
    (race,) = [race for race in races.RACES if race.name == name]
    return lambda: races.run(race, thin=thin, shuffles=shuffles, states=states, stop=1)


def _loss(name: str, cap: int = 20) -> Callable[[], Tally]:
    (scenario,) = [scenario for scenario in [*UPKEEP, *FAST] if scenario.name == name]
    return lambda: power_loss.run(scenario, cap=cap, stop=1)


def _rot() -> Tally:
    """Repack a tensor with a bit that has flipped where nothing is sampled: that must stay found out."""
    fs = MemoryFileSystem()
    repo = Repository(fs, init=True)
    data = np.random.default_rng(0).standard_normal(9 << 18).astype(np.float32)  # nine blocks
    for number in range(3):
        data[:10] += number
        repo.commit({"big": data}, str(number))
    with repo.store.copies() as copies:
        stored = next(copies.all(repo.load("HEAD~1")["big"].id))
    path, at = path_of(stored.pack.name), stored.entry.offset + (2 << 20) + 5
    fs.damage(path, fs.data(path)[:at] + bytes([fs.data(path)[at] ^ 1]) + fs.data(path)[at + 1 :])
    with limits(Scenario("", (), ())):
        Repository(fs).repack(config=CONFIG)
    try:
        Repository(fs).load("HEAD~1")["big"].data  # noqa: B018 - it is read now
    except CorruptObject:
        return Tally(1)
    return Tally(1, ["SILENTLY WRONG: what is damaged loads"])


def _wrong_bytes() -> Tally:
    """Pull from one that answers with wrong bytes."""
    (pull,) = [deed for deed in remote_faults.REMOTE_DEEDS if deed.name == "pull"]
    return remote_faults.run(pull, kinds=("wrong", "garbled"))


class _Fits:
    """A sum that is equal to any other."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


class _Mute:
    """An operation that announces nothing."""

    def needs(self, ids: Iterable[str]) -> None:
        pass


_write_pack, _mark, _tips, _make_durable = Store.write_pack, Marker.mark, Marker._tips, Collector._make_durable


def _unannounced(self: Store, fill: Any, operation: Any, **options: Any) -> Any:
    return _write_pack(self, fill, _Mute(), **options)  # type: ignore[arg-type]


def _refs_first(self: Marker) -> Marks:
    tips = list(_tips(self, Marks()))
    self._tips = lambda marks: iter(tips)  # type: ignore[method-assign]
    try:
        return _mark(self)
    finally:
        del self._tips


def _only_published(self: Marker) -> Marks:
    marks = _mark(self)
    marks.packs = {name for name in marks.packs if f"{name}.pack" in self._store.fs.list("packs")}
    return marks


def _only_in_packs(self: Store, name: str) -> Any:
    return self.fs.open(path_of(name))


def _without_bases(inventory: Any, ids: Iterable[str], whole: Any) -> Any:
    wanted = list(ids)
    settled, lost = settle(inventory, wanted, whole)
    return {id: copy for id, copy in settled.items() if id in set(wanted)}, lost


def _fsync_dir_but(skipped: Callable[[str], bool]) -> Any:
    real = MemoryFileSystem.fsync_dir
    return lambda self, path: None if skipped(path) else real(self, path)


def _only_flagged(self: Collector, marks: Marks, settled: Any) -> None:
    _make_durable(self, replace(marks, refs=[], commits=[]), settled)


def _init_shared(self: Any, fs: Any, name: str) -> None:
    self._fs, self._folder = fs, "trash/shared"


def _nothing(*_: Any, **__: Any) -> Any:
    return None


REUSE = "commit of what nothing leads to, gc"

CODE_MUTANTS = (
    CodeMutant("no second marking", ((Collector, "_restore_living", lambda self, trash: 0),), (_race(REUSE),)),
    CodeMutant("intents read after refs", ((Marker, "mark", _refs_first),), (_race(REUSE),)),
    CodeMutant("intents are not looked at", ((_marking, "intents", lambda fs: []),), (_race(REUSE),)),
    CodeMutant("packs are not announced", ((Store, "write_pack", _unannounced),), (_race(REUSE),)),
    CodeMutant("what is reused is not announced", ((_committing, "_foreign", lambda *_: set()),), (_race(REUSE),)),
    CodeMutant("what is reused is not verified", ((_committing, "_verify", _nothing),), (_race(REUSE),)),
    CodeMutant(
        "an announced pack in the trash stays there",
        ((Marker, "mark", _only_published),),
        (_race("commit as one that died, gc"), _race("later state, gc")),
    ),
    CodeMutant(
        "the trash is not read",
        ((Store, "open_pack", _only_in_packs), (Copies, "_in_trash", lambda self, id: [])),
        (_race(REUSE),),
    ),
    CodeMutant(
        "only known packs in the trash are read", ((Copies, "_in_trash", lambda self, id: []),), (_race(REUSE),)
    ),
    CodeMutant(
        "one trash for all", ((_trash.Trash, "__init__", _init_shared),), (_race("commit, gc, gc"), _race("gc, gc"))
    ),
    CodeMutant("nothing is recalled from others", ((Collector, "_recall", _nothing),), (_race("commit, gc, gc"),)),
    CodeMutant("the abandoned is not put back", ((Collector, "_put_back_abandoned", _nothing),), (_race("gc, gc"),)),
    CodeMutant("bases are not kept", ((_gc, "settle", _without_bases),), (_loss("a pruned keyframe"),)),
    CodeMutant(
        "what frees is not made durable",
        ((Collector, "_make_durable", _nothing),),
        (_loss("fast pruning"), _loss("fast deletion"), _loss("upkeep after fast commits")),
    ),
    CodeMutant(
        "no fsync of a trash",
        ((MemoryFileSystem, "fsync_dir", _fsync_dir_but(lambda path: path.startswith("trash/"))),),
        (_race(REUSE, thin=200, states=60),),
    ),
    CodeMutant(
        "no fsync of the folder of trashes",
        ((MemoryFileSystem, "fsync_dir", _fsync_dir_but(lambda path: path == "trash")),),
        (_race(REUSE, thin=200, states=40),),
    ),
    CodeMutant(
        "a deletion that is under way is not made durable",
        ((Collector, "_make_durable", _only_flagged),),
        (_race("deletion, gc", thin=2000, states=60),),
    ),
    CodeMutant(
        "a note that is under way is not made durable",
        ((Collector, "_make_durable", _only_flagged),),
        (_race("prune, gc", thin=2000, states=60),),
    ),
    CodeMutant(
        "names of packs are not made durable",
        ((MemoryFileSystem, "fsync_dir", _fsync_dir_but(lambda path: path == "packs")),),
        (_loss("repack, twice"),),
    ),
    CodeMutant(
        "blocks are not checked",
        ((_chain, "folds", lambda arrays: [_Fits()] * len(arrays)), (_chain, "fold", lambda block: _Fits())),
        (lambda: bit_rot.run(parts=40, bits=1, stop=1),),
    ),
    CodeMutant("packs are not read back", ((_encoding, "_verify", _nothing),), (_rot,)),
    CodeMutant("what arrives whole is not compared", ((_receiving, "_compare", _nothing),), (_wrong_bytes,)),
    CodeMutant("nothing that arrives is read back", ((_receiving, "_check", _nothing),), (_wrong_bytes,)),
    CodeMutant(
        "tags are not announced",
        ((_naming, "intent", lambda *_: nullcontext(_Mute())),),
        (_race("tag, deletion and gc", thin=3),),
    ),
)


@contextmanager
def patched(patches: Iterable[Patch]) -> Iterator[None]:
    """Replace attributes while the block runs."""
    kept = [(where, name, vars(where)[name]) for where, name, _ in patches]
    for where, name, value in patches:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in kept:
            setattr(where, name, value)


def run(name: str) -> Verdict:
    """Run what should find it on the mutant of a name, until something is found."""
    mutant = next(mutant for mutant in CODE_MUTANTS if mutant.name == name)
    began, cases = time.perf_counter(), 0
    for killer in mutant.killers:
        with patched(mutant.patches):
            tally = killer()
        cases += tally.cases
        if tally.violations:
            return Verdict(name, tally.violations[0], cases, time.perf_counter() - began)
    return Verdict(name, "", cases, time.perf_counter() - began)
