"""T3 and T5 of what takes more than one filesystem, or more than one thread: push, pull, clone, and saves beside a run.

Each is done by a real process on real folders. It dies, or is told of an error, at every operation on any of them; what
it was told is done is there all the same, and the same again succeeds.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from io_errors import ERRORS, Faulty
from killing import _Source, judge
from oracle import Violation, compare
from power_loss import Tally
from process_death import DIED, in_child, moments, scratch
from scenarios import Commit, do
from seam import Call, Seam

import coral._remoting
import coral.remotes._directory
import coral.repository
from coral import CoralError, Repository
from coral.filesystem import LocalFileSystem
from coral.remotes import _patient
from coral.store._pack import read_directory
from coral.training import CheckpointConfig, CheckpointManager, StepEnd

Say = Callable[[object], None]
"""Tells whoever survives this process what is done."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the two repositories hold at first: the commits of `here` and `there`, oldest first."""

    made: Mapping[str, Commit]
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deed:
    """An operation in a folder with a repository `here` and another one `there`.

    `build` makes them; `act` is what goes wrong; `check` asks everything, given what `act` has said, and does it again.
    """

    name: str
    build: Callable[[Path], Known]
    act: Callable[[Path, Say], None]
    check: Callable[[Path, Known, list[Any]], None]


# Push, pull and clone


def _grow(folder: Path, *keys: int) -> dict[str, Commit]:
    """Commit these versions; the commits by their ids."""
    made: dict[str, Commit] = {}
    for key in keys:
        id = do(LocalFileSystem(folder), Commit(key))
        assert id is not None
        made[id] = Commit(key)
    return made


def _two(folder: Path) -> Known:
    """A repository of four commits and a tag, and another one that has the first two of them."""
    here, there = folder / "here", folder / "there"
    repo = Repository(here, init=True)
    made = _grow(here, 1, 2)
    old = tuple(made)
    repo.add_remote("origin", there)
    repo.push()
    made |= _grow(here, 3, 4)
    repo.tag("v1", old[0])
    return Known(made, old, tuple(made))


def _behind(folder: Path) -> Known:
    """The same with the four commits over there."""
    known = _two(folder)
    shutil.move(folder / "there", folder / "behind")
    Repository.clone(folder / "here", folder / "there")
    shutil.rmtree(folder / "here")
    Repository.clone(folder / "behind", folder / "here")
    shutil.rmtree(folder / "behind")
    repo = Repository(folder / "here")
    repo.remove_remote("origin")
    repo.add_remote("origin", folder / "there")
    return known


def _elsewhere(folder: Path) -> Known:
    """The same, and nothing here."""
    known = _behind(folder)
    shutil.rmtree(folder / "here")
    return known


def _push(folder: Path, say: Say) -> None:
    Repository(folder / "here").push()
    say("done")


def _pull(folder: Path, say: Say) -> None:
    Repository(folder / "here").pull()
    say("done")


def _clone(folder: Path, say: Say) -> None:
    Repository.clone(folder / "there", folder / "here")
    say("done")


def _whole(folder: Path, known: Known, allowed: Set[str | None], tags: Set[str | None]) -> None:
    """A repository holds what leads to one of these tips, bit by bit, and fsck finds nothing."""
    repo = Repository(folder)
    tip, tag = repo.branches().get("main"), repo.tags().get("v1")
    if tip not in allowed or tag not in tags:
        raise Violation(f"{folder.name}: main is {tip}, v1 is {tag}")
    if tip is not None:
        ids = [commit.id for commit in repo.log("main")]
        if ids[::-1] != list(known.new[: known.new.index(tip) + 1]):
            raise Violation(f"{folder.name}: the log of main is {ids}")
        for id in ids:
            compare(repo, id, known.made[id])
    if problems := repo.fsck().problems:
        raise Violation(f"{folder.name}: fsck: {problems[:3]}")


def _sent(folder: Path, known: Known, said: list[Any]) -> None:
    new, tag = known.new[-1], known.old[0]
    _whole(folder / "here", known, {new}, {tag})
    _whole(folder / "there", known, {new} if said else {known.old[-1], new}, {tag} if said else {tag, None})
    _push(folder, said.append)
    _whole(folder / "there", known, {new}, {tag})


def _received(folder: Path, known: Known, said: list[Any]) -> None:
    new, tag = known.new[-1], known.old[0]
    _whole(folder / "there", known, {new}, {tag})
    _whole(folder / "here", known, {new} if said else {known.old[-1], new}, {tag} if said else {tag, None})
    _pull(folder, said.append)
    _whole(folder / "here", known, {new}, {tag})


