"""Repairs that do not end: the process dies before, within and after every operation of one, or the power goes.

Whatever was whole before stays whole, no damaged file is lost, and the repair, done again, mends everything.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from crash import MODELS, Journal
from memory import MemoryFileSystem
from power_loss import Tally
from process_death import Died, _die, _Grave, dying, moments
from seam import Call, Seam

from coral import Repository
from coral.errors import CoralError
from coral.maintenance import repair
from coral.remotes import Remote, RemoteFile
from coral.remotes._healing import RemoteSource
from coral.remotes._records import Memory
from coral.remotes._side import Side
from coral.store import Store

Damage = Callable[[MemoryFileSystem], None]


class _Copy(Remote):
    """A remote that is a copy of a filesystem in memory, and is only read."""

    url = "test://copy"

    def __init__(self, fs: MemoryFileSystem) -> None:
        self._files = {path: fs.data(path) for path in fs.paths()}

    def put(self, name: str, data: memoryview) -> bool:
        raise AssertionError(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(name)
        return self._files[name][offset : offset + size]

    def list(self, prefix: str) -> Iterable[RemoteFile]:
        whole = not prefix or prefix.endswith("/")
        for name, data in self._files.items():
            if name.startswith(prefix) if whole else name == prefix:
                yield RemoteFile(name, len(data), 0.0)

    def delete(self, name: str) -> None:
        raise AssertionError(name)


def weights(number: int) -> dict[str, np.ndarray]:
    """What the commit of a number holds."""
    return {"same": np.arange(300.0), "own": np.full(50, number, np.float32)}


def build() -> tuple[MemoryFileSystem, list[str]]:
    """A repository of four commits, on two branches, and their ids."""
    fs = MemoryFileSystem()
    repo = Repository(fs, init=True)
    ids = [repo.commit(weights(number), str(number), state={"m": np.full(30, number)}) for number in range(3)]
    repo.branch("x", "HEAD~1")
    ids.append(repo.commit(weights(3), "3", "x"))
    repo.tag("t")
    repo.annotate("HEAD~1", metrics={"late": 1.0})
    return fs, ids


def _flip(fs: MemoryFileSystem, path: str, at: int) -> None:
    data = bytearray(fs.data(path))
    data[at] ^= 4
    fs.damage(path, bytes(data))


def _packs(fs: MemoryFileSystem) -> list[str]:
    return [path for path in fs.paths() if path.startswith("packs/")]


def _tensor(fs: MemoryFileSystem) -> None:
    part = weights(1)["own"].tobytes()
    path = next(path for path in _packs(fs) if part in fs.data(path))
    _flip(fs, path, fs.data(path).index(part) + 5)


def _exchanged(fs: MemoryFileSystem) -> None:
    a, b, *_ = _packs(fs)
    one, other = fs.data(a), fs.data(b)
    fs.damage(a, other)
    fs.damage(b, one)


def _everything(fs: MemoryFileSystem) -> None:
    for path in fs.paths():
        if not path.startswith(("format", "remotes")):
            _flip(fs, path, len(fs.data(path)) // 2)


DAMAGES: dict[str, Damage] = {
    "a byte of a tensor": _tensor,
    "the header of a pack": lambda fs: _flip(fs, _packs(fs)[0], 4),
    "two packs exchanged": _exchanged,
    "a pack cut in two": lambda fs: fs.damage(_packs(fs)[1], fs.data(_packs(fs)[1])[:700]),
    "a torn branch": lambda fs: fs.damage("refs/heads/main/0000000003", b"{"),
    "an older entry": lambda fs: _flip(fs, "refs/heads/main/0000000002", 9),
    "a torn note": lambda fs: next(fs.damage(path, b"x") for path in fs.paths() if path.startswith("notes/")),
    "a byte of every file": _everything,
}


class _Case:
    """One damage, what was whole before, and what has to be so after."""

    def __init__(self, name: str) -> None:
        whole, self.ids = build()
        self.remote = _Copy(whole)
        self.refs = self._refs(whole)
        self.damaged = whole.copy()
        DAMAGES[name](self.damaged)
        self.loadable = {id for id in self.ids if self._loads(self.damaged, id)}
        self.contents = self._contents(self.damaged)

    def repair(self, fs: Any) -> bool:
        store = Store(fs)
        return repair(store, [RemoteSource(store, Side(self.remote, fs, Memory(fs, None)))]).ok

    def _loads(self, fs: MemoryFileSystem, id: str) -> bool:
        try:
            found = {name: tensor.data.tobytes() for name, tensor in Repository(fs).load(id).items()}
        except CoralError:
            return False
        if found != {name: array.tobytes() for name, array in weights(self.ids.index(id)).items()}:
            raise AssertionError(f"SILENTLY WRONG: {id}")
        return True

    @staticmethod
    def _refs(fs: MemoryFileSystem) -> tuple[object, ...]:
        repo = Repository(fs)
        return dict(repo.branches()), dict(repo.tags()), repo.head

    @staticmethod
    def _contents(fs: MemoryFileSystem) -> set[bytes]:
        return {fs.data(path) for path in fs.paths() if not path.startswith(("tmp/", "intents/"))}

    def judge(self, fs: MemoryFileSystem) -> str:
        """What is wrong with a filesystem that an interrupted repair has left; "" if nothing is."""
        if lost := self.contents - self._contents(fs):
            return f"{len(lost)} files are gone that were there"
        if lost := [id for id in self.loadable if not self._loads(fs, id)]:
            return f"commits {lost} loaded before"
        fs.pid += 1
        if not self.repair(fs):
            return f"the repair, done again, leaves: {Repository(fs).fsck()}"
        if not all(self._loads(fs, id) for id in self.ids):
            return "a commit does not load after the repair"
        if (refs := self._refs(fs)) != self.refs:
            return f"the refs are {refs}, not {self.refs}"
        if self.contents - self._contents(fs):
            return "the repair, done again, deleted a file"
        return ""


def run(name: str, *, cap: int, seed: int = 0, thin: int = 1, stop: int = 5) -> Tally:
    """Interrupt the repair of a damage at each moment, or one in `thin`, in up to `cap` states of a disk each.

    Stop after so many violations.
    """
    began, tally, case = time.perf_counter(), Tally(), _Case(name)
    kinds: list[str] = []

    def count(call: Call) -> Any:
        kinds.append(call.kind)
        return call.do()

    whole = case.damaged.copy()
    if not case.repair(Seam(whole, count)):
        tally.violations.append(f"{name}: it cannot be mended: {Repository(whole).fsck()}")
    for at, moment in moments(kinds, every=False)[seed % thin :: thin]:
        fs = case.damaged.copy()
        with suppress(Died):
            case.repair(_Grave(dying(fs, at, moment, _die)).seam)
        tally.cases += 1
        if why := case.judge(fs):
            tally.violations.append(f"{name}: died {moment} op {at} ({kinds[at]}): {why}")
    for model in MODELS:
        journal = Journal(case.damaged.tree(), model)
        for number, op in enumerate(whole.trace):
            journal.apply(op)
            if (number + seed) % thin:
                continue
            for plan in journal.plans(random.Random(f"{seed} {name} {number}"), cap):
                tally.cases += 1
                fs = MemoryFileSystem.of(journal.state(plan), clock=whole.clock + 1, boot="boot-2")
                if why := case.judge(fs):
                    tally.violations.append(f"{name}, {model}, after op {number} ({op.kind} {op.name}), {plan}: {why}")
                    break
            if len(tally.violations) >= stop:
                break
    tally.seconds = time.perf_counter() - began
    return tally
