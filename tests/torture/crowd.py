"""T8: real processes that commit to one branch and to their own, beside readers, collections and kills at random.

Each says what it was told is done before it goes on; one that is killed is followed by another. In the end every commit
that was acknowledged is in its branch's history, and loads as it was made.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from killing import Say, Victim, _folder
from oracle import Violation
from power_loss import Tally
from process_death import in_child

from coral import Repository
from coral.errors import Conflict

Made = tuple[str, int, int, str]  # branch, which process, its how manieth commit, id


def weights(writer: int, number: int) -> dict[str, np.ndarray]:
    """What a process commits: one tensor of its own, one that many share, one that never changes."""
    return {
        "own": np.array([writer, number] * 20, np.int32),
        "shared": np.full(200, number // 10, np.float32),
        "frozen": np.arange(300, dtype=np.float32),
    }


def branch_of(writer: int, number: int) -> str:
    """Half go to one branch, half to one's own."""
    return "main" if number % 2 else f"own/{writer}"


def write(folder: Path, writer: int, first: int, last: int, say: Say) -> None:
    """Commit what there is from `first` on."""
    repo = Repository(folder)
    for number in range(first, last):
        branch = branch_of(writer, number)
        say((branch, writer, number, repo.commit(weights(writer, number), f"{writer} {number}", branch=branch)))


def collect(folder: Path, say: Say) -> None:
    """Collect garbage over and over, and repack now and then."""
    for number in range(1 << 30):
        repo = Repository(folder)
        repo.gc()
        if number % 10 == 9:
            try:
                repo.repack()
            except Conflict:  # another one is at work
                pass
        say(number)
        time.sleep(0.3)


def read(folder: Path, say: Say) -> None:
    """Load the tips of branches, over and over; whatever is raised is an error of a reader's."""
    rng = random.Random(os.getpid())
    while True:
        repo = Repository(folder)
        for branch, tip in repo.branches().items():
            if rng.random() < 0.3 and (wrong := _wrong(repo, tip)):
                raise Violation(f"{branch}: {wrong}")
        say("read")
        time.sleep(0.05)


def _wrong(repo: Repository, id: str) -> str:
    """What is wrong with a commit; "" if nothing is."""
    words = repo.show(id).message.split()
    if words == ["begin"]:
        return ""
    want = weights(*map(int, words))
    got = repo.load(id)
    bad = [name for name in want if got[name].data.tobytes() != want[name].tobytes()]
    return f"SILENTLY WRONG: {bad} of {id}" if bad else ""


def run(*, writers: int = 8, commits: int = 200, kills: int = 100, seed: int = 0) -> Tally:
    """`writers` processes make so many commits each, beside two collectors and a reader; one is killed so often.

    The cases are the commits; `tried` counts the kills.
    """
    began, tally, rng = time.perf_counter(), Tally(), random.Random(seed)
    with _folder() as folder:
        in_child(lambda: Repository(folder, init=True).commit({"begin": np.zeros(1)}, "begin"))
        _Crowd(folder, writers, commits, kills, rng, tally).run()
    tally.seconds = time.perf_counter() - began
    return tally


class _Crowd:
    def __init__(self, folder: Path, writers: int, commits: int, kills: int, rng: random.Random, tally: Tally) -> None:
        self._folder, self._commits, self._kills, self._rng, self._tally = folder, commits, kills, rng, tally
        self._done: list[Made] = []
        self._next = [0] * writers
        self._running: dict[int, tuple[Victim, Callable[[], Victim | None]]] = {}

    def run(self) -> None:
        for writer in range(len(self._next)):
            self._start(lambda writer=writer: self._writer(writer))  # type: ignore[misc]
        for work in (collect, collect, read):
            self._start(lambda work=work: Victim(lambda say: work(self._folder, say)))  # type: ignore[misc]
        try:
            self._watch()
        finally:
            for victim, _ in self._running.values():
                os.kill(victim.pid, signal.SIGKILL)
                victim.end()
        failed, wrong = in_child(self._judge)
        if failed or wrong:
            self._tally.violations.append(str(wrong))
        self._tally.cases = len(self._done)

    def _start(self, make: Callable[[], Victim | None]) -> None:
        victim = make()
        if victim is not None:
            self._running[victim.pid] = victim, make

    def _writer(self, writer: int) -> Victim | None:
        first = self._next[writer]
        if first >= self._commits:
            return None
        return Victim(lambda say: write(self._folder, writer, first, self._commits, say))

    def _watch(self) -> None:
        """Kill now and then, and have another one go on, until everything is committed."""
        total = self._commits * len(self._next)
        due = deque(sorted(self._rng.randrange(total) for _ in range(self._kills)))  # after so many commits
        while sum(self._next) < total and not self._tally.violations:
            killed = None
            if due and sum(self._next) >= due[0]:
                due.popleft()
                killed = self._rng.choice(list(self._running))
                os.kill(killed, signal.SIGKILL)
                self._tally.tried += 1
            for pid, (victim, make) in list(self._running.items()):
                ended = self._hear(victim)
                while pid == killed and not ended:
                    ended = self._hear(victim)
                if ended:
                    del self._running[pid]
                    self._start(make)
            time.sleep(0.002)
        self._tally.violations += [] if not due else [f"{len(due)} kills were not done"]

    def _hear(self, victim: Victim) -> bool:
        """Take down what a process has said; whether it has ended."""
        said, ended = victim.hear()
        for what in said:
            if isinstance(what, Violation):
                self._tally.violations.append(str(what))
            elif isinstance(what, tuple):
                self._done.append(what)
                self._next[what[1]] = what[2] + 1
        return ended

    def _judge(self) -> str:
        repo = Repository(self._folder)
        for branch in {made[0] for made in self._done}:
            logged = {commit.id for commit in repo.log(branch)}
            if lost := [made for made in self._done if made[0] == branch and made[3] not in logged]:
                return f"{len(lost)} acknowledged commits are not in the log of {branch}: {lost[:3]}"
        for *_, id in self._done:
            if wrong := _wrong(repo, id):
                return wrong
        report = repo.fsck()
        return "" if report.ok else str(report)
