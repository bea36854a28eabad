"""What every fault test asks of a repository, whatever has been done to it."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
from memory import MemoryFileSystem
from scenarios import (
    Annotate,
    Branch,
    Checkout,
    Commit,
    DeleteBranch,
    Init,
    Prune,
    Step,
    Tag,
    Upkeep,
    World,
    perform,
    state,
    weights,
)

from coral import CoralError, Repository, WeightTensor
from coral.errors import CommitPruned, CorruptObject, RefExists, UnknownRef
from coral.filesystem import FileSystem
from coral.store import _refs as _refs_of
from coral.store._refs import RefEntry


class Violation(Exception):
    """A promise of the store that does not hold."""


@contextmanager
def _violations() -> Iterator[None]:
    """Whatever goes wrong within, by an error of coral's or another one, is a violation."""
    try:
        yield
    except CoralError as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    except (Violation, MemoryError):
        raise
    except Exception as error:
        raise Violation(f"foreign {type(error).__name__}: {error}") from error


_restored: set[tuple[int, str]] = set()
"""(fingerprint of all that reading a commit depends on, commit) where the commit was found to restore bit-exact."""
_checked: set[int] = set()
"""Fingerprints of all that fsck reads, where it was clean."""
_rounds = itertools.count()


def check(fs: FileSystem, world: World, step: Step | None, *, same: Repository | None = None) -> World:
    """Ask everything, after a fault that hit `step` (None: no operation was under way) in `world`.

    Returns the world that the retry has left. In memory, what was found good is not asked again in a state that differs
    in nothing it depends on: a commit with the very same packs, index and notes; fsck with the same refs too.

    The retry is done on `same`, the very object that the fault hit, if there is one.
    """
    with _violations():
        everything = _fingerprint(fs, *sorted(set(fs.list("")) - {"tmp", "intents"}))
        repo = _open(fs, world)
        if repo is not None:
            _refs(repo, world, step)
            gone = isinstance(step, DeleteBranch) and step.name not in repo.branches()
            _commits(fs, repo, world.after(step, None) if step and gone else world, step)
            _log(fs, repo, world, step)
            if everything not in _checked:
                _clean(repo, "fsck after the fault")
                _checked.add(everything)
        if repo is None and not isinstance(step, Init):
            raise Violation("an acknowledged repository does not open")
        return _retry(fs, world, step, same or repo)
    raise AssertionError


def check_kept(fs: FileSystem, world: World, step: Step | None) -> None:
    """Ask whether all that was durable restores, whatever became of operations that are not synced."""
    with _violations():
        repo = Repository(fs)
        kept = {id: made for id, made in world.commits.items() if id in world.kept}
        _commits(fs, repo, replace(world, commits=kept), step)
        branches: dict[str, str] = {}
        with suppress(CorruptObject):  # torn
            branches = repo.branches()
        for name, tip in branches.items():
            if name not in world.branches and not isinstance(step, (Branch, Commit)):
                repo.load(tip)  # its deletion was not durable: then nothing that it leads to may be gone


def check_lossy(fs: FileSystem, world: World, step: Step | None) -> None:
    """Ask what commits that were not synced still promise: what is lost is found out, and work can go on.

    Commits may be lost, and refs be any older value; no tensor is ever silently wrong, whatever is damaged is an error
    and fsck names it, and the operation, retried, succeeds.
    """
    with _violations():
        repo = Repository(fs)
        damaged = False
        for id, made in world.commits.items():
            try:
                compare(repo, id, made)
            except CommitPruned:
                if id not in _may_be_pruned(world, step):
                    raise
            except CoralError:
                damaged = damaged or id in _seen(repo, world, step)
        for id in _seen(repo, world, step) - set(world.commits):
            try:
                compare(repo, id, step if isinstance(step, Commit) else None)
            except CoralError:
                damaged = True
        if damaged and repo.fsck().ok:
            raise Violation("a commit that a ref names does not load, and fsck says all is well")
        redo = step if isinstance(step, Commit) else Commit(77)
        repo = Repository(fs, durability=redo.durability)
        made_again = perform(repo, redo)
        assert made_again is not None
        again = Repository(fs)
        compare(again, made_again, redo)
        if again.resolve(redo.branch or again.head) != made_again:
            raise Violation("the retried commit is not what its branch points to")


