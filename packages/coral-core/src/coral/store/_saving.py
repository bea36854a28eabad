"""Saving tensors whole: only those that the store lacks, and hashed while the disk takes them in.

1. what the parent commit has under the same name is compared, block by block: a tensor without a change is reused
2. what has changed is written at once, before it is hashed; its sync begins in the background
3. what is new to the branch, or looks like another one, is hashed first: the store may have it under another name
4. what was written is hashed, on all cores; blocks equal to the parent's take over its sums
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coral._digest import BLOCK, Bytes, fold, pool, sha256, tensor_id
from coral._local_files import fault_in
from coral.errors import CorruptObject
from coral.objects import TensorEntry
from coral.store._chain import Chain, Stored
from coral.store._pack import MAPPED
from coral.store._pack_writer import PackWriter
from coral.weights import WeightTensor

_JOB = 4 * BLOCK  # bytes that one thread works on at a time
_HEAD = 4096  # bytes compared first: what has changed mostly shows there
_scratch = threading.local()

Unit = tuple[str, int, int]
"""A run of blocks of a tensor: its name, the first byte, the one after the last."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a tensor: its entry for the tree, and its sums in case it has to be written again."""

    entry: TensorEntry
    digests: bytes
    sums: Sequence[int]
    reused: Chain | None = None  # the copy that stands for it, with its bases, if it was not written

    def write(self, writer: PackWriter, data: Bytes) -> None:
        """Append the tensor to a pack, unless it is in it."""
        entry = self.entry
        if entry.id not in writer:
            writer.add_tensor(entry.id, entry.dtype, entry.shape, data, self.digests, self.sums)


def save_tensors(
    tensors: Mapping[str, WeightTensor],
    writer: PackWriter,
    earlier: Mapping[str, Stored],
    find: Callable[[str], Chain | None] | None,
) -> dict[str, Saved]:
    """Write those `tensors` that are neither equal to their `earlier` copy nor to one that `find` finds by its id.

    Without `find` there is nothing in the store that they could be equal to.
    """
    same = _compare({name: tensor for name, tensor in tensors.items() if name in earlier}, earlier)
    other = {name: tensor for name, tensor in tensors.items() if not (name in same and all(same[name]))}
    alike = _alike(other)
    unknown = [name for name in other if name in alike or (name not in earlier and find)]
    asked = set(unknown)
    changed = [name for name in other if name not in asked]
    placed = {name: writer.place(tensors[name].bytes()) for name in changed}
    saved = {name: _known(stored) for name, stored in earlier.items() if name in same and all(same[name])}
    for name, done in _hash(tensors, unknown, same, earlier):
        copy = find(done.entry.id) if find and done.entry.id not in writer else None
        if copy is not None and _equal(tensors[name].bytes(), copy):  # a damaged copy is not built upon
            saved[name] = Saved(done.entry, done.digests, done.sums, copy)
        else:
            saved[name] = done
            done.write(writer, tensors[name].bytes())
    writer.begin_sync()
    for name, done in _hash(tensors, changed, same, earlier):
        saved[name], entry = done, done.entry
        if entry.id not in writer:
            writer.enter_tensor(entry.id, entry.dtype, entry.shape, placed[name], entry.nbytes, done.digests, done.sums)
    return {name: saved[name] for name in tensors}


def _known(stored: Stored) -> Saved:
    entry = stored.entry
    assert entry.dtype is not None
    tree_entry = TensorEntry(entry.dtype, entry.shape, entry.nbytes, entry.id)
    return Saved(tree_entry, entry.digests, entry.sums, Chain([stored]))


def _alike(tensors: Mapping[str, WeightTensor]) -> set[str]:
    """Names of tensors that may be equal to another of these: tied ones, or zeros. They are hashed before writing."""
    groups: dict[tuple[str, tuple[int, ...], int], list[str]] = {}
    for name, tensor in tensors.items():
        head = zlib.crc32(tensor.bytes()[:_HEAD]) if tensor.contiguous else 0
        groups.setdefault((tensor.dtype, tensor.shape, head), []).append(name)
    return {name for names in groups.values() if len(names) > 1 for name in names}


