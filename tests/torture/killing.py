"""T4: SIGKILL, SIGTERM and SIGINT, at random, to real processes that commit, repack, collect, and train.

What a process was told is done it says through a pipe before it goes on. Whatever ends it, that holds, and whoever
comes next goes on from there.
"""

from __future__ import annotations

import os
import pickle
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from oracle import Violation, check
from power_loss import Tally
from process_death import _alone, in_child, scratch
from scenarios import Commit, Gc, Init, Prune, Repack, Step, Tag, World, build, do

from coral import Repository, WeightTensor
from coral.filesystem import LocalFileSystem
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ROUNDS = 20  # kills that one repository goes through
STOPPED = 7  # the exit status of who ended by a KeyboardInterrupt

Say = Callable[[object], None]


class Victim:
    """A forked process that says what it has done, until it is killed."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(read)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.unraisablehook = _unraisable
                _alone(lambda: work(lambda what: _send(write, what)))
                status = 0
            except KeyboardInterrupt:
                status = STOPPED
            except BaseException as error:  # noqa: BLE001 - the parent judges it
                _send(write, Violation(f"{type(error).__name__}: {error}"))
            finally:
                os._exit(status)
        os.close(write)
        self._pipe = read
        self._heard = b""

    def hear(self) -> tuple[list[object], bool]:
        """(what it has said meanwhile, whether it has ended)."""
        said, ended = [], False
        while select.select([self._pipe], [], [], 0)[0]:
            data = os.read(self._pipe, 1 << 16)
            self._heard += data
            if not data:
                self.end()
                ended = True
                break
        while len(self._heard) >= 4 and len(self._heard) >= (size := 4 + int.from_bytes(self._heard[:4], "little")):
            said.append(pickle.loads(self._heard[4:size]))
            self._heard = self._heard[size:]
        return said, ended

    def end(self) -> int:
        """Wait for its end; its exit status."""
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self, number: int, after: float) -> tuple[list[object], int]:
        """Let it run for so many seconds once it has done something, and send it a signal: (what it said, status)."""
        select.select([self._pipe], [], [], 30)
        time.sleep(after)
        os.kill(self.pid, number)
        with os.fdopen(self._pipe, "rb") as pipe:
            data = pipe.read()
        return list(_said(data)), os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """End by an interrupt that came while Python ran a `__del__`, of which it would only print a line."""
    if what.exc_type is KeyboardInterrupt:
        os._exit(STOPPED)
    sys.__unraisablehook__(what)


def _send(pipe: int, what: object) -> None:
    data = pickle.dumps(what)
    os.write(pipe, len(data).to_bytes(4, "little") + data)  # at once, or not at all: it is short


def _said(data: bytes) -> Iterator[object]:
    while data:
        size = 4 + int.from_bytes(data[:4], "little")
        yield pickle.loads(data[4:size])
        data = data[size:]


@contextmanager
def _folder() -> Iterator[Path]:
    folder = scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Where something is found, keep the files as they were and as they are: no seed brings that moment again."""
    with _folder() as before:
        shutil.copytree(folder, before, dirs_exist_ok=True)
        try:
            yield
        except Violation as violation:
            kept = Path(tempfile.mkdtemp(prefix="coral-killed-"))
            shutil.copytree(before, kept / "before")
            shutil.copytree(folder, kept / "after")
            raise Violation(f"{violation} (its files before and after the check: {kept})") from violation


def _steps(rng: random.Random, first: int) -> Iterator[Step]:
    """What a process does one after the other; it is killed long before the end."""
    tagged = True  # perhaps, by the one before
    for number in range(first, first + 1000):
        yield Commit(1 + number % 8, state=rng.random() < 0.5)
        may_prune, tagged = not tagged, False
        match rng.randrange(6):
            case 0:
                yield Repack()
            case 1:
                yield Gc()
            case 2:
                yield Tag(f"v{number}")
                tagged = True
            case 3:
                yield Prune("HEAD~1") if may_prune and rng.random() < 0.3 else Gc()


def run(*, kills: int, seed: int = 0, stop: int = 3) -> Tally:
    """Kill a process of a store so many times; after each, the oracle of the fault tests."""
    began, tally, rng = time.perf_counter(), Tally(), random.Random(seed)
    while tally.cases < kills and len(tally.violations) < stop:
        with _folder() as folder:
            fs = LocalFileSystem(folder)
            world: World = in_child(lambda fs=fs: build(fs, (Init(), Commit(1), Commit(2))))[1]  # type: ignore[misc]
            for _ in range(min(ROUNDS, kills - tally.cases)):
                number, tally.cases = rng.choice(SIGNALS), tally.cases + 1
                steps = [step for step in _steps(rng, tally.cases * 1000) if _possible(step, world)]
                try:
                    world = _one(folder, world, steps, number, rng.expovariate(1 / 0.02))
                except Violation as violation:
                    tally.violations.append(f"kill {tally.cases} by {number.name}, seed {seed}: {violation}")
                    break
    tally.seconds = time.perf_counter() - began
    return tally