def _seen(repo: Repository, world: World, step: Step | None) -> set[str]:
    """The commits that branches lead to, as far as their refs are not damaged themselves."""
    names = set(world.branches) | ({step.branch} if isinstance(step, Commit) and step.branch else set())
    seen = set()
    for name in names:
        with suppress(CoralError):
            seen.add(repo.resolve(name))
    return seen


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
            case DeleteBranch(gone) if name == gone:
                allowed.add(None)
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
    unknown = set(repo.branches().values()) - set(world.commits)
    for id in unknown:
        if not isinstance(step, Commit):
            raise Violation(f"a ref leads to {id}, which nobody made")
        compare(repo, id, step)
    return {*unknown}


def _fingerprint(fs: FileSystem, *names: str) -> int:
    """The same number where these files and folders hold the same; a new number each time on a real disk."""
    return fs.fingerprint(*names) if isinstance(fs, MemoryFileSystem) else -1 - next(_rounds)


def _may_be_pruned(world: World, step: Step | None) -> frozenset[str]:
    return world.pruned | ({world.points_to(step.ref)} if isinstance(step, Prune) else set())


def _commits(fs: FileSystem, repo: Repository, world: World, step: Step | None) -> None:
    """Every acknowledged commit restores bit-exact, by its id, but for those that were pruned."""
    packs, maybe = _fingerprint(fs, "packs", "index", "notes", "trash"), _may_be_pruned(world, step)
    for id, made in world.commits.items():
        if (packs, id) not in _restored:
            try:
                if isinstance(step, Annotate) and world.points_to(step.ref) == id:
                    _one_of(repo, id, [made, replace(made, later=step.value)])
                else:
                    compare(repo, id, made)
            except CommitPruned:
                if id not in maybe:
                    raise
            else:
                if id in world.pruned:
                    raise Violation(f"{id} was pruned, and loads")
                _restored.add((packs, id))


def _one_of(repo: Repository, id: str, made: list[Commit]) -> None:
    for one in made[:-1]:
        with suppress(Violation):
            return compare(repo, id, one)
    return compare(repo, id, made[-1])


def _log(fs: FileSystem, repo: Repository, world: World, step: Step | None) -> None:
    """Every acknowledged commit is in the log of a ref, and every value that a branch had in its reflog."""
    if isinstance(step, DeleteBranch):
        world = world.after(step, None)
    logged = {commit.id for name in [*world.branches, *world.tags] for commit in repo.log(name)}
    if lost := set(world.commits) - logged:
        raise Violation(f"commits {lost} are in no log")
    for name, values in world.reflogs.items():
        entries = _refs_of.history(fs, _refs_of.folder_of("heads", name))
        kept = [entry.value for entry in entries if isinstance(entry, RefEntry)]
        if [value for value in reversed(kept) if value in world.commits] != list(values):
            raise Violation(f"the reflog of {name} is {kept[::-1]}, not {values}")


def _retry(fs: FileSystem, world: World, step: Step | None, repo: Repository | None) -> World:
    """The same operation, done again, succeeds; without one, another commit does."""
    step = step or Commit(77)
    if isinstance(step, Init):
        Repository(fs, init=True)
        world, step, repo = world.after(step, None), Commit(1), Repository(fs)
    assert repo is not None
    try:
        result = perform(repo, step)
    except (RefExists, UnknownRef):  # the first attempt did it
        result = None
        done = repo.branches() if isinstance(step, (Branch, DeleteBranch)) else repo.tags()
        if not isinstance(step, (Branch, Tag, DeleteBranch)) or (step.name in done) == isinstance(step, DeleteBranch):
            raise
    world = world.after(step, result)
    again = Repository(fs)
    seen = (dict(again.branches()), dict(again.tags()), again.head)
    want = (dict(world.branches), dict(world.tags), world.head)
    if seen != want:
        raise Violation(f"after the retry the refs are {seen}, not {want}")
    if isinstance(step, Commit):
        assert result is not None
        compare(again, result, step)
    _commits(fs, again, world, None)
    if isinstance(step, Upkeep):
        _all_is_freed(again, step)
        if left := [path for path in again.store.fs.list("trash") if again.store.fs.list(f"trash/{path}")]:
            raise Violation(f"{step} leaves trash: {left}")
    _clean(again, "fsck after the retry")
    return world


def _all_is_freed(repo: Repository, step: Step) -> None:
    """Upkeep leaves nothing that could go, or frees more of it each time: equal copies may lie in two packs."""
    left = [repo.stats().reclaimable_bytes]
    while left[-1]:
        if repo.gc().bytes_freed <= 0:
            raise Violation(f"{step} leaves what could go, and gc frees nothing of it, so many bytes: {left}")
        left.append(Repository(repo.store.fs).stats().reclaimable_bytes)


# ---- bit by bit


def compare(repo: Repository, id: str, made: Commit | None) -> None:
    """Raise Violation unless a commit loads as it was made, bit by bit."""
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
