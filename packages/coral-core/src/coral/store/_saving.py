"""Saving tensors whole: only those that the store lacks, hashed by all cores while earlier ones are written.

A tensor that the parent commit has under the same name is compared with it block by block. Equal blocks take over the
parent's sums, so only what changed is hashed, and a tensor without a change is not stored again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from coral._digest import BLOCK, Bytes, fold, pool, sha256, tensor_id
from coral.objects import TensorEntry
from coral.store._pack import MAPPED, PackWriter
from coral.store._store import Stored
from coral.weights import WeightTensor

_AHEAD = 32 << 20  # bytes that are being hashed while earlier ones are written
_HEAD = 4096  # bytes compared first: what has changed mostly shows there
_scratch = threading.local()

BlockSums = tuple[bytes, int, bool]
"""SHA-256, folded sum, and whether the block is the same as in the copy it was compared with."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a tensor: its entry for the tree, and its sums in case it has to be written again."""

    entry: TensorEntry
    digests: bytes
    sums: Sequence[int]
    reused: Stored | None  # the copy that stands for it, if it was not written

    def write(self, writer: PackWriter, data: Bytes) -> None:
        """Append the tensor to a pack, unless it is in it."""
        if self.entry.id not in writer:
            writer.add_tensor(self.entry.id, self.entry.dtype, self.entry.shape, data, self.digests, self.sums)


def save_tensors(
    tensors: Mapping[str, WeightTensor],
    writer: PackWriter,
    earlier: Mapping[str, Stored],
    find: Callable[[str], Stored | None],
) -> dict[str, Saved]:
    """Write those `tensors` that are neither equal to their `earlier` copy nor to one that `find` finds by its id."""
    saved: dict[str, Saved] = {}
    for name, tensor, data, blocks in _hashed(tensors, earlier):
        digests, sums, same = zip(*blocks, strict=True) if blocks else ((), (), ())
        joined = b"".join(digests)
        reused = earlier.get(name)
        if reused is None or not all(same):
            id = tensor_id(tensor.dtype, tensor.shape, joined)
            reused = None if id in writer else find(id)
            if reused is not None and not _equal(data, reused):  # a damaged copy is not built upon
                reused = None
        else:
            id = reused.entry.id
        saved[name] = Saved(TensorEntry(tensor.dtype, tensor.shape, tensor.nbytes, id), joined, sums, reused)
        if reused is None:
            saved[name].write(writer, data)
    return saved


def _hashed(
    tensors: Mapping[str, WeightTensor], earlier: Mapping[str, Stored]
) -> Iterator[tuple[str, WeightTensor, Bytes, list[BlockSums]]]:
    """Each tensor with its bytes and sums, in order, while the threads are some tensors ahead."""
    ahead: deque[tuple[str, WeightTensor, Bytes, list[Future[BlockSums]]]] = deque()
    todo = iter(tensors.items())
    threads, nbytes = pool(), 0
    more = True
    while ahead or more:
        while more and (not ahead or nbytes - ahead[0][2].size < _AHEAD):
            name, tensor = next(todo, (None, None))
            if name is None or tensor is None:
                more = False
                break
            data, copy = tensor.bytes(), earlier.get(name)
            ahead.append((name, tensor, data, [threads.submit(_sums, part) for part in _parts(data, copy)]))
            nbytes += data.size
        if ahead:
            name, tensor, data, futures = ahead.popleft()
            nbytes -= data.size
            yield name, tensor, data, [future.result() for future in futures]


Part = tuple[Bytes, int, Stored | None]


def _parts(data: Bytes, copy: Stored | None) -> Iterator[Part]:
    return ((data[at : at + BLOCK], at, copy) for at in range(0, data.size, BLOCK))


def _sums(part: Part) -> BlockSums:
    """The sums of one block: those of the copy where it is the same, else computed."""
    data, at, copy = part
    if copy is not None and _same(data, at, copy):
        entry, number = copy.entry, at // BLOCK
        return entry.digests[32 * number : 32 * number + 32], int(entry.sums[number]), True
    return sha256(data), fold(data), False


def _same(data: Bytes, at: int, copy: Stored) -> bool:
    """Whether a block's bytes, from `at` on, are those of the copy. Mapped block by block: little is resident."""
    offset = copy.entry.offset + at
    try:
        other = copy.file.region(offset, data.size) if data.size >= MAPPED else None
        if other is None:
            other = _scratch_buffer()[: data.size]
            copy.file.read_into(other, offset)
    except (OSError, EOFError):
        return False
    return _equal_bytes(data[:_HEAD], other[:_HEAD]) and _equal_bytes(data[_HEAD:], other[_HEAD:])


def _scratch_buffer() -> Bytes:
    buffer: Bytes | None = getattr(_scratch, "buffer", None)
    if buffer is None:
        buffer = _scratch.buffer = np.empty(BLOCK, np.uint8)
    return buffer


def _equal_bytes(a: Bytes, b: Bytes) -> bool:
    whole = a.size // 8 * 8
    return bool(np.array_equal(a[:whole].view("u8"), b[:whole].view("u8")) and np.array_equal(a[whole:], b[whole:]))


def _equal(data: Bytes, copy: Stored) -> bool:
    starts = range(0, data.size, BLOCK)
    return data.size == copy.entry.size and all(pool().map(lambda at: _same(data[at : at + BLOCK], at, copy), starts))
