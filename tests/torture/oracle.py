"""What every fault test asks of a repository, whatever has been done to it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from coral import CoralError, Repository, WeightTensor
from coral.errors import RefExists
from coral.filesystem import FileSystem
from scenarios import Branch, Checkout, Commit, Init, Step, Tag, World, perform, state, weights


class Violation(Exception):
    """A promise of the store that does not hold."""


def check(fs: FileSystem, world: World, step: Step | None, *, same: Repository | None = None) -> World:
    """Ask everything, after a fault that hit `step` (None: no operation was under way) in `world`.

    Returns the world that the retry has left.

    The retry is done on `same`, the very object that the fault hit, if there is one.
    """
    try:
        repo = _open(fs, world)
        if repo is not None:
            _refs(repo, world, step)
            _commits(repo, world)
            _clean(repo, "fsck after the fault")
        if repo is None and not isinstance(step, Init):
            raise Violation("an acknowledged repository does not open")
        return _retry(fs, world, step, same or repo)
    except CoralError as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    except (Violation, MemoryError):
        raise
    except Exception as error:
        raise Violation(f"foreign {type(error).__name__}: {error}") from error


def check_lossy(fs: FileSystem, world: World, step: Step | None) -> None:
    """Ask what commits that were not synced still promise: what is lost is found out, and work can go on.

    Commits may be lost, and refs be any older value; no tensor is ever silently wrong, whatever is damaged is an error
    and fsck names it, and the operation, retried, succeeds.
    """
    try:
        repo = Repository(fs)
        damaged = False
        for id, made in world.commits.items():
            try:
                _compare(repo, id, made)
            except CoralError:
                damaged = damaged or id in _seen(repo)
        for id in _seen(repo) - set(world.commits):
            try:
                _compare(repo, id, step if isinstance(step, Commit) else None)
            except CoralError:
                damaged = True
        if damaged and repo.fsck().ok:
            raise Violation("a commit that a ref names does not load, and fsck says all is well")
        redo = step if isinstance(step, Commit) else Commit(77)
        repo = Repository(fs, durability=redo.durability)
        id = perform(repo, redo)
        assert id is not None
        again = Repository(fs)
        _compare(again, id, redo)
        if again.branches().get(redo.branch or again.head) != id:
            raise Violation("the retried commit is not what its branch points to")
    except CoralError as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    except (Violation, MemoryError):
        raise
    except Exception as error:
        raise Violation(f"foreign {type(error).__name__}: {error}") from error


def _seen(repo: Repository) -> set[str]:
    try:
        return set(repo.branches().values())
    except CoralError:
        return set()


def _open(fs: FileSystem, world: World) -> Repository | None:
    try:
        return Repository(fs)
    except CoralError:
        if world.ready:
            raise
        return None


def _clean(repo: Repository, when: str) -> None:
    report = repo.fsck()
    if not report.ok:
        found = "; ".join(f"{p.path}: {p.message}" for p in report.problems[:3])
        raise Violation(f"{when}: {found}")


def _refs(repo: Repository, world: World, step: Step | None) -> None:
    """Each ref has its old value or the one that `step` gives it."""
    branches = dict(repo.branches())
    new = _new_commit(repo, world, step)
    for name in branches.keys() | world.branches.keys():
        allowed = {world.branches.get(name)}
        match step:
            case Commit() if name == (step.branch or world.head):
                allowed |= new
                if name not in world.branches and world.branches:
                    allowed.add(world.points_to("HEAD"))  # the branch is made first, the commit is put on it then
            case Branch(made, at) if name == made:
                allowed.add(world.points_to(at))
        if branches.get(name) not in allowed:
            raise Violation(f"branch {name} is {branches.get(name)}, not one of {allowed}")
    tags = dict(repo.tags())
    for name in tags.keys() | world.tags.keys():
        allowed = {world.tags.get(name)}
        if isinstance(step, Tag) and name == step.name:
            allowed.add(world.points_to(step.ref))
        if tags.get(name) not in allowed:
            raise Violation(f"tag {name} is {tags.get(name)}, not one of {allowed}")
    heads = {world.head} | ({step.branch} if isinstance(step, Checkout) else set())
    if repo.head not in heads:
        raise Violation(f"HEAD is {repo.head}, not one of {heads}")


def _new_commit(repo: Repository, world: World, step: Step | None) -> set[str | None]:
    """The ids that refs show and nobody has been told of: they must be the commit that `step` was making, entire."""
    unknown: set[str | None] = set(repo.branches().values()) - set(world.commits)
    for id in unknown:
        if not isinstance(step, Commit):
            raise Violation(f"a ref leads to {id}, which nobody made")
        _compare(repo, str(id), step)
    return unknown


def _commits(repo: Repository, world: World) -> None:
    """Every acknowledged commit restores bit-exact, by its id; each branch's log leads back to its first."""
    for id, made in world.commits.items():
        _compare(repo, id, made)
    logged = {commit.id for name in world.branches for commit in repo.log(name)}
    if lost := set(world.commits) - logged:
        raise Violation(f"commits {lost} are in no log")


