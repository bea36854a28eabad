"""T3: the process dies before, after and in the middle of every single filesystem operation of every operation.

Everything that runs coral does so in a forked child, so that the process that forks never has threads.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from crash import Journal
from memory import MemoryFileSystem
from oracle import Violation, check
from power_loss import Tally
from scenarios import Scenario, World, build, do, limits
from seam import Call, Seam

from coral.errors import RefExists, UnknownRef
from coral.filesystem import LocalFileSystem

DIED = 77
CHANGES = {"create", "write", "mkdir", "link", "replace", "unlink"}
MOMENTS = ("before", "midway", "after")


def scratch() -> Path:
    """A new folder, in memory where there is such a place: nothing here depends on a real disk."""
    shm = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="coral-", dir=shm if os.access(shm, os.W_OK) else None))


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run something in a forked child: (exit status, what it returned or raised; None if it died)."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(read)
            try:
                result: Any = _alone(work)
                status = 0
            except Exception as error:  # noqa: BLE001 - the parent judges it
                result = f"{type(error).__name__}: {error}"
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), pickle.loads(data) if data else None


def _alone(work: Callable[[], Any]) -> Any:
    with limits(Scenario("", (), ())):
        return work()


def _must(work: Callable[[], Any]) -> Any:
    status, result = in_child(work)
    if status:
        raise Violation(f"it fails without a fault: {result}")
    return result


def dying(fs: Any, at: int, moment: str, die: Callable[[], None]) -> Seam:
    """A filesystem whose process dies before, midway through, or after operation number `at`."""
    count = itertools.count()

    def around(call: Call) -> Any:
        if next(count) != at:
            return call.do()
        if moment == "midway" and call.part:
            call.part()
        if moment != "after":
            die()
        try:
            return call.do()
        finally:  # whether it worked or not
            die()

    return Seam(fs, around)


def count_operations(fs: Any, scenario: Scenario) -> list[str]:
    """The kinds of the filesystem operations that the scenario's one step makes, in order."""
    kinds: list[str] = []

    def around(call: Call) -> Any:
        kinds.append(call.kind)
        return call.do()

    do(Seam(fs, around), scenario.steps[0])
    return kinds


def moments(kinds: list[str], *, every: bool = True) -> list[tuple[int, str]]:
    """Each (operation, moment) at which to die; unless `every`, one only of those between which nothing is changed."""
    found = [(n, m) for n, kind in enumerate(kinds) for m in MOMENTS if m != "midway" or kind == "write"]
    return found if every else [found[0], *((n, m) for n, m in found if m != "before" and kinds[n] in CHANGES)]


def run(scenario: Scenario, *, every: bool = True, thin: int = 1) -> Tally:
    """Die at each moment of the one step of a scenario, or one in `thin`, in real processes on a real filesystem."""
    began, tally = time.perf_counter(), Tally()
    folder = scratch()
    try:
        base = folder / "base"
        base.mkdir()
        world: World = _must(lambda: build(LocalFileSystem(base), scenario.before))
        shutil.copytree(base, folder / "count")
        kinds = _must(lambda: count_operations(LocalFileSystem(folder / "count"), scenario))
        for number, (at, moment) in enumerate(moments(kinds, every=every)[::thin]):
            here = folder / str(number)
            shutil.copytree(base, here)
            fs = LocalFileSystem(here)
            doomed = dying(fs, at, moment, lambda: os._exit(DIED))
            status, result = in_child(lambda doomed=doomed: do(doomed, scenario.steps[0]))  # type: ignore[misc]
            what = f"{scenario.name}: died {moment} op {at} ({kinds[at]})"
            tally.cases += 1
            if status != DIED:
                tally.violations.append(f"{what}: it did not die, but: {status}, {result}")
            status, result = in_child(lambda fs=fs: check(fs, world, scenario.steps[0]))  # type: ignore[misc]
            if status:
                tally.violations.append(f"{what}: {result}")
            shutil.rmtree(here)
    finally:
        shutil.rmtree(folder)
    tally.seconds = time.perf_counter() - began
    return tally


class Died(BaseException):
    """The process is no more: nothing it does from now on reaches the disk."""


def _die() -> None:
    raise Died


class _Grave:
    """Lets nothing through any more once the process has died: no cleaning up on the way out."""

    def __init__(self, fs: Seam) -> None:
        self.dead = False
        self.seam = Seam(fs, self)

    def __call__(self, call: Call) -> Any:
        if self.dead:
            raise Died
        try:
            return call.do()
        except Died:
            self.dead = True
            raise


def run_then_power_loss(scenario: Scenario, *, cap: int, seed: int = 0, every: bool = True, thin: int = 1) -> Tally:
    """The process dies at each moment, another one does the step again and is told it is done: then the power goes.

    What the dead process had not synced is still in the page cache, and looks to its successor as if it were on disk.
    """
    began, tally = time.perf_counter(), Tally()
    with limits(scenario):
        _redo(tally, scenario, cap, seed, every, thin)
    tally.seconds = time.perf_counter() - began
    return tally


def _redo(tally: Tally, scenario: Scenario, cap: int, seed: int, every: bool, thin: int) -> None:
    base = MemoryFileSystem()
    world = build(base, scenario.before)
    kinds = count_operations(base.copy(), scenario)
    for at, moment in moments(kinds, every=every)[seed % thin :: thin]:
        fs = base.copy()
        with suppress(Died):
            do(_Grave(dying(fs, at, moment, _die)).seam, scenario.steps[0])
        fs.pid += 1
        what = f"{scenario.name}: died {moment} op {at} ({kinds[at]}), redone, power lost"
        try:
            done = world.after(scenario.steps[0], do(fs, scenario.steps[0]))
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
            if not isinstance(error, (RefExists, UnknownRef)):  # told that it is done: not that it is safe
                tally.violations.append(f"{what}: the retry: {type(error).__name__}: {error}")
            continue
        journal = Journal(base.tree())
        for op in fs.trace:
            journal.apply(op)
        for plan in journal.plans(random.Random(f"{seed} {at} {moment}"), cap):
            tally.cases += 1
            state = MemoryFileSystem.of(journal.state(plan), clock=fs.clock + 1, boot="boot-2")
            try:
                check(state, done, None)
            except Violation as violation:
                tally.violations.append(f"{what}, {plan}: {violation}")
                break
