"""The operations under test, as plain values, and what is true of a repository once they have been acknowledged."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from memory import MemoryFileSystem
from seam import Call, Seam

from coral import Repository, WeightTensor, _digest
from coral.delta import Choice, DeltaConfig, choose
from coral.filesystem import FileSystem
from coral.maintenance import Collected, _bases, _gc, _repack
from coral.store import Durability, _index, _pack, _pack_writer, _refs

CONFIG = DeltaConfig(min_size=64, group_size=3, entropy="deflate")
"""For tensors as tiny as those here to become differences at all."""


@dataclass(frozen=True, slots=True)
class Init:
    """Create the repository."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit version `key` of the weights; `state` says whether with training state, `big` whether over 1 MiB.

    With a `prefix` to their names the parent has none of them, and they are looked for by their ids. Of one that was
    made, `later` is what a note has put in the place of its state, or may have put.
    """

    key: int
    branch: str | None = None
    state: bool = True
    big: bool = False
    durability: Durability = "full"
    prefix: str = ""
    later: int | None = None

    @property
    def message(self) -> str:
        return f"version {self.key}"


@dataclass(frozen=True, slots=True)
class Branch:
    name: str
    at: str = "HEAD"


@dataclass(frozen=True, slots=True)
class Tag:
    name: str
    ref: str = "HEAD"


@dataclass(frozen=True, slots=True)
class Checkout:
    branch: str


@dataclass(frozen=True, slots=True)
class DeleteBranch:
    name: str
    durability: Durability = "full"


@dataclass(frozen=True, slots=True)
class Prune:
    """Prune the commit that HEAD, a branch, or so many commits behind one (`main~2`) means."""

    ref: str
    durability: Durability = "full"


@dataclass(frozen=True, slots=True)
class Repack:
    aggressive: bool = False
    durability: Durability = "full"


@dataclass(frozen=True, slots=True)
class Gc:
    durability: Durability = "full"


@dataclass(frozen=True, slots=True)
class Killed:
    """A process that dies just before its commit moves the branch, and leaves behind all that it has written.

    Never tortured itself; with `midway` it dies while it still writes the pack. Where it was to `annotate` HEAD, it
    dies before the note is there.
    """

    key: int
    midway: bool = False
    annotate: bool = False


@dataclass(frozen=True, slots=True)
class Annotate:
    """Put a later state, one without tensors, in the place of a commit's."""

    ref: str
    value: int


Upkeep = Prune | Repack | Gc
Step = Init | Commit | Branch | Tag | Checkout | DeleteBranch | Annotate | Upkeep | Killed