def _retry(fs: FileSystem, world: World, step: Step | None, repo: Repository | None) -> World:
    """The same operation, done again, succeeds; without one, another commit does."""
    step = step or Commit(77)
    if isinstance(step, Init):
        Repository(fs, init=True)
        world, step, repo = world.after(step, None), Commit(1), Repository(fs)
    assert repo is not None
    try:
        result = perform(repo, step)
    except RefExists:  # the first attempt did it
        result = None
        done = repo.branches() if isinstance(step, Branch) else repo.tags()
        if not isinstance(step, (Branch, Tag)) or step.name not in done:
            raise
    world = world.after(step, result)
    again = Repository(fs)
    seen = (dict(again.branches()), dict(again.tags()), again.head)
    want = (dict(world.branches), dict(world.tags), world.head)
    if seen != want:
        raise Violation(f"after the retry the refs are {seen}, not {want}")
    _commits(again, world)
    _clean(again, "fsck after the retry")
    return world


# ---- bit by bit


def _compare(repo: Repository, id: str, made: Commit | None) -> None:
    if made is None:
        raise Violation(f"{id} was never made")
    loaded = repo.load(id)
    wanted = weights(made)
    if set(loaded) != set(wanted):
        raise Violation(f"{id} has tensors {sorted(loaded)}, not {sorted(wanted)}")
    for name, want in wanted.items():
        if difference := _differs(loaded[name], want):
            raise Violation(f"SILENTLY WRONG: {name} of {id}: {difference}")
    if difference := _differs(repo.load_state(id), state(made)):
        raise Violation(f"SILENTLY WRONG: state of {id}: {difference}")


def _differs(got: object, want: object) -> str:
    """Where two values differ, by type and by bits; '' if nowhere."""
    if isinstance(want, (np.ndarray, WeightTensor)):
        if not isinstance(got, (np.ndarray, WeightTensor)):
            return f"{type(got).__name__} for a tensor"
        a, b = (x if isinstance(x, WeightTensor) else WeightTensor(x) for x in (got, want))
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{a} for {b}"
        return "" if a.bytes().tobytes() == b.bytes().tobytes() else "other bits"
    if type(got) is not type(want):
        return f"{got!r:.80} for {want!r:.80}"
    match want:
        case dict():
            assert isinstance(got, Mapping)
            if list(got) != list(want):
                return f"keys {list(got)} for {list(want)}"
            return next((f"{k}: {d}" for k in want if (d := _differs(got[k], want[k]))), "")
        case list() | tuple():
            assert isinstance(got, (list, tuple))
            if len(got) != len(want):
                return f"{len(got)} items for {len(want)}"
            return next((f"{i}: {d}" for i in range(len(want)) if (d := _differs(got[i], want[i]))), "")
        case float():
            return "" if struct.pack("<d", got) == struct.pack("<d", want) else f"{got!r} for {want!r}"
    return "" if got == want else f"{got!r:.80} for {want!r:.80}"
