"""T11 to T13: what a network does to a filesystem, clocks that are wrong, a repository that cannot be written to."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from memory import MemoryFileSystem
from oracle import Violation, check, compare
from power_loss import Tally
from process_death import count_operations
from races import RACES, Race
from scenarios import (
    FORKED,
    GROWN,
    HEAVY,
    SCENARIOS,
    SINGLE,
    UPKEEP,
    Annotate,
    Commit,
    Gc,
    Init,
    Killed,
    Prune,
    Repack,
    Scenario,
    Step,
    Tag,
    World,
    build,
    do,
    limits,
    perform,
)
from seam import Call, Seam

from coral import CoralError, Repository
from coral.errors import ReadOnly, StorageError
from coral.filesystem import FileSystem, Origin

YEARS = 10 * 365 * 86400.0


class Shared(Seam):
    """A filesystem that other machines see, too; this one is `host`, and its clock is wrong by `skew` seconds."""

    def __init__(
        self, inner: FileSystem, around: Callable[[Call], Any] = lambda call: call.do(), *, host: str, skew: float = 0
    ) -> None:
        super().__init__(inner, around)
        self._host, self._skew = host, skew

    def shared(self) -> bool:
        return True

    def now(self) -> float:
        return self._inner.now() + self._skew

    def origin(self) -> Origin:
        return Origin(self._host, f"boot of {self._host}", 1)

    def alive(self, origin: Origin) -> bool:
        return origin == self.origin()


def _measured(cases: Iterator[str]) -> Tally:
    """Count the cases; each is '' or what is wrong."""
    began, tally = time.perf_counter(), Tally()
    for found in cases:
        tally.cases += 1
        tally.violations += [found] if found else []
    tally.seconds = time.perf_counter() - began
    return tally


def _judged(what: str, work: Callable[..., object], *args: Any) -> str:
    try:
        work(*args)
    except Violation as violation:
        return f"{what}: {violation}"
    return ""


# ---- T11: as NFS does


def run_network(*, thin: int = 1, seed: int = 0) -> Tally:
    """Lost replies, one in `thin` of them; stale listings, fewer where thinned; no hard links."""
    return _measured(_network(thin, seed))


def _network(thin: int, seed: int) -> Iterator[str]:
    for scenario in (*SINGLE, *HEAVY):
        with limits(scenario):
            base = MemoryFileSystem()
            world = build(base, scenario.before)
            kinds = count_operations(base.copy(), scenario)
            for at in [at for at, kind in enumerate(kinds) if kind in _AGAIN][seed % thin :: thin]:
                what = f"{scenario.name}: the reply to op {at} ({kinds[at]}) is lost"
                yield _judged(what, _lost_reply, base.copy(), world, scenario, at)
    for race in RACES:
        if len(race.parties) == 2 and all(isinstance(act, Step) for acts in race.parties for act in acts):
            with limits(Scenario("", (), (), tight=race.tight)):
                for lag in (1, 3, 10, 30) if thin == 1 else (3,):
                    what = f"{race.name}: {lag} listings are stale"
                    yield _judged(what, _stale, race, lag)
    for code in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
        yield _judged(f"no hard links: {errno.errorcode[code]}", _no_links, code)


_AGAIN = {"link": errno.EEXIST, "create": errno.EEXIST, "replace": errno.ENOENT, "unlink": errno.ENOENT}
"""What an operation says that is sent again since its reply was lost: it has been done already."""


def _lost_reply(fs: MemoryFileSystem, world: World, scenario: Scenario, at: int) -> None:
    step, count = scenario.steps[0], iter(range(1 << 30))
    kind = ""

    def around(call: Call) -> Any:
        nonlocal kind
        lost = next(count) == at
        result = call.do()
        if lost:
            kind = call.kind
            raise OSError(_AGAIN[call.kind], os.strerror(_AGAIN[call.kind]), call.path)
        return result

    try:
        result = do(Seam(fs, around), step)  # type: ignore[arg-type]
    except CoralError as error:
        if kind == "link":
            raise Violation(f"a link whose reply was lost is not recognised: {error}") from error
        check(fs, world, step)
    except Exception as error:
        raise Violation(f"foreign {type(error).__name__}: {error}") from error
    else:
        check(fs, world.after(step, result), None)


def _stale(race: Race, lag: int) -> None:
    """One machine does its acts; another one, which then does its own, sees folders as they were before, for a while.

    A folder that it changes itself it sees as it is.
    """
    base = MemoryFileSystem()
    world = build(base, race.before)
    fs, left, fresh = base.copy(), lag, set()

    def around(call: Call) -> Any:
        nonlocal left
        if call.kind == "list" and left and call.path not in fresh:
            left -= 1
            return base.list(call.path)
        if call.kind in ("create", "link", "replace", "unlink", "mkdir"):
            fresh.add(call.path.rpartition("/")[0])
        return call.do()

    first, second = race.parties
    refs = {act.ref: world.points_to(act.ref) for acts in race.parties for act in acts if isinstance(act, Prune)}
    for act in first:
        world = world.after(_fixed(act, refs), do(Shared(fs, host="one"), _fixed(act, refs)))  # type: ignore[arg-type]
    for act in second:
        step = _fixed(act, refs)
        try:
            result = do(Shared(fs, around, host="two"), step)  # type: ignore[arg-type]
        except CoralError:
            check(MemoryFileSystem.of(fs.tree(), clock=fs.clock + 1), world, step)
            return
        except Exception as error:
            raise Violation(f"foreign {type(error).__name__}: {error}") from error
        world = world.after(step, result)
    check(MemoryFileSystem.of(fs.tree(), clock=fs.clock + 1), world, None)


def _fixed(act: Any, refs: dict[str, str]) -> Step:
    return Prune(refs[act.ref]) if isinstance(act, Prune) else act  # type: ignore[no-any-return]


def _no_links(code: int) -> None:
    fs = MemoryFileSystem()

    def around(call: Call) -> Any:
        if call.kind == "link":
            raise OSError(code, os.strerror(code), call.path)
        return call.do()

    try:
        Repository(Seam(fs, around), init=True)
    except StorageError as error:
        if "hard links" not in str(error) and code != errno.EMLINK:
            raise Violation(f"it is refused, and not said why: {error}") from error
        return
    raise Violation("it is made, and two writers could overwrite each other")


# ---- T12: clocks


def run_clocks(*, thin: int = 1, seed: int = 0) -> Tally:
    """Scenarios under clocks that jump; collections of machines whose clocks are wrong, at one in `thin` operations."""
    return _measured(_clocks(thin, seed))


def _clocks(thin: int, seed: int) -> Iterator[str]:
    for scenario in (*SCENARIOS, *UPKEEP):
        for jumps in ((YEARS, -YEARS), (-YEARS, YEARS), (-1.0, -1.0))[: 3 if thin == 1 else 1]:
            with limits(scenario):
                yield _judged(f"{scenario.name}, the clock jumps by {jumps}", _jump, scenario, jumps)
    with limits(Scenario("", (), ())):
        base = MemoryFileSystem()
        world = build(base, GARBAGE)
        step = Commit(3, prefix="ema.")
        number = len(count_operations(base.copy(), Scenario("", (), (step,))))
        for at in range(seed % thin, number, thin):
            for skew in (YEARS, -YEARS):
                for host in ("one", "two"):
                    what = f"op {at} of a commit, a collection on machine {host}, {skew:+.0f} s"
                    yield _judged(what, _collect_at, base.copy(), world, step, at, skew, host)


GARBAGE = (*FORKED, Killed(5))


def _jump(scenario: Scenario, jumps: tuple[float, ...]) -> None:
    fs = MemoryFileSystem()
    world = build(fs, scenario.before)
    for number, step in enumerate(scenario.steps):
        fs.clock += jumps[number % len(jumps)]
        world = world.after(step, do(fs, step))
    fs.clock -= YEARS
    check(fs, world, None)


def _collect_at(base: MemoryFileSystem, world: World, step: Step, at: int, skew: float, host: str) -> None:
    """Machine one is at an operation of a step; there, a machine whose clock is wrong collects."""
    count = iter(range(1 << 30))

    def around(call: Call) -> Any:
        if next(count) == at:
            Repository(Shared(base, host=host, skew=skew)).gc(grace=None if host == "two" else 0)
        return call.do()

    result = do(Shared(base, around, host="one"), step)  # type: ignore[arg-type]
    check(MemoryFileSystem.of(base.tree(), clock=base.clock), world.after(step, result), None)


# ---- T13: permissions

STEPS: tuple[Step, ...] = (Commit(9), Tag("v9"), Repack(), Prune("main~2"), Gc(), Annotate("main", 3))
_CHANGES = {"create", "write", "mkdir", "link", "replace", "unlink", "rmdir", "make_root"}


def run_permissions() -> Tally:
    """A repository that cannot be written to is read, and each change of it is refused by ReadOnly."""
    return _measured(_permissions())


def _permissions() -> Iterator[str]:
    scenarios = [*SINGLE, *HEAVY, *(Scenario(str(step), GROWN, (step,)) for step in STEPS)]
    for code in (errno.EROFS, errno.EACCES, errno.EPERM):
        for scenario in scenarios:
            with limits(scenario):
                yield _judged(f"{scenario.name}, {errno.errorcode[code]}", _refused, scenario, code)


def _refused(scenario: Scenario, code: int) -> None:
    fs, step = MemoryFileSystem(), scenario.steps[0]
    world = build(fs, scenario.before)
    before = fs.tree()

    def around(call: Call) -> Any:
        if call.kind in _CHANGES:
            raise OSError(code, os.strerror(code), call.path)
        return call.do()

    sealed = Seam(fs, around)
    if not isinstance(step, Init):
        repo = Repository(sealed)
        for id, made in world.commits.items():
            if id not in world.pruned:
                compare(repo, id, made)
        if not repo.fsck().ok or dict(repo.branches()) != world.branches:
            raise Violation("it does not read as it is")
        repo.stats()
    try:
        done = perform(Repository(sealed, init=isinstance(step, Init)), step)
    except ReadOnly:
        pass
    except Exception as error:
        raise Violation(f"{type(error).__name__}, not ReadOnly: {error}") from error
    else:
        raise Violation(f"it is said to be done: {done}")
    if fs.tree() != before:
        raise Violation("something was changed")