@dataclass(frozen=True, slots=True)
class World:
    """What has been acknowledged: the commits and what was put in them, and where each ref points.

    It is `soft` while the last commit was not said to be durable. (One of a batch is: `do` ends with the repository
    being closed.) `kept` are those that were durable before.
    """

    ready: bool = False
    commits: Mapping[str, Commit] = field(default_factory=dict)
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    reflogs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    head: str = "main"
    soft: bool = False
    kept: frozenset[str] = frozenset()
    pruned: frozenset[str] = frozenset()

    def after(self, step: Step, result: str | None) -> World:
        """The world once `step` has been acknowledged; `result` is what `perform` returned."""
        match step:
            case Init():
                return replace(self, ready=True)
            case Commit():
                assert result is not None
                commits = {**self.commits, result: step}
                soft = step.durability == "fast"
                kept = self.kept if soft else frozenset(commits)
                return replace(self._moved(step.branch or self.head, result), commits=commits, soft=soft, kept=kept)
            case Branch(name, at):
                return self._moved(name, self.points_to(at))
            case Tag(name, ref):
                return replace(self, tags={**self.tags, name: self.points_to(ref)})
            case Checkout(branch):
                return replace(self, head=branch)
            case DeleteBranch(name):
                left = {branch: log for branch, log in self.reflogs.items() if branch != name}
                logged = {id for log in left.values() for id in log} | set(self.tags.values())
                log = self.reflogs[name]
                logged |= {id for at, id in enumerate(log) if logged.intersection(log[at:])}  # parents of those
                return replace(
                    self,
                    branches={branch: id for branch, id in self.branches.items() if branch != name},
                    reflogs=left,
                    commits={id: made for id, made in self.commits.items() if id in logged},
                    kept=self.kept & logged,
                    soft=self.soft or step.durability == "fast",
                )
            case Annotate(ref, value):
                id = self.points_to(ref)
                return replace(self, commits={**self.commits, id: replace(self.commits[id], later=value)})
            case Prune(ref):
                return replace(self._freed(result), pruned=self.pruned | {self.points_to(ref)})
            case Repack() | Gc():
                return self._freed(result)
            case Killed():
                return self

    def _freed(self, result: str | None) -> World:
        """What makes anything superfluous is durable before that is freed."""
        return self if result is None else replace(self, soft=False, kept=frozenset(self.commits))

    def _moved(self, branch: str, commit: str) -> World:
        logs = {**self.reflogs, branch: (*self.reflogs.get(branch, ()), commit)}
        return replace(self, branches={**self.branches, branch: commit}, reflogs=logs)

    def points_to(self, ref: str) -> str:
        """The commit that HEAD or a branch leads to, or the nth before it on a branch that grew by commits alone."""
        if ref in self.commits:
            return ref
        name, _, back = ref.partition("~")
        name = self.head if name == "HEAD" else name
        return self.reflogs[name][-1 - int(back)] if back else self.branches[name]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps to be tortured, on a repository in which those `before` are done and safely on disk.

    It is `tight` where refs are folded, packs indexed and put together after a few commits instead of hundreds, and
    `hollow` where the empty folders have been lost, as some tools that copy do.
    """

    name: str
    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    tight: bool = False
    hollow: bool = False


BORN = (Init(), Commit(1), Commit(2))
GROWN = (*BORN, Commit(3), Commit(4))
FORKED = (*BORN, Commit(3, branch="dev"), Commit(4, branch="dev"))

SCENARIOS = (
    Scenario("init and first commits", (), (Init(), Commit(1), Commit(2), Commit(3, state=False))),
    Scenario("branch and tag", BORN, (Branch("dev"), Tag("v1"), Checkout("dev"), Commit(3))),
    Scenario("commit on a new branch", BORN, (Commit(3, branch="Exp/1"), Commit(4), Commit(5, branch="Exp/1"))),
    Scenario("same weights again", BORN, (Commit(2), Commit(1), Tag("again", "main"))),
    Scenario("without the empty folders", (Init(),), (Commit(1), Branch("dev"), Tag("v1")), hollow=True),
    Scenario("a tensor over 1 MiB", (Init(), Commit(1, big=True)), (Commit(2, big=True),)),
)

UPKEEP = (
    Scenario("repack, twice", GROWN, (Repack(), Commit(5), Repack(), Repack(aggressive=True))),
    Scenario("prune, gc", GROWN, (Prune("main~2"), Gc(), Commit(3, prefix="ema."), Prune("HEAD~2"))),
    Scenario("a pruned keyframe", (*GROWN, Repack()), (Prune("main~3"), Repack(), Commit(1), Repack())),
    Scenario("gc of a deleted branch", FORKED, (DeleteBranch("dev"), Commit(3, prefix="ema."), Gc(), Commit(4))),
    Scenario("gc of what the dead left", (*BORN, Killed(3), Killed(4, midway=True)), (Gc(), Commit(3))),
)

FAST = (
    Scenario("fast commits", BORN, (Commit(3, durability="fast"), Commit(4, durability="fast"))),
    Scenario("a fast commit on a new branch", BORN, (Commit(3, branch="exp", durability="fast"),)),
    Scenario("batches", BORN, (Commit(3, durability="batch"), Commit(4, branch="exp", durability="batch"))),
    Scenario(
        "upkeep after fast commits",
        BORN,
        (Commit(3, durability="fast"), Commit(4, durability="fast"), Repack(durability="fast")),
    ),
    Scenario(
        "fast pruning", GROWN, (Commit(5, durability="fast"), Prune("main~1", durability="fast"), Gc(durability="fast"))
    ),
    Scenario("fast deletion", FORKED, (DeleteBranch("dev", durability="fast"), Gc(durability="fast"))),
    Scenario(
        "full after fast", BORN, (Commit(3, durability="fast"), Commit(4), Commit(5, durability="fast"), Commit(5))
    ),
)
"""Commits that a loss of power may take back, but never make wrong; full ones among them stay."""

TIGHT = (
    Scenario("folding and indexing", (*BORN, Commit(3)), tuple(Commit(n) for n in range(4, 8)), tight=True),
    Scenario("many packs", (*GROWN, Commit(5)), (Repack(), Commit(6), Prune("main~4"), Gc()), tight=True),
)

SINGLE = (
    Scenario("init", (), (Init(),)),
    Scenario("first commit", (Init(),), (Commit(1),)),
    Scenario("second commit", (Init(), Commit(1)), (Commit(2),)),
    Scenario("commit on a new branch", BORN, (Commit(3, branch="exp/1"),)),
    Scenario("branch", BORN, (Branch("dev", "main"),)),
    Scenario("tag", BORN, (Tag("v1"),)),
    Scenario("checkout", (*BORN, Branch("dev")), (Checkout("dev"),)),
    Scenario("big commit", (Init(), Commit(1, big=True)), (Commit(2, big=True),)),
    Scenario("delete branch", FORKED, (DeleteBranch("dev"),)),
)
"""One scenario for each operation, for faults that are tried at every single step of it."""

HEAVY = (
    Scenario("repack", GROWN, (Repack(),)),
    Scenario("another repack", (*GROWN, Repack(), Commit(5)), (Repack(),)),
    Scenario("prune", GROWN, (Prune("main~1"),)),
    Scenario("repack without a keyframe", (*GROWN, Repack(), Prune("main~3")), (Repack(),)),
    Scenario("gc", (*FORKED, DeleteBranch("dev"), Killed(5), Killed(6, midway=True)), (Gc(),)),
)
"""The same for upkeep, which takes ten times the steps and ten times as long to do again."""


def sagas(seed: int, count: int) -> list[Scenario]:
    """Scenarios of five random steps each, on a repository that has seen a few already."""
    rng = random.Random(seed)
    return [_saga(f"saga {seed}.{number}", rng) for number in range(count)]


def _saga(name: str, rng: random.Random) -> Scenario:
    steps: list[Step] = [Init(), Commit(rng.randrange(1, 9))]
    branches, head, tags = {"main"}, "main", 0
    while len(steps) < 8:
        new = f"{rng.choice(('Exp', 'lr', 'a/b'))}-{len(steps)}"
        match rng.choice(("commit", "commit", "elsewhere", "branch", "tag", "checkout", "repack", "gc")):
            case "commit":
                steps.append(Commit(rng.randrange(1, 9), state=rng.random() < 0.7))
                branches.add(head)
            case "elsewhere":
                onto = rng.choice([*sorted(branches), new])
                steps.append(Commit(rng.randrange(1, 9), branch=onto, state=rng.random() < 0.7))
                branches.add(onto)
            case "branch":
                steps.append(Branch(new, rng.choice(["HEAD", *sorted(branches)])))
                branches.add(new)
            case "tag":
                steps.append(Tag(f"v{tags}", rng.choice(["HEAD", *sorted(branches)])))
                tags += 1
            case "checkout":
                head = rng.choice(sorted(branches))
                steps.append(Checkout(head))
            case "repack":
                steps.append(Repack(aggressive=rng.random() < 0.3))
            case _:
                steps.append(Gc())
    return Scenario(name, tuple(steps[:3]), tuple(steps[3:]))


@lru_cache(maxsize=256)
def weights(step: Commit) -> dict[str, WeightTensor]:
    """Version `key` of a few tiny tensors: some change, some never do; bits that arithmetic would not keep."""
    rng = np.random.default_rng(step.key)
    odd = rng.standard_normal((5, 3)).astype(np.float32)
    odd.view(np.uint32).reshape(-1)[:4] = (0x7FC00001 + step.key, 0xFFA0BEEF, 0x80000000, 0x00000001)
    tensors = {
        "layer.weight": WeightTensor(odd),
        "layer.frozen": WeightTensor(np.arange(24, dtype=np.float64).reshape(4, 6) * -0.0),
        "layer.half": WeightTensor(rng.integers(0, 1 << 16, 7, np.uint16), dtype="bfloat16"),
        "layer.slow": WeightTensor(_slow(step.key)),
        "norm.steps": WeightTensor(np.array(step.key, np.int64)),
        "norm.empty": WeightTensor(np.zeros((0, 3), np.float16)),
        "every.other": WeightTensor(np.full(9, step.key // 2, np.int32)),
    }
    if step.big:
        tensors["big.moving"] = WeightTensor(rng.standard_normal(270_001).astype(np.float32))
        tensors["big.frozen"] = WeightTensor(np.arange(140_001, dtype=np.float64))
    return {step.prefix + name: tensor for name, tensor in tensors.items()}


def _slow(key: int) -> np.ndarray:
    """Few of its numbers differ between versions: what a difference is made for."""
    data = np.random.default_rng(99).standard_normal(96).astype(np.float32)
    data[key % 8 :: 31] += np.float32(key)
    return data


@lru_cache(maxsize=256)
def state(step: Commit) -> dict[str, object] | None:
    """Training state as an optimizer, a scheduler and a random generator have it, or None."""
    if step.later is not None:
        return {"value": step.later}
    if not step.state:
        return None
    rng = np.random.default_rng(1000 + step.key)
    slots = {i: {"step": step.key, "exp_avg": rng.standard_normal(6).astype(np.float32), "max": None} for i in range(2)}
    group = {"lr": 0.1 / step.key, "betas": (0.9, 0.999), "params": [0, 1], "weight_decay": -0.0}
    return {"optimizer": {"state": slots, "param_groups": [group]}, "epoch": step.key, "rng": rng.bytes(40)}


def perform(repo: Repository, step: Step) -> str | None:
    """Do a step; a commit's id, or what was freed, or None."""
    match step:
        case Init():
            return None
        case Commit():
            return repo.commit(weights(step), step.message, branch=step.branch, state=state(step))
        case Branch(name, at):
            repo.branch(name, at=at)
        case Tag(name, ref):
            repo.tag(name, ref)
        case Checkout(branch):
            repo.checkout(branch)
        case DeleteBranch(name):
            repo.delete_branch(name)
        case Prune(ref):
            return _freed(repo.prune(ref))
        case Repack(aggressive):
            return _freed(repo.repack(aggressive, config=CONFIG).freed)
        case Gc():
            return _freed(repo.gc())
        case Annotate(ref, value):
            repo.annotate(ref, state={"value": value})
        case Killed():
            raise AssertionError("only `do` can")
    return None