def _cloned(folder: Path, known: Known, said: list[Any]) -> None:
    new, tag = known.new[-1], known.old[0]
    _whole(folder / "there", known, {new}, {tag})
    if said or (folder / "here" / "format").exists():
        _whole(folder / "here", known, {new} if said else {None, new}, {tag} if said else {tag, None})
    if Repository(folder / "here", init=True).branches():
        _pull(folder, said.append)
    else:
        _clone(folder, said.append)
    _whole(folder / "here", known, {new}, {tag})


# Pushes that prune, and that send what was lost


def _pruned_here(folder: Path) -> Known:
    """Four commits on both sides, of which two are pruned here; another's branch over there holds one of these."""
    known = _behind(folder)
    repo = Repository(folder / "here")
    repo.pull()
    Repository(folder / "there").branch("keep", known.new[1])
    repo.prune(known.new[1:3])
    return known


def _lost_there(folder: Path) -> Known:
    """Four commits on both sides, and a pack lost over there."""
    known = _two(folder)
    repo, there = Repository(folder / "here"), LocalFileSystem(folder / "there")
    repo.push()
    for file in there.list("packs"):
        if known.old[1] in read_directory(there, file.removesuffix(".pack")).ids:
            there.unlink(f"packs/{file}")
    return known


def _push_pruning(folder: Path, say: Say) -> None:
    say([*Repository(folder / "here").push(prune=True).kept_back])


def _push_repairing(folder: Path, say: Say) -> None:
    say([*Repository(folder / "here").push(repair=True).unmended])


def _pruned_there(folder: Path, known: Known, said: list[Any]) -> None:
    """What refs over there name loads at any time; what nothing holds is pruned once the push is done."""
    there, gone = folder / "there", known.new[2]
    for done in (bool(said), True):
        repo = Repository(there)
        named = {**repo.branches(), **repo.tags()}
        if named != {"main": known.new[3], "keep": known.new[1], "v1": known.new[0]}:
            raise Violation(f"there: the refs are {named}")
        for id in set(known.new) - ({gone} if repo.show(gone).pruned else set()):
            compare(repo, id, known.made[id])
        if problems := repo.fsck().problems:
            raise Violation(f"there: fsck: {problems[:3]}")
        if done and not (repo.show(gone).pruned and all(each == [known.new[1]] for each in said)):
            raise Violation(f"there: {gone[:12]} is not pruned, or it was said that {said} are kept")
        _push_pruning(folder, said.append)


def _mended_there(folder: Path, known: Known, said: list[Any]) -> None:
    new, tag = known.new[-1], known.old[0]
    for done in (bool(said), True):
        if done:
            _whole(folder / "there", known, {new}, {tag})
        _push_repairing(folder, said.append)
    if any(said):
        raise Violation(f"it was said that {said} are lost")


# Saves beside a run

STEPS = 3


def _begun(folder: Path) -> Known:
    (folder / "here").mkdir()
    _train(folder, lambda _: None, 1)
    return Known({})


def _train(folder: Path, say: Say, until: int = 1 + STEPS) -> None:
    """Train to a step from where the last one got to, saving in the background: says which (step, commit) are saved."""
    repo = Repository(folder / "here", init=True)
    source = _Source()
    config = CheckpointConfig(save_every_n_steps=1, keep_last_n_checkpoints=2)
    with CheckpointManager(repo, config, source) as manager:
        manager.on_saved.append(lambda step, commit: say((step, commit)))
        if repo.log():
            manager.restore("last")
        while source.step < until:
            source.step += 1
            manager.emit(StepEnd(source.step))
            manager.wait()


def _saved(folder: Path, known: Known, said: list[Any]) -> None:
    for done in (said, said):
        if problem := judge(folder / "here", {step: commit for step, commit in done if isinstance(commit, str)}):
            raise Violation(problem)
        _train(folder, said.append)
    if Repository(folder / "here").show("last").step != 1 + STEPS:
        raise Violation("it does not train to the end")


DEEDS = (
    Deed("push", _two, _push, _sent),
    Deed("pull", _behind, _pull, _received),
    Deed("clone", _elsewhere, _clone, _cloned),
    Deed("a push that prunes", _pruned_here, _push_pruning, _pruned_there),
    Deed("a push that repairs", _lost_there, _push_repairing, _mended_there),
    Deed("a run that saves", _begun, _train, _saved),
)


# What goes wrong


