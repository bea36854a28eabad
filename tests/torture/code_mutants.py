"""T2 for what no trace shows: coral with a step of a protocol taken out of its code. A fault test must notice.

Each is a few attributes replaced while the tests run that should find it: races (T9), scenarios (T1), or deaths and
retries before a loss of power.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import power_loss
import process_death
import races
from memory import MemoryFileSystem
from mutants import Verdict
from power_loss import Tally
from scenarios import FAST, GROWN, SINGLE, UPKEEP, Repack, Scenario, build, do, limits

from coral import repository
from coral.maintenance import _encoding, _gc, _marking
from coral.maintenance._gc import Collector
from coral.maintenance._inventory import settle
from coral.maintenance._marking import Marker, Marks
from coral.store import Copies, Store, _committing
from coral.store._pack import path_of

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class CodeMutant:
    name: str
    patches: tuple[Patch, ...]
    killers: tuple[Callable[[], Tally], ...]


def _race(name: str, *, thin: int = 40, shuffles: int = 150, states: int = 1) -> Callable[[], Tally]:
    (race,) = [race for race in races.RACES if race.name == name]
    return lambda: races.run(race, thin=thin, shuffles=shuffles, states=states, stop=1)


def _loss(name: str, cap: int = 20) -> Callable[[], Tally]:
    (scenario,) = [scenario for scenario in [*UPKEEP, *FAST] if scenario.name == name]
    return lambda: power_loss.run(scenario, cap=cap, stop=1)


def _redone(name: str, cap: int = 20) -> Callable[[], Tally]:
    (scenario,) = [scenario for scenario in SINGLE if scenario.name == name]
    return lambda: process_death.run_then_power_loss(scenario, cap=cap)


def _rot() -> Tally:
    """Repack what a bit has flipped in: the damage must stay found out."""
    tally = Tally()
    with limits(Scenario("", (), ())):
        for number in range(3):
            fs = MemoryFileSystem()
            world = build(fs, GROWN)
            store = repository.Repository(fs).store
            pack = next(iter(fs.list("packs")))
            with store.copies() as copies:
                tensors = list(world.commits.values())[number]
                from scenarios import weights

                stored = copies.known(weights(tensors)["layer.slow"].id)
                assert stored is not None
                path, at = path_of(stored.pack.name), stored.entry.offset + 100
            del pack
            data = bytearray(fs.data(path))
            data[at] ^= 1
            fs.damage(path, bytes(data))
            tally.cases += 1
            do(fs, Repack())
            if repository.Repository(fs).fsck().ok:
                tally.violations.append(f"rot in {path}: repacked as if nothing were wrong")
    return tally


class _Mute:
    """An operation that announces nothing."""

    def needs(self, ids: Iterable[str]) -> None:
        pass


_write_pack, _mark, _tips = Store.write_pack, Marker.mark, Marker._tips


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
        "one trash for all", ((_gc._Trash, "__init__", _init_shared),), (_race("commit, gc, gc"), _race("gc, gc"))
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
        (_race(REUSE, thin=200, states=3),),
    ),
    CodeMutant(
        "no fsync of the folder of trashes",
        ((MemoryFileSystem, "fsync_dir", _fsync_dir_but(lambda path: path == "trash")),),
        (_race(REUSE, thin=200, states=3),),
    ),
    CodeMutant("packs are not read back", ((_encoding, "_verify", _nothing),), (_rot,)),
    CodeMutant(
        "tags are not announced",
        ((repository, "intent", lambda *_: nullcontext(_Mute())),),
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