def _freed(collected: Collected | None) -> str | None:
    return str(collected) if collected and collected.packs_removed else None


class _Died(BaseException):
    pass


def _kill(fs: FileSystem, step: Killed) -> None:
    """Make a commit up to the sync of its pack, or the link of its ref entry."""
    dead = False

    def around(call: Call) -> Any:
        nonlocal dead
        dead = dead or call.kind == ("fsync" if step.midway else "link")
        if dead:
            raise _Died
        return call.do()

    with suppress(_Died):
        perform(Repository(Seam(fs, around)), Annotate("HEAD", step.key) if step.annotate else Commit(step.key))
    assert dead
    if isinstance(fs, MemoryFileSystem):
        fs.pid += 1


def do(fs: FileSystem, step: Step) -> str | None:
    """Do a step in a repository opened for it, as a new process would."""
    if isinstance(step, Killed):
        _kill(fs, step)
        return None
    durability: Durability = getattr(step, "durability", "full")
    return perform(Repository(fs, init=isinstance(step, Init), durability=durability), step)


def build(fs: FileSystem, steps: tuple[Step, ...]) -> World:
    """Do several steps on an empty filesystem; the world after them."""
    world = World()
    for step in steps:
        world = world.after(step, do(fs, step))
    return world


def _submit(_: object, work: Callable[[Any], Any], item: Any) -> Future[Any]:
    """Stands for the threads that hash and check, so that a test does not wait for them: tensors are tiny."""
    future: Future[Any] = Future()
    try:
        future.set_result(work(item))
    except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)
    return future


