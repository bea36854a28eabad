"""repack: store the past as differences.

Tensors of commits behind the tips of branches are written once more, encoded, into new packs. Each is read back,
decoded and compared with its SHA-256 before its pack gets its name; only then does a collection take the copies that
they stand for. It may be killed at any time, and goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from coral import _json
from coral._digest import pool
from coral.delta import BLOCK_ELEMENTS, Choice, DeltaConfig, carrier
from coral.errors import Conflict, CorruptObject
from coral.filesystem import FileSystem, ReadFile
from coral.maintenance._bases import Bases, Encoding
from coral.maintenance._gc import Collected, Collector
from coral.maintenance._inventory import Copy
from coral.maintenance._planning import Job, plan
from coral.objects import Commit, TensorEntry
from coral.store import Copies, Operation, Store, Stored, intent, intents
from coral.store._chain import buffer, encoded, verify_tensors
from coral.store._files import put_if_absent, seal
from coral.store._pack import RAW, Directory, PackWriter

__all__ = ["Progress", "Repacked", "repack"]

_log = logging.getLogger("coral")

Progress = Callable[[int, int], None]
"""Called with the bytes of tensors that are done, and with those there are to do."""

_left: set[tuple[str, str]] = set()
"""(root, name) of leases that this process has given up, but could not remove."""

_BATCH = 32 << 20  # bytes of tensors in a pack, unless one commit has more


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
    store, done = collector.store, Repacked()
    with collector.lock, _lease(store.fs), intent(store.fs, "repack", []) as operation:
        marks, settled = collector.survey()
        again = aggressive and config.codec == "auto"
        jobs = plan(marks, collector.marker, settled, config, patient=patient, again=again)
        work = _Work(collector, config, settled, operation, aggressive=aggressive)
        total = sum(settled[id].nbytes for job in jobs for id in job.tensors)
        finished = 0
        for batch in _batches(jobs, settled):
            with suppress(_Stale):
                work.run(batch, done)
            finished += sum(settled[id].nbytes for job in batch for id in job.tensors)
            if progress is not None:
                progress(finished, total)
    done.freed = collector.collect()
    return done


class _Stale(Exception):
    """What was planned is no longer so: a commit was pruned meanwhile."""


class _Unreadable(Exception):
    """A tensor, or what it was to be a difference from, cannot be read."""

    def __init__(self, id: str, error: Exception) -> None:
        super().__init__(str(error))
        self.id = id


def _batches(jobs: list[Job], settled: dict[str, Copy]) -> Iterator[list[Job]]:
    batch: list[Job] = []
    size = 0
    for job in jobs:
        batch.append(job)
        size += sum(settled[id].nbytes for id in job.tensors)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Work:
    """Encodes commits, one pack at a time."""

    def __init__(
        self,
        collector: Collector,
        config: DeltaConfig,
        settled: dict[str, Copy],
        operation: Operation,
        *,
        aggressive: bool,
    ) -> None:
        self._store: Store = collector.store
        self._marker = collector.marker
        self._config = config
        self._settled = settled
        self._operation = operation
        self._aggressive = aggressive
        self._unreadable: set[str] = set()
        self._known: dict[tuple[str, bool], dict[str, Choice]] = {}  # what was chosen for the same keyframe

    def run(self, jobs: list[Job], done: Repacked) -> None:
        """Write one pack with what these commits have, encoded; nothing if nothing becomes shorter.

        What cannot be read is left as it is, for fsck to name.
        """
        while True:
            try:
                return self._run(jobs, done)
            except _Unreadable as problem:
                _log.warning("%s: tensor %s is not repacked: %s", self._store.fs.root, problem.id[:12], problem)
                self._unreadable.add(problem.id)

    def _run(self, jobs: list[Job], done: Repacked) -> None:
        self._operation.needs(job.key.id for job in jobs if job.key)
        with self._store.copies() as copies:

            def fill(writer: PackWriter) -> list[tuple[Job, int, int]]:
                return list(self._encode(jobs, copies, writer))

            def check(directory: Directory, file: ReadFile) -> None:
                chains = [copies.chain(Stored(directory, file, entry)) for entry in directory.entries()]
                for chain, problem in verify_tensors(chains):
                    if problem is not None:
                        raise _Unreadable(chain.entry.id, problem) from problem
                if not len(directory):
                    raise _Stale

            written, _ = self._store.write_pack(fill, self._operation, durable=True, check=check)
        done.commits += len({job.commit.id for job, _, _ in written})
        done.tensors += len(written)
        done.raw_bytes += sum(nbytes for _, nbytes, _ in written)
        done.stored_bytes += sum(size for _, _, size in written)

    def _encode(self, jobs: list[Job], copies: Copies, writer: PackWriter) -> Iterator[tuple[Job, int, int]]:
        """Encode tensors side by side, and write them in turn."""

        def work(unit: tuple[Encoding, int, int]) -> list[bytes]:
            encoding, start, end = unit
            try:
                return _encode_unit(encoding, start, end)
            except (CorruptObject, EOFError) as error:
                raise _Unreadable(encoding.source.entry.id, error) from error

        waiting: list[tuple[Job, Encoding, int]] = []

        def units() -> Iterator[tuple[Encoding, int, int]]:
            for job, encoding in self._encodings(jobs, copies):
                parts = list(encoding.source.units())
                waiting.append((job, encoding, len(parts)))
                yield from ((encoding, start, end) for start, end in parts)

        results = pool().map(work, units())
        for first in results:
            job, encoding, parts = waiting.pop(0)

            def blocks(first: list[bytes] = first, parts: int = parts) -> Iterator[bytes]:
                yield from first
                for _ in range(parts - 1):
                    yield from next(results)

            codec, base = encoding.choice.codec, encoding.base
            entry = encoding.source.entry._replace(
                codec=codec.code, params=codec.params, base=base.entry.id if base else None
            )
            stored = writer.add_stored(entry, encoded(blocks()))
            yield job, stored.nbytes, stored.size

    def _encodings(self, jobs: list[Job], copies: Copies) -> Iterator[tuple[Job, Encoding]]:
        seen: set[str] = set()
        for job in jobs:
            own = set(job.tensors) - seen - self._unreadable
            seen |= own
            weights, state = self._tree(job.commit)
            of_key = self._tree(job.key) if job.key else ({}, {})
            for mine, theirs in zip((weights, state), of_key, strict=True):
                candidates = theirs if self._config.max_depth > 1 or not job.keyframe else {}
                key = job.key.id if job.key and not job.keyframe else job.commit.id
                known = self._known.setdefault((key, theirs is of_key[1]), {})
                bases = Bases(copies, self._config, candidates, job.keyframe, self._aggressive, known)
                for name, entry in mine.items():
                    if entry.id in own and entry.nbytes >= self._config.min_size and entry.nbytes:
                        own.discard(entry.id)
                        try:
                            encoding = bases.encoding(name, entry.id)
                        except (CorruptObject, EOFError) as error:
                            raise _Unreadable(entry.id, error) from error
                        if self._pays(encoding):
                            yield job, encoding

    def _tree(self, commit: Commit) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
        try:
            weights, state = self._marker.tree(commit)
        except CorruptObject as error:
            raise _Stale from error
        return dict(weights), dict(state)

    def _pays(self, encoding: Encoding) -> bool:
        """Whether it becomes at least 2 % shorter than it is stored."""
        entry = encoding.source.entry
        if encoding.choice.codec.code == RAW:
            return False
        now = self._settled[entry.id].size
        return encoding.choice.ratio * entry.nbytes < 0.98 * now


def _encode_unit(encoding: Encoding, start: int, end: int) -> list[bytes]:
    source, base, codec = encoding.source, encoding.base, encoding.choice.codec
    assert source.entry.dtype is not None
    bits = carrier(source.entry.dtype)
    data = buffer("source", end - start)  # what is wrong with it shows when it is verified
    source.read(start, data, checked=0)
    current = data.view(bits)
    other = None
    if base is not None:
        data = buffer("base", end - start)
        base.read(start, data, checked=0)
        other = data.view(bits)
    found = []
    for at in range(0, current.size, BLOCK_ELEMENTS):
        part = slice(at, at + BLOCK_ELEMENTS)
        found.append(codec.encode(current[part], None if other is None else other[part]))
    return found


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
