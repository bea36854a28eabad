"""T9: real operations side by side, switched at every filesystem call that another one could see.

Each party is a process of its own to the others: it has its own id, and is dead once it was killed. Its code runs in a
thread, but one thread at a time, as the schedule says; so a schedule gives the same run every time.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from crash import Journal
from memory import MemoryFileSystem
from oracle import Violation, check, compare
from power_loss import Tally
from scenarios import (
    BORN,
    FORKED,
    GROWN,
    Annotate,
    Branch,
    Commit,
    DeleteBranch,
    Gc,
    Killed,
    Prune,
    Repack,
    Scenario,
    Step,
    Tag,
    World,
    build,
    limits,
    perform,
)
from seam import Call, Seam

from coral import Repository
from coral.errors import CommitInUse, CommitPruned, Conflict, UnknownRef
from coral.filesystem import Origin
from coral.maintenance import _repack
from coral.store import _refs


@dataclass(frozen=True, slots=True)
class Load:
    """Load everything that a commit has, and compare it."""

    ref: str


Act = Step | Load


@dataclass(frozen=True, slots=True)
class Race:
    """Parties that do their acts side by side, on a repository in which `before` is done.

    A `warm` one has looked around before; without a `lease`, nothing keeps two repacks apart. Nobody dies where what
    was under way could not be done again (`mortal`).
    """

    name: str
    before: tuple[Step, ...]
    parties: tuple[tuple[Act, ...], ...]
    warm: bool = False
    lease: bool = True
    tight: bool = False
    mortal: bool = True


EMA = Commit(3, prefix="ema.")
GARBAGE = (*FORKED, DeleteBranch("dev"))

RACES = (
    Race("commit of what nothing leads to, gc", GARBAGE, ((EMA,), (Gc(),))),
    Race("the same, warm", GARBAGE, ((EMA,), (Gc(),)), warm=True),
    Race("commit like one of a deleted branch, gc", GARBAGE, ((Commit(3),), (Gc(),))),
    Race("commit as one that died, gc", (*BORN, Killed(3)), ((Commit(3),), (Gc(),))),
    Race("commit of what was pruned, prune", GROWN, ((EMA,), (Prune("main~1"),))),
    Race("the same, warm and packed", (*GROWN, Repack()), ((EMA,), (Prune("main~1"),)), warm=True),
    Race(
        "commit, commit and prune",
        GROWN,
        (
            (Commit(5),),
            (
                Commit(6),
                Prune("main"),
            ),
        ),
    ),
    Race(
        "later state, gc",
        (*BORN, Killed(3, annotate=True), Killed(3, annotate=True)),
        ((Annotate("main", 3),), (Gc(),)),
    ),
    Race("later state of what is pruned", (*GROWN, Prune("main~1")), ((Annotate("main~1", 3),), (Gc(),))),
    Race("deletion, gc", FORKED, ((DeleteBranch("dev"),), (Gc(),))),
    Race("prune, gc", GROWN, ((Prune("main~1"),), (Gc(),))),
    Race("repack, gc", (*GROWN, Killed(5)), ((Repack(),), (Gc(),))),
    Race("repack, prune", (*GROWN, Repack(), Commit(5)), ((Repack(),), (Prune("main~4"),))),
    Race("repack, repack", GROWN, ((Repack(),), (Repack(),)), lease=False),
    Race("repack, repack, with a lease", GROWN, ((Repack(),), (Repack(),))),
    Race("repack in many packs, gc", GROWN, ((Repack(),), (Gc(),)), tight=True),
    Race("commit, repack", GROWN, ((EMA,), (Repack(),)), warm=True),
    Race("gc, gc", (*GARBAGE, Killed(5)), ((Gc(),), (Gc(),))),
    Race("prune, prune", GROWN, ((Prune("main~1"),), (Prune("main~2"),))),
    Race("load, gc", (*GROWN, Killed(5)), ((Load("main~1"),), (Prune("main~2"),))),
    Race("load, repack", GROWN, ((Load("main~1"),), (Repack(),)), warm=True),
    Race("load, repack of a cold one", GROWN, ((Load("main~2"),), (Repack(),))),
    Race("tag, deletion and gc", FORKED, ((Tag("v1", "dev"),), (DeleteBranch("dev"), Gc())), mortal=False),
    Race("branch, deletion and gc", FORKED, ((Branch("new", "dev"),), (DeleteBranch("dev"), Gc())), mortal=False),
    Race(
        "commit of what nothing leads to, repack, gc",
        (*GROWN, Killed(5)),
        ((Commit(5, prefix="ema."),), (Repack(),), (Gc(),)),
    ),
    Race("load, repack, gc", GROWN, ((Load("main~2"),), (Repack(),), (Prune("main~1"),)), warm=True),
    Race("commit, gc, gc", GARBAGE, ((EMA,), (Gc(),), (Gc(),)), warm=True),
)

QUIET = {"read_into", "region", "view", "close", "fsync", "fsync_file", "make_root", "create"}
"""Calls that no other process can tell from none, or (create) not before the next one. What syncs a folder is none of
these: where the power goes out, it matters whether that came before what others did."""


def visible(call: Call) -> bool:
    """Whether it makes a difference to other parties when this is done."""
    private = call.path.startswith("tmp/") and call.kind in ("write", "unlink")
    return call.kind not in QUIET and not private and call.path not in ("", "format")


class Dead(BaseException):
    """The process was killed: nothing it does from now on reaches the disk."""


class Party(threading.Thread):
    """One process: its acts, and how they went."""

    def __init__(self, number: int, race: Race, fs: MemoryFileSystem, living: set[int], world: World) -> None:
        super().__init__(daemon=True)
        self.acts = tuple(_fixed(act, world) for act in race.parties[number])
        self.done: list[tuple[Act, str | None]] = []
        self.error: BaseException | None = None
        self.over = False
        self.killed = False
        self._world = world
        self._pid = 100 + number
        self._living = living
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._switching = False
        living.add(self._pid)
        self._fs = _Process(fs, self)
        self._repo: Repository | None = None
        if race.warm:
            self._repo = Repository(self._fs)
            self._repo.stats()
            for commit in self._repo.log():
                if not commit.pruned:
                    len([tensor.data for tensor in self._repo.load(commit.id).values()])

    def around(self, call: Call) -> Any:
        if self.killed:
            raise Dead
        if self._switching and visible(call):
            self._paused.release()
            self._go.acquire()
            if self.killed:
                raise Dead
        return call.do()

    def run(self) -> None:
        self._go.acquire()
        self._switching = True
        try:
            if not self.killed:
                repo = self._repo or Repository(self._fs)
                for act in self.acts:
                    self.done.append((act, self._do(repo, act)))
        except Dead:
            pass
        except BaseException as error:  # noqa: BLE001 - judged later
            self.error = error
        self.over = True
        self._paused.release()

    def _do(self, repo: Repository, act: Act) -> str | None:
        match act:
            case Load(ref):
                compare(repo, ref, self._world.commits[ref])
                return None
            case _:
                return perform(repo, act)

    def step(self, count: int | None) -> int:
        """Let it do so many visible calls, or all; how many it did until it was over."""
        made = 0
        while not self.over and (count is None or made < count):
            self._go.release()
            self._paused.acquire()
            made += 1
        return made

    def kill(self) -> None:
        """Have it die where it is."""
        self.killed = True
        self._living.discard(self._pid)
        self.step(None)

    @property
    def origin(self) -> Origin:
        return Origin("memory", "boot-1", self._pid)

    def alive(self, origin: Origin) -> bool:
        """Whether another process is, as this one sees it."""
        return origin.boot == "boot-1" and origin.pid in self._living


class _Process(Seam):
    def __init__(self, fs: MemoryFileSystem, party: Party) -> None:
        super().__init__(fs, party.around)
        self._party = party

    def origin(self) -> Origin:
        return self._party.origin

    def alive(self, origin: Origin) -> bool:
        return self._party.alive(origin)


def _fixed(act: Act, world: World) -> Act:
    """The act on the commit that its ref means before the race."""
    return replace(act, ref=world.points_to(act.ref)) if isinstance(act, (Prune, Load, Annotate)) else act


@dataclass(frozen=True, slots=True)
class Turn:
    """A party does so many visible calls (all if None), and then dies, or not."""

    party: int
    calls: int | None
    dies: bool = False

    def __str__(self) -> str:
        return f"{self.party}:{'all' if self.calls is None else self.calls}{' dies' if self.dies else ''}"


Schedule = tuple[Turn, ...]


class Course:
    """One run of a race."""

    def __init__(self, race: Race, base: MemoryFileSystem, world: World) -> None:
        self._race, self._base, self._world = race, base, world
        self.fs = base.copy()
        living: set[int] = set()
        self._parties = [Party(n, race, self.fs, living, world) for n in range(len(race.parties))]
        for party in self._parties:
            party.start()

    def run(self, schedule: Schedule) -> list[int]:
        """Run by the schedule, and then what is left, one after the other; how many calls each turn made."""
        made = []
        for turn in schedule:
            party = self._parties[turn.party]
            made.append(party.step(turn.calls))
            if turn.dies and not party.over:
                party.kill()
        for party in self._parties:
            party.step(None)
            party.join()
        return made

    def judge(self, states: int, seed: object) -> None:
        """Raise Violation unless all went as it should, also where the power goes out then."""
        for party in self._parties:
            if party.error is not None and not _allowed(party.error, self._race):
                raise Violation(f"{party.acts}: {type(party.error).__name__}: {party.error}") from party.error
        world, step = self._after()
        self.fs.pid = 999
        trace = list(self.fs.trace)
        check(self.fs, world, step)
        if states:
            journal = Journal(self._base.tree())
            for op in trace:
                journal.apply(op)
            for plan in journal.plans(random.Random(str(seed)), states):
                state = MemoryFileSystem.of(journal.state(plan), clock=self.fs.clock + 1, boot="boot-2")
                try:
                    check(state, world, step)
                except Violation as violation:
                    raise Violation(f"power lost ({plan}): {violation}") from violation

    def _after(self) -> tuple[World, Step | None]:
        """What has been acknowledged, and what was under way when its process died."""
        done = [(act, result) for party in self._parties for act, result in party.done]
        order = {}
        for name in {*self._world.branches, "new"}:
            entries = reversed(list(_refs.history(self.fs, _refs.folder_of("heads", name))))
            order |= {entry.value or "": n for n, entry in enumerate(entries) if isinstance(entry, _refs.RefEntry)}
        ranks = {Tag: -1, Branch: -1, Commit: 0}
        done.sort(key=lambda item: (ranks.get(type(item[0]), 1), order.get(item[1] or "", 0)))
        world = self._world
        for act, result in done:
            if not isinstance(act, Load):
                world = world.after(act, result)
        under_way = [
            party.acts[len(party.done)] for party in self._parties if party.killed and len(party.done) < len(party.acts)
        ]
        steps = [act for act in under_way if not isinstance(act, Load)]
        return world, steps[0] if steps else None


def _allowed(error: BaseException, race: Race) -> bool:
    acts = [act for party in race.parties for act in party]
    match error:
        case Conflict():
            return sum(isinstance(act, Repack) for act in acts) > 1 and race.lease
        case CommitInUse() | CommitPruned():
            return any(isinstance(act, Prune) for act in acts)
        case UnknownRef():
            return any(isinstance(act, DeleteBranch) for act in acts)
    return False


@contextmanager
def _no_lease(race: Race) -> Iterator[None]:
    kept = _repack._lease
    if not race.lease:
        _repack._lease = lambda fs: nullcontext()  # type: ignore[assignment]
    try:
        yield
    finally:
        _repack._lease = kept


def run(
    race: Race, *, sparse: int = 1, thin: int = 1, shuffles: int = 0, states: int = 1, seed: int = 0, stop: int = 3
) -> Tally:
    """Run a race by every schedule of one switch, one in `thin` of those of two, and by so many random ones.

    With `sparse`, only every so manieth of those of one.
    """
    began, tally = time.perf_counter(), Tally()
    with limits(Scenario("", (), (), tight=race.tight)), _no_lease(race):
        base = MemoryFileSystem()
        world = build(base, race.before)
        for schedule in itertools.chain(
            _bounded(race, base, world, sparse, thin, seed), _shuffled(race, shuffles, seed)
        ):
            course = Course(race, base, world)
            course.run(schedule)
            tally.cases += 1
            try:
                course.judge(states, f"{seed} {tally.cases}")
            except Violation as violation:
                tally.violations.append(f"{race.name}, schedule {' '.join(map(str, schedule))}: {violation}")
                if len(tally.violations) >= stop:
                    break
    tally.seconds = time.perf_counter() - began
    return tally


def lengths(race: Race, base: MemoryFileSystem, world: World) -> list[int]:
    """How many visible calls each party makes, one after the other."""
    course = Course(race, base, world)
    return course.run(tuple(Turn(n, None) for n in range(len(race.parties))))


def _bounded(race: Race, base: MemoryFileSystem, world: World, sparse: int, thin: int, seed: int) -> Iterator[Schedule]:
    """Each schedule in which one party is interrupted for all, or some calls, of another one; each may die there."""
    sizes = lengths(race, base, world)
    number = seed
    for whole in (True, False):
        for first, second in itertools.permutations(range(len(sizes)), 2):
            for i, j in itertools.product(range(sizes[first] + 8), (None,) if whole else range(1, sizes[second] + 8)):
                for dying in (None, first) if whole else (None, first, second):
                    number += 1
                    if number % (sparse if whole else thin) == 0 and (race.mortal or dying is None):
                        dead = (Turn(first, 0, True),) if dying == first else ()
                        yield (Turn(first, i), Turn(second, j, dying == second), *dead)


def _shuffled(race: Race, count: int, seed: int) -> Iterator[Schedule]:
    """Schedules of many switches, at random; in half of them somebody dies."""
    for number in range(count):
        rng = random.Random(f"{seed} {race.name} {number}")
        mean = rng.choice((2, 5, 15))
        turns = [Turn(rng.randrange(len(race.parties)), 1 + int(rng.expovariate(1 / mean))) for _ in range(400 // mean)]
        if number % 2 and race.mortal:
            at = rng.randrange(len(turns) // 2)
            turns[at] = replace(turns[at], dies=True)
        yield tuple(turns)
