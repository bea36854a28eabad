"""repack: store the past as differences.

Tensors of commits behind the tips of branches are written once more, encoded, into new packs. Each is read back,
decoded and compared with its SHA-256 before its pack gets its name; only then does a collection take the copies that
they stand for. It may be killed at any time, and goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from coral import _json
from coral.delta import DeltaConfig
from coral.errors import Conflict
from coral.filesystem import FileSystem
from coral.maintenance._crew import Encode, encoders
from coral.maintenance._encoding import Task
from coral.maintenance._gc import Collected, Collector
from coral.maintenance._inventory import Copy
from coral.maintenance._planning import Job, plan, spare
from coral.store import intents
from coral.store._files import put_if_absent, seal

__all__ = ["Progress", "Repacked", "repack"]

_log = logging.getLogger("coral")

Progress = Callable[[int, int], None]
"""Called with the bytes of tensors that are done, and with those there are to do."""

_left: set[tuple[str, str]] = set()
"""(root, name) of leases that this process has given up, but could not remove."""

_BATCH = 4 << 20  # bytes of tensors in a pack, unless one commit has more
_ENOUGH = 1 << 30  # bytes of tensors after which the copies that are stood for are freed


@dataclass(slots=True)
class Repacked:
    """What a repack did. Sizes in bytes."""

    commits: int = 0
    tensors: int = 0
    raw_bytes: int = 0  # of these tensors, as they are in memory
    stored_bytes: int = 0  # ... as they are stored now
    freed: Collected | None = None

    def __str__(self) -> str:
        share = f", {self.stored_bytes / self.raw_bytes:.3f} of their size" if self.raw_bytes else ""
        return f"{self.tensors} tensors of {self.commits} commits encoded{share}; {self.freed or 'nothing freed'}"


def repack(
    collector: Collector,
    config: DeltaConfig,
    *,
    aggressive: bool = False,
    patient: bool = False,
    progress: Progress | None = None,
) -> Repacked:
    """Encode what lies behind the tips, and free the copies that this stands for.

    `aggressive` takes the codecs that are slow to read, for what is encoded already, too. `patient` leaves whole what
    is likely to find a nearer keyframe. Raises Conflict while another repack is at work.
    """
    store = collector.store
    try:
        with (
            collector.lock,
            _lease(store.fs),
            encoders(store, config, aggressive=aggressive) as encode,
        ):
            work = _Work(collector, encode, patient, progress)
            marks, settled = collector.survey()
            again = aggressive and config.codec == "auto"
            jobs = plan(marks, collector.marker, settled, config, patient=patient, again=again)
            work.do(jobs, settled)
            if any(not job.keyframe for job in jobs):
                marks, settled = collector.survey()
                work.do(spare(jobs, marks, collector.marker, settled), settled)
        work.collect()
        return work.done
    finally:
        collector.verified.clear()  # what has been read back may rot


@dataclass(slots=True)
class _Work:
    """What a repack does, and what it has done."""

    collector: Collector
    encode: Encode
    patient: bool
    progress: Progress | None
    done: Repacked = field(default_factory=Repacked)
    total: int = 0
    finished: int = 0
    waiting: int = 0  # bytes of tensors since the last collection

    def do(self, jobs: list[Job], settled: Mapping[str, Copy]) -> None:
        """Encode what there is to do, and free copies as it goes on: never are all there beside what stands for them"""
        batches, done = list(_batches(jobs, settled)), self.done
        nbytes = sum(nbytes for _, nbytes in batches)
        self.total += nbytes
        parts = self.encode([tasks for tasks, _ in batches], nbytes)
        for (_, nbytes), part in zip(batches, parts, strict=True):
            self.collector.verified.add(part.pack)
            done.commits += part.commits
            done.tensors += part.tensors
            done.raw_bytes += part.raw_bytes
            done.stored_bytes += part.stored_bytes
            self.finished += nbytes
            self.waiting += nbytes
            if self.patient or self.waiting >= _ENOUGH:
                self.collect()
            if self.progress is not None:
                self.progress(self.finished, self.total)

    def collect(self) -> None:
        """Free what is encoded now."""
        found, before = self.collector.collect(), self.done.freed or Collected()
        self.collector.verified.clear()
        self.done.freed = Collected(
            packs_removed=before.packs_removed + found.packs_removed,
            packs_written=before.packs_written + found.packs_written,
            bytes_freed=before.bytes_freed + found.bytes_freed,
            packs_restored=before.packs_restored + found.packs_restored,
        )
        self.waiting = 0


def _batches(jobs: list[Job], settled: Mapping[str, Copy]) -> Iterator[tuple[list[Task], int]]:
    """What is encoded into one pack, and how many bytes of tensors that is."""
    batch: list[Task] = []
    size = 0
    for job in jobs:
        sizes = {id: settled[id].size for id in job.tensors}
        batch.append(Task(job.commit.id, job.keyframe, job.key.id if job.key else None, sizes))
        size += sum(settled[id].nbytes for id in job.tensors)
        if size >= _BATCH:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


@contextmanager
def _lease(fs: FileSystem) -> Iterator[None]:
    """Be the only one to repack while the block runs; Conflict where another process is at it.

    That saves work; nothing depends on it. A lease of a process that is gone is followed by one of the next number.
    """
    leases = [name for name in fs.list("intents") if name.startswith("repack-")]
    for found in intents(fs):  # a lease that is torn is of before a loss of power
        if found.alive and found.name in leases and (fs.root, found.name) not in _left:
            raise Conflict("another process is repacking this repository: try again when it is done")
    number = max((int(name[7:]) for name in leases if name[7:].isdecimal()), default=0) + 1
    lease = f"repack-{number:010d}"
    content = {**fs.origin()._asdict(), "kind": "lease", "time": fs.now(), "needs": []}
    _left.add((fs.root, lease))  # unless all goes well
    if not put_if_absent(fs, f"intents/{lease}", seal(_json.dumps(content)), durable=False):
        _left.discard((fs.root, lease))
        raise Conflict("another process is repacking this repository: try again when it is done")
    _left.discard((fs.root, lease))
    try:
        for name in leases:
            with suppress(OSError):
                fs.unlink(f"intents/{name}")
                _left.discard((fs.root, name))
        yield
    finally:
        try:
            fs.unlink(f"intents/{lease}")
        except OSError:
            _left.add((fs.root, lease))