_choices: dict[object, Choice] = {}


def _choose(samples: Sequence[tuple[Any, Any]], config: DeltaConfig, *, aggressive: bool = False) -> Choice:
    """Remembers what was chosen for the same bits: trying codecs takes most of a small repack's time."""
    key = *((a.dtype.str, a.tobytes(), b if b is None else b.tobytes()) for a, b in samples), config, aggressive
    if key not in _choices:
        _choices[key] = choose(samples, config, aggressive=aggressive)
    return _choices[key]


@contextmanager
def same_names() -> Iterator[None]:
    """Have coral give its files the same names each time: what it does depends on nothing but what it finds then."""
    kept, os.urandom = os.urandom, random.Random(0).randbytes
    try:
        yield
    finally:
        os.urandom = kept


@contextmanager
def limits(scenario: Scenario) -> Iterator[None]:
    """Have coral do without threads and keep its warnings to itself; in a tight scenario, fold and index early.

    What a pack's directory says is remembered by its bytes: each state is opened twice, most packs are in all states.
    """
    parse = lru_cache(maxsize=1024)(_pack.Directory)
    changes: list[tuple[Any, str, Any]] = [
        (_bases, "choose", _choose),
        (_digest.Threads, "submit", _submit),
        (logging.getLogger("coral"), "disabled", True),
        (_pack, "Directory", parse),
        (_pack_writer, "Directory", parse),
    ]
    if scenario.tight:
        changes += [(_refs, "FOLD", 3), (_refs, "_KEEP", 2), (_index, "_UNCOVERED", 2)]
        changes += [(_gc, "_MANY", 3), (_gc, "_FULL", 20_000), (_repack, "_BATCH", 1)]
    kept = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in kept:
            setattr(where, name, value)