@contextmanager
def _through(around: Callable[[Call], Any]) -> Iterator[None]:
    """Have every repository that is opened, here or there, do its operations through a function."""
    places = (coral.repository, coral._remoting, coral.remotes._directory)
    for place in places:
        place.LocalFileSystem = lambda path: Seam(LocalFileSystem(path), around)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for place in places:
            place.LocalFileSystem = LocalFileSystem  # type: ignore[attr-defined]


def _kinds(folder: Path, deed: Deed) -> list[str]:
    """The kinds of the operations that it takes without a fault."""
    kinds: list[str] = []

    def around(call: Call) -> Any:
        kinds.append(call.kind)
        return call.do()

    with _through(around):
        deed.act(folder, lambda _: None)
    return kinds


def attempt(folder: Path, deed: Deed, around: Callable[[Call], Any] = lambda call: call.do()) -> None:
    """Do it, with what goes wrong; only errors of coral's may come out."""
    _patient._PAUSES = (0.0,)  # type: ignore[assignment]

    def say(what: object) -> None:
        with (folder / "said").open("a") as file:
            file.write(json.dumps(what) + "\n")

    with _through(around):
        try:
            deed.act(folder, say)
        except CoralError:
            return


def tried(folder: Path, deed: Deed, known: Known, work: Callable[[], object]) -> str:
    """What is wrong once a process of its own has done that work, an attempt, without dying; "" if nothing."""
    status, result = in_child(work)
    return str(result) if status else judged(folder, deed, known)


def judged(folder: Path, deed: Deed, known: Known) -> str:
    """What is wrong afterwards; "" if nothing."""
    said = [json.loads(line) for line in _said(folder / "said")]
    status, result = in_child(lambda: deed.check(folder, known, said))
    return str(result) if status else ""


def _said(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def base(deed: Deed) -> Iterator[tuple[Path, Known, list[str]]]:
    """A folder with what is there at first in `base`, and the operations of a deed without faults."""
    folder = scratch()
    try:
        (folder / "base").mkdir()
        status, known = in_child(lambda: deed.build(folder / "base"))
        if status:
            raise Violation(f"it cannot be built: {known}")
        # a remote's folder is known by its path, so everything happens in one place
        shutil.copytree(folder / "base", folder / "kept")
        status, kinds = in_child(lambda: _kinds(folder / "base", deed))
        if status:
            raise Violation(f"it fails without a fault: {kinds}")
        yield folder, known, kinds
    finally:
        shutil.rmtree(folder)


def again(folder: Path) -> Path:
    """The folder that everything happens in, as it was at first."""
    here = folder / "base"
    shutil.rmtree(here)
    shutil.copytree(folder / "kept", here)
    return here


def run_death(deed: Deed, *, thin: int = 1, seed: int = 0) -> Tally:
    """T3: die at each moment between which something is changed, or one in `thin`."""
    began, tally = time.perf_counter(), Tally()
    with base(deed) as (folder, known, kinds):
        for at, moment in moments(kinds, every=False)[seed % thin :: thin]:
            here, count = again(folder), itertools.count()

            def around(call: Call, at: int = at, moment: str = moment, count: Iterator[int] = count) -> Any:
                if next(count) != at:
                    return call.do()
                if moment == "midway" and call.part:
                    call.part()
                if moment == "after":
                    call.do()
                os._exit(DIED)

            status, result = in_child(partial(attempt, here, deed, around))
            tally.cases += status == DIED  # with several requests under way their order is not always the same
            problem = "" if status in (0, DIED) else f"it ended otherwise: {status}, {result}"
            if problem := problem or judged(here, deed, known):
                tally.violations.append(f"{deed.name}: died {moment} op {at} ({kinds[at]}): {problem}")
    tally.seconds = time.perf_counter() - began
    return tally


def run_errors(deed: Deed, *, thin: int = 1, seed: int = 0) -> Tally:
    """T5: each operation fails with each error, once and from then on, or one in `thin` of these cases."""
    began, tally = time.perf_counter(), Tally()
    with base(deed) as (folder, known, kinds):
        cases = [(at, error, lasts) for at in range(len(kinds)) for error in ERRORS for lasts in (False, True)]
        for at, error, lasts in cases[seed % thin :: thin]:
            here, fault = again(folder), Faulty(at, error, lasts=lasts)
            tally.cases += 1
            if problem := tried(here, deed, known, partial(attempt, here, deed, fault)):
                often = " and all after" if lasts else ""
                tally.violations.append(f"{deed.name}: {error} at op {at} ({kinds[at]}){often}: {problem}")
    tally.seconds = time.perf_counter() - began
    return tally
