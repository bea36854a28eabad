"""The two sums of a block of bytes: a SHA-256 that identifies it, and a folded sum that is cheap enough for every read.

Both work on blocks of 1 MiB, so that threads can share one tensor and a range can be checked alone.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coral._handing import hand

BLOCK = 1 << 20
"""Bytes in a hash or check block."""

_COLUMNS = 509  # words in a row: a prime, so that swapped pages (512 words) change columns and show
_ROW = _COLUMNS * 8

Bytes = NDArray[np.uint8]

_alone = False

_A = TypeVar("_A")
_B = TypeVar("_B")


def blocks_in(nbytes: int) -> int:
    """How many blocks `nbytes` bytes take."""
    return -(-nbytes // BLOCK)


def fold(data: Bytes) -> int:
    """The folded sum of one block of bytes (uint8, contiguous): 32 bits.

    The block is seen as rows of 509 little-endian 64-bit words; the sums of the columns, modulo 2^64, and then the
    bytes that fill no row go through CRC-32. It reads at memory speed, and a flipped bit changes exactly one column.
    """
    whole = data.size // _ROW * _ROW
    crc = 0
    if whole:
        rows = data[:whole].view("<u8").reshape(-1, _COLUMNS)
        crc = zlib.crc32(np.add.reduce(rows, axis=0, dtype=np.uint64).astype("<u8", copy=False))
    return zlib.crc32(data[whole:], crc) if whole < data.size else crc


def folds(arrays: Sequence[Bytes]) -> list[list[int]]:
    """The folded sums of the blocks of each array, shared out over all threads."""
    blocks = [array[at : at + BLOCK] for array in arrays for at in range(0, array.size, BLOCK)]
    sums = iter(in_shares(_fold_all, blocks, [block.size for block in blocks]))
    return [[next(sums) for _ in range(blocks_in(array.size))] for array in arrays]


def _fold_all(blocks: Sequence[Bytes]) -> list[int]:
    return [fold(block) for block in blocks]


def in_shares(work: Callable[[Sequence[_A]], list[_B]], items: Sequence[_A], sizes: Sequence[int]) -> list[_B]:
    """What `work` makes of the items, each thread and the caller being given about the same bytes of them at once.

    Threads that hand over to each other after each item would spend their time on that.
    """
    share, size, cuts = -(-sum(sizes) // threads()), 0, [0]
    for place, nbytes in enumerate(sizes):
        if size >= share:
            cuts.append(place)
            size = 0
        size += nbytes
    cuts.append(len(items))
    others = [pool().submit(work, items[a:b]) for a, b in pairwise(cuts[1:])]
    found = work(items[: cuts[1]])
    for other in others:
        found = found + other.result()
    return found


def sha256(data: Bytes | bytes) -> bytes:
    """The SHA-256 of some bytes: 32 bytes."""
    return hashlib.sha256(data).digest()


def digests(data: Bytes) -> bytes:
    """The SHA-256 of each block of some bytes, one after the other, by all threads."""
    return b"".join(pool().map(sha256, (data[at : at + BLOCK] for at in range(0, data.size, BLOCK))))


def tensor_id(dtype: str, shape: Sequence[int], digests: bytes) -> str:
    """The id of a tensor, 64 hex digits, from the concatenated SHA-256 of its blocks."""
    head = f"tensor {dtype} {','.join(map(str, shape))}\n".encode("ascii")
    return hashlib.sha256(head + digests).hexdigest()


def object_id(kind: str, payload: bytes) -> str:
    """The id of a commit, tree or state object, 64 hex digits."""
    return hashlib.sha256(kind.encode("ascii") + b"\n" + payload).hexdigest()


class Threads:
    """The threads that hash and check blocks. Where there are none the caller works."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(threads(), thread_name_prefix="coral")

    def submit(self, work: Callable[[_A], _B], item: _A) -> Future[_B]:
        """Have `work(item)` done."""
        return hand(self._executor, partial(work, item))

    def map(self, work: Callable[[_A], _B], items: Iterable[_A]) -> Iterator[_B]:
        """What `work` makes of the items, in their order, some ahead of what has been taken."""
        if threads() == 1:
            yield from map(work, items)
            return
        ahead: deque[Future[_B]] = deque()
        for item in items:
            ahead.append(self.submit(work, item))
            if len(ahead) >= 4 * threads():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@cache
def _threads_of(_pid: int) -> Threads:
    return Threads()


def pool() -> Threads:
    """The threads of this process: a forked one has its own."""
    return _threads_of(os.getpid())


def threads() -> int:
    """How many threads work on blocks: one a core, 8 at most."""
    return 1 if _alone else _cores()


@contextmanager
def alone() -> Iterator[None]:
    """Have the calling thread do all the work while the block runs: other processes have the other processors."""
    global _alone  # noqa: PLW0603
    _alone, before = True, _alone
    try:
        yield
    finally:
        _alone = before


@cache
def _cores() -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min(8, cores))
