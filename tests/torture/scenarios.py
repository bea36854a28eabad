"""The operations under test, as plain values, and what is true of a repository once they have been acknowledged."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from coral import Repository, WeightTensor, _digest
from coral.filesystem import FileSystem
from coral.store import Durability, _index, _pack, _refs


@dataclass(frozen=True, slots=True)
class Init:
    """Create the repository."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit version `key` of the weights; `state` says whether with training state, `big` whether over 1 MiB."""

    key: int
    branch: str | None = None
    state: bool = True
    big: bool = False
    durability: Durability = "full"

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


Step = Init | Commit | Branch | Tag | Checkout


@dataclass(frozen=True, slots=True)
class World:
    """What has been acknowledged: the commits and what was put in them, and where each ref points.

    It is `soft` while the last commit was not said to be durable. (One of a batch is: `do` ends with the repository
    being closed.)
    """

    ready: bool = False
    commits: Mapping[str, Commit] = field(default_factory=dict)
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    reflogs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    head: str = "main"
    soft: bool = False

    def after(self, step: Step, result: str | None) -> World:
        """The world once `step` has been acknowledged; `result` is the id of a commit."""
        match step:
            case Init():
                return replace(self, ready=True)
            case Commit():
                assert result is not None
                commits = {**self.commits, result: step}
                soft = step.durability == "fast"
                return replace(self._moved(step.branch or self.head, result), commits=commits, soft=soft)
            case Branch(name, at):
                return self._moved(name, self.points_to(at))
            case Tag(name, ref):
                return replace(self, tags={**self.tags, name: self.points_to(ref)})
            case Checkout(branch):
                return replace(self, head=branch)

    def _moved(self, branch: str, commit: str) -> World:
        logs = {**self.reflogs, branch: (*self.reflogs.get(branch, ()), commit)}
        return replace(self, branches={**self.branches, branch: commit}, reflogs=logs)

    def points_to(self, ref: str) -> str:
        """The commit that HEAD or a branch leads to."""
        return self.branches[self.head if ref == "HEAD" else ref]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps to be tortured, on a repository in which those `before` are done and safely on disk.

    It is `tight` where refs are folded and packs indexed after a few commits instead of hundreds, and `hollow` where
    the empty folders have been lost, as some tools that copy do.
    """

    name: str
    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    tight: bool = False
    hollow: bool = False


BORN = (Init(), Commit(1), Commit(2))

SCENARIOS = (
    Scenario("init and first commits", (), (Init(), Commit(1), Commit(2), Commit(3, state=False))),
    Scenario("branch and tag", BORN, (Branch("dev"), Tag("v1"), Checkout("dev"), Commit(3))),
    Scenario("commit on a new branch", BORN, (Commit(3, branch="Exp/1"), Commit(4), Commit(5, branch="Exp/1"))),
    Scenario("same weights again", BORN, (Commit(2), Commit(1), Tag("again", "main"))),
    Scenario("without the empty folders", (Init(),), (Commit(1), Branch("dev"), Tag("v1")), hollow=True),
    Scenario("a tensor over 1 MiB", (Init(), Commit(1, big=True)), (Commit(2, big=True),)),
)

FAST = (
    Scenario("fast commits", BORN, (Commit(3, durability="fast"), Commit(4, durability="fast"))),
    Scenario("a fast commit on a new branch", BORN, (Commit(3, branch="exp", durability="fast"),)),
    Scenario("batches", BORN, (Commit(3, durability="batch"), Commit(4, branch="exp", durability="batch"))),
    Scenario(
        "full after fast", BORN, (Commit(3, durability="fast"), Commit(4), Commit(5, durability="fast"), Commit(5))
    ),
)
"""Commits that a loss of power may take back, but never make wrong; full ones among them stay."""

TIGHT = (Scenario("folding and indexing", (*BORN, Commit(3)), tuple(Commit(n) for n in range(4, 8)), tight=True),)

SINGLE = (
    Scenario("init", (), (Init(),)),
    Scenario("first commit", (Init(),), (Commit(1),)),
    Scenario("second commit", (Init(), Commit(1)), (Commit(2),)),
    Scenario("commit on a new branch", BORN, (Commit(3, branch="exp/1"),)),
    Scenario("branch", BORN, (Branch("dev", "main"),)),
    Scenario("tag", BORN, (Tag("v1"),)),
    Scenario("checkout", (*BORN, Branch("dev")), (Checkout("dev"),)),
    Scenario("big commit", (Init(), Commit(1, big=True)), (Commit(2, big=True),)),
)
"""One scenario for each operation, for faults that are tried at every single step of it."""


def sagas(seed: int, count: int) -> list[Scenario]:
    """Scenarios of five random steps each, on a repository that has seen a few already."""
    rng = random.Random(seed)
    return [_saga(f"saga {seed}.{number}", rng) for number in range(count)]


def _saga(name: str, rng: random.Random) -> Scenario:
    steps: list[Step] = [Init(), Commit(rng.randrange(1, 9))]
    branches, head, tags = {"main"}, "main", 0
    while len(steps) < 8:
        new = f"{rng.choice(('Exp', 'lr', 'a/b'))}-{len(steps)}"
        match rng.choice(("commit", "commit", "elsewhere", "branch", "tag", "checkout")):
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
            case _:
                head = rng.choice(sorted(branches))
                steps.append(Checkout(head))
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
        "norm.steps": WeightTensor(np.array(step.key, np.int64)),
        "norm.empty": WeightTensor(np.zeros((0, 3), np.float16)),
        "every.other": WeightTensor(np.full(9, step.key // 2, np.int32)),
    }
    if step.big:
        tensors["big.moving"] = WeightTensor(rng.standard_normal(270_001).astype(np.float32))
        tensors["big.frozen"] = WeightTensor(np.arange(140_001, dtype=np.float64))
    return tensors


@lru_cache(maxsize=256)
def state(step: Commit) -> dict[str, object] | None:
    """Training state as an optimizer, a scheduler and a random generator have it, or None."""
    if not step.state:
        return None
    rng = np.random.default_rng(1000 + step.key)
    slots = {i: {"step": step.key, "exp_avg": rng.standard_normal(6).astype(np.float32), "max": None} for i in range(2)}
    group = {"lr": 0.1 / step.key, "betas": (0.9, 0.999), "params": [0, 1], "weight_decay": -0.0}
    return {"optimizer": {"state": slots, "param_groups": [group]}, "epoch": step.key, "rng": rng.bytes(40)}


def perform(repo: Repository, step: Step) -> str | None:
    """Do a step; a commit's id."""
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
    return None


def do(fs: FileSystem, step: Step) -> str | None:
    """Do a step in a repository opened for it, as a new process would."""
    durability: Durability = step.durability if isinstance(step, Commit) else "full"
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


@contextmanager
def limits(scenario: Scenario) -> Iterator[None]:
    """Have coral do without threads and keep its warnings to itself; in a tight scenario, fold and index early.

    What a pack's directory says is remembered by its bytes: each state is opened twice, most packs are in all states.
    """
    parse = lru_cache(maxsize=1024)(_pack.Directory)
    changes: list[tuple[Any, str, Any]] = [
        (_digest.Threads, "submit", _submit),
        (logging.getLogger("coral"), "disabled", True),
        (_pack, "Directory", parse),
    ]
    if scenario.tight:
        changes += [(_refs, "FOLD", 3), (_refs, "_KEEP", 2), (_index, "_UNCOVERED", 2)]
    kept = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in kept:
            setattr(where, name, value)