def _jobs(tensors: Iterable[tuple[str, WeightTensor]]) -> Iterator[list[Unit]]:
    """The blocks of tensors in jobs of about one size; a tensor that has to be copied to be read is not split."""
    job: list[Unit] = []
    size = 0
    for name, tensor in tensors:
        step = _JOB if tensor.contiguous else max(tensor.nbytes, 1)
        for start in range(0, tensor.nbytes, step):
            end = min(start + step, tensor.nbytes)
            job.append((name, start, end))
            size += end - start
            if size >= _JOB:
                yield job
                job, size = [], 0
    if job:
        yield job


def _compare(tensors: Mapping[str, WeightTensor], earlier: Mapping[str, Stored]) -> dict[str, list[bool]]:
    """For each tensor, which of its blocks are those of its earlier copy."""

    def work(job: list[Unit]) -> list[tuple[str, list[bool]]]:
        found = []
        for name, start, end in job:
            data = tensors[name].bytes()
            blocks = (_same(data[at : min(at + BLOCK, end)], at, earlier[name]) for at in range(start, end, BLOCK))
            found.append((name, list(blocks)))
        return found

    same: dict[str, list[bool]] = {name: [] for name in tensors}
    for found in pool().map(work, _jobs(tensors.items())):
        for name, blocks in found:
            same[name] += blocks
    return same


def _hash(
    tensors: Mapping[str, WeightTensor],
    names: Sequence[str],
    same: Mapping[str, list[bool]],
    earlier: Mapping[str, Stored],
) -> Iterator[tuple[str, Saved]]:
    """Each of the named tensors with its id and sums; blocks that are the `same` as earlier are not read again."""

    def work(job: list[Unit]) -> list[tuple[str, list[bytes], list[int]]]:
        found = []
        for name, start, end in job:
            data = tensors[name].bytes()
            digests, sums = [], []
            for at in range(start, end, BLOCK):
                number = at // BLOCK
                if name in same and same[name][number]:
                    entry = earlier[name].entry
                    digests.append(entry.digests[32 * number : 32 * number + 32])
                    sums.append(entry.sums[number])
                else:
                    block = data[at : min(at + BLOCK, end)]
                    digests.append(sha256(block))
                    sums.append(fold(block))
            found.append((name, digests, sums))
        return found

    digests: dict[str, list[bytes]] = {name: [] for name in names}
    sums: dict[str, list[int]] = {name: [] for name in names}
    for found in pool().map(work, _jobs((name, tensors[name]) for name in names)):
        for name, some_digests, some_sums in found:
            digests[name] += some_digests
            sums[name] += some_sums
    for name in names:
        tensor, joined = tensors[name], b"".join(digests[name])
        entry = TensorEntry(tensor.dtype, tensor.shape, tensor.nbytes, tensor_id(tensor.dtype, tensor.shape, joined))
        yield name, Saved(entry, joined, sums[name])


def _same(data: Bytes, at: int, copy: Stored) -> bool:
    """Whether a block's bytes, from `at` on, are those of the copy. Mapped block by block: little is resident."""
    offset = copy.entry.offset + at
    parts = slice(None, _HEAD), slice(_HEAD, None)
    try:
        mapped = copy.file.region(offset, data.size) if data.size >= MAPPED else None
        if mapped is not None:
            return all(_equal_bytes(data[part], fault_in(mapped[part])) for part in parts)
        other = _scratch_buffer()[: data.size]
        copy.file.read_into(other, offset)
    except (OSError, EOFError):
        return False
    return all(_equal_bytes(data[part], other[part]) for part in parts)


def _scratch_buffer() -> Bytes:
    buffer: Bytes | None = getattr(_scratch, "buffer", None)
    if buffer is None:
        buffer = _scratch.buffer = np.empty(BLOCK, np.uint8)
    return buffer


def _equal_bytes(a: Bytes, b: Bytes) -> bool:
    whole = a.size // 8 * 8
    return bool(np.array_equal(a[:whole].view("u8"), b[:whole].view("u8")) and np.array_equal(a[whole:], b[whole:]))


def _equal(data: Bytes, copy: Chain) -> bool:
    if data.size != copy.entry.nbytes:
        return False
    if copy.whole:
        stored = copy.links[0]
        return all(pool().map(lambda at: _same(data[at : at + BLOCK], at, stored), range(0, data.size, BLOCK)))

    def work(unit: tuple[int, int]) -> bool:
        other = np.empty(unit[1] - unit[0], np.uint8)
        try:
            copy.read(unit[0], other)
        except (CorruptObject, OSError, EOFError):
            return False
        return _equal_bytes(data[unit[0] : unit[1]], other)

    return all(pool().map(work, copy.units()))