def _possible(step: Step, world: World) -> bool:
    """Only what HEAD~1 means is pruned, and that once: `World` counts commits behind a branch by its reflog."""
    return not isinstance(step, Prune) or not world.pruned


def _one(folder: Path, world: World, steps: list[Step], number: int, after: float) -> World:
    """The world once somebody has been killed, and what was under way is done again."""
    fs = LocalFileSystem(folder)

    def work(say: Say) -> None:
        pruned = False
        for step in steps:
            if isinstance(step, Prune):
                if pruned:
                    continue
                pruned = True
            say((step, do(fs, step)))

    said, status = Victim(work).kill(number, after)
    if (status not in (-signal.SIGKILL, -signal.SIGTERM, STOPPED)) or any(isinstance(s, Violation) for s in said):
        raise Violation(f"it ended by itself: {status}, {said[-1:]}")
    done = [step for step, _ in said]
    for step, result in said:  # type: ignore[misc]
        world = world.after(step, result)
    left = iter(steps)
    for step in done:
        while next(left) != step:
            pass
    following = next(step for step in left if not (isinstance(step, Prune) and world.pruned))
    with _kept(folder):
        failed, result = in_child(lambda: check(fs, world, following))
        if failed:
            raise Violation(str(result))
    return result  # type: ignore[no-any-return]


class _Source:
    """Weights that are the step, all of them."""

    def __init__(self) -> None:
        self.step = 0

    def capture(self, *, copy: bool = True) -> Snapshot:
        return Snapshot({"w": WeightTensor(np.full(3000, self.step, np.float32))}, {"step": self.step})

    def restore(self, snapshot: Snapshot) -> None:
        self.step = int(snapshot.weights["w"].data[0])


def train(folder: Path, say: Say) -> None:
    """Train, saving in the background, from where the last one got to: says which (step, commit) are saved."""
    repo = Repository(folder, init=True)
    source = _Source()
    config = CheckpointConfig(save_every_n_steps=1, keep_last_n_checkpoints=4, handle_signals=True)
    with CheckpointManager(repo, config, source) as manager:
        manager.on_saved.append(lambda step, commit: say((step, commit)))
        if repo.log():
            manager.restore("last")
        while not manager.stop_reason:
            source.step += 1
            manager.emit(StepEnd(source.step))


def run_training(*, kills: int, seed: int = 0, stop: int = 3) -> Tally:
    """Kill a training that saves asynchronously: what is saved stays, and the next process goes on from the last."""
    began, tally, rng = time.perf_counter(), Tally(), random.Random(seed)
    while tally.cases < kills and len(tally.violations) < stop:
        with _folder() as folder:
            saved: dict[int, str] = {}
            for _ in range(min(ROUNDS, kills - tally.cases)):
                number, tally.cases = rng.choice(SIGNALS), tally.cases + 1
                victim = Victim(lambda say, folder=folder: train(folder, say))  # type: ignore[misc]
                said, status = victim.kill(number, rng.expovariate(1 / 0.02))
                # SIGTERM asks it to end, which it does at the next boundary
                want = {signal.SIGKILL: -9, signal.SIGTERM: 0, signal.SIGINT: STOPPED}[number]
                problem = "" if status == want else f"exit status {status}, not {want}: {said[-1:]}"
                saved |= {step: commit for step, commit in said if isinstance(commit, str)}  # type: ignore[misc]
                try:
                    _judge(folder, saved, problem)
                except Violation as violation:
                    tally.violations.append(f"training, kill {tally.cases} by {number.name}, seed {seed}: {violation}")
                    break
    tally.seconds = time.perf_counter() - began
    return tally


def _judge(folder: Path, saved: dict[int, str], problem: str) -> None:
    with _kept(folder):
        failed, found = in_child(lambda: judge(folder, saved))
        if problem or failed or found:
            raise Violation(problem or found)


def judge(folder: Path, saved: dict[int, str]) -> str:
    """What is wrong with a run that was killed; "" if nothing."""
    repo = Repository(folder)
    log = {commit.id: commit for commit in repo.log()}
    if lost := [step for step, commit in saved.items() if commit not in log]:
        return f"steps {lost} were saved, and are in no log"
    for commit in log.values():
        if not commit.pruned and not (repo.load(commit.id)["w"].data == commit.step).all():
            return f"SILENTLY WRONG: step {commit.step}"
    if log and next(iter(log.values())).pruned:
        return "the newest is pruned"
    report = repo.fsck()
    return "" if report.ok else str(report)
