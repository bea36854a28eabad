"""T5: some bytes of a file cannot be read, whoever tries; the filesystem says EIO.

Reading gives what was stored, or says that it could not be read: that is no damage yet. The next commit is whole. fsck
names the file, a repair leaves it alone, and once the bytes can be read again all is as it was.
"""

from __future__ import annotations

import errno
import os
import random
import time
from typing import Any

from bit_rot import Rot
from memory import MemoryFileSystem
from oracle import Violation, _differs
from power_loss import Tally
from scenarios import Commit, Scenario, limits, weights

from coral import CoralError, Repository
from coral.errors import CorruptObject, StorageError


class _BadDisk:
    """A FileSystem that cannot read one range of one file, as long as it has that name or another."""

    def __init__(self, inner: MemoryFileSystem, path: str, bad: range) -> None:
        self._inner = inner
        self._name = os.path.basename(path)
        self._bad = bad
        self.root = inner.root

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, path: str) -> Any:
        file = self._inner.open(path)
        return _BadFile(file, path, self._bad) if os.path.basename(path) == self._name else file

    def read(self, path: str, limit: int) -> bytes:
        if os.path.basename(path) == self._name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return self._inner.read(path, limit)


class _BadFile:
    def __init__(self, inner: Any, path: str, bad: range) -> None:
        self._inner, self._path, self._bad = inner, path, bad
        self.size = inner.size

    def _look(self, offset: int, size: int) -> None:
        if size and offset < self._bad.stop and self._bad.start < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._path)

    def read_into(self, buffer: Any, offset: int) -> None:
        self._look(offset, buffer.nbytes)
        self._inner.read_into(buffer, offset)

    def region(self, offset: int, size: int) -> Any:
        self._look(offset, size)  # as fault_in would
        return self._inner.region(offset, size)

    def view(self, offset: int, size: int) -> Any:
        self._look(offset, size)
        return self._inner.view(offset, size)

    def close(self) -> None:
        self._inner.close()


def run(*, sector: int = 64, thin: int = 1, seed: int = 0, stop: int = 5) -> Tally:
    """Each sector of so many bytes of each file, or one in `thin` of them; stop after so many violations."""
    began, tally = time.perf_counter(), Tally()
    with limits(Scenario("", (), (), tight=True)):
        rot = Rot()
        kept, rng = rot.fs, random.Random(seed)
        sectors = [(path, at) for path in kept.paths() for at in range(0, len(kept.data(path)), sector)]
        for number, (path, at) in enumerate(sectors):
            if (number + seed) % thin:
                continue
            tally.cases += 1
            try:
                tally.judged += _try(rot, kept.copy(), path, range(at, at + sector), rng)
            except Violation as violation:
                tally.violations.append(f"{path}, byte {at}: {violation}")
                if len(tally.violations) >= stop:
                    break
            finally:
                rot.fs = kept
    tally.seconds = time.perf_counter() - began
    return tally


def _try(rot: Rot, inner: MemoryFileSystem, path: str, sector: range, rng: random.Random) -> bool:
    """Whether something could not be read."""
    bad: Any = _BadDisk(inner, path, sector)
    rot.fs = bad
    try:
        Repository(bad)
    except StorageError as error:
        if path == "format" and error.errno == errno.EIO:
            return True
        raise Violation(f"opening it: {error}") from error
    _commit(_BadDisk(inner.copy(), path, sector), path)
    _keep_up(rot, inner.copy(), path, sector, rng)
    rot.fs = bad
    errors = 0
    for piece in rng.sample(range(len(rot.pieces)), 12):
        errors += rot.read([piece], refusal=errno.EIO)
    report = Repository(bad).fsck()
    if path not in {problem.path for problem in report.problems}:
        raise Violation(f"fsck does not name it: {report}")
    try:
        Repository(bad).fsck(repair=True)
    except CoralError as error:
        raise Violation(f"repairing it: {error}") from error
    rot.read(rng.sample(range(len(rot.pieces)), 12), refusal=errno.EIO)
    rot.fs = inner
    again = Repository(inner).fsck()
    if not again.ok or rot.read(range(len(rot.pieces))):
        raise Violation(f"it can be read again, and yet: {again}")
    return errors > 0


def _commit(bad: Any, path: str) -> None:
    """A run that goes on there loses no save, unless it is the branch itself that cannot be read."""
    want = weights(Commit(7))
    try:
        id = Repository(bad).commit(want, "on top")
        got = Repository(bad).load(id)
        if difference := next(
            (_differs(got[name], want[name]) for name in want if _differs(got[name], want[name])), ""
        ):
            raise Violation(f"SILENTLY WRONG: {difference}")
    except StorageError as error:
        if error.errno != errno.EIO or not path.startswith(("refs/heads/main/", "refs/HEAD/")):
            raise Violation(f"a commit on top: {error}") from error


def _keep_up(rot: Rot, inner: MemoryFileSystem, path: str, sector: range, rng: random.Random) -> None:
    """Upkeep may be refused there, and lets go of nothing that can be read again later."""
    bad: Any = _BadDisk(inner, path, sector)
    for upkeep in (Repository.repack, Repository.gc):
        try:
            upkeep(Repository(bad))
        except StorageError as error:
            if error.errno != errno.EIO:
                raise Violation(f"{upkeep.__name__}: {error}") from error
        except CorruptObject:
            pass
    rot.fs = inner
    if rot.read(rng.sample(range(len(rot.pieces)), 12)) or not Repository(inner).fsck().ok:
        raise Violation("it can be read again, and upkeep has done damage")
