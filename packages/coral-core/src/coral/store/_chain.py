"""Reading tensors: stored whole, or as a difference from a base, which may be a difference in turn.

An encoded tensor is its blocks one after the other, each as its codec wrote it, then for each block its size (u32) and
the folded sum (u32) of what it decodes to, then the CRC-32 (u32) of that table. Any block can be read, decoded and
checked alone; that it decodes to what it should shows that its base was the right one, too.
"""

from __future__ import annotations

import itertools
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from coral._digest import BLOCK, Bytes, fold, folds, pool, sha256, tensor_id
from coral._local_files import fault_in
from coral.delta import BLOCK_ELEMENTS, Same, carrier, codec_of
from coral.errors import CorruptObject
from coral.filesystem import ReadFile
from coral.store._pack import MAPPED, RAW, Directory, Entry

_JOB = 4 * BLOCK  # bytes that one thread decodes at a time, at least
_ALIGNED = 64
_scratch = threading.local()


class Stored(NamedTuple):
    """A copy of an object, in a pack that is open."""

    pack: Directory
    file: ReadFile
    entry: Entry

    @property
    def whole(self) -> bool:
        """Whether it is stored as it is."""
        return self.entry.codec == RAW


def encoded(blocks: Iterable[tuple[bytes, int]]) -> Iterator[bytes]:
    """An encoded tensor in pieces, from its blocks as their codec wrote them, each with the folded sum of its bits."""
    table = b""
    for block, total in blocks:
        table += struct.pack("<II", len(block), total)
        yield block
    yield table + struct.pack("<I", zlib.crc32(table))


class _Link:
    """One copy of a chain."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        entry = stored.entry
        assert entry.dtype is not None
        self._carrier = carrier(entry.dtype)
        self.block = BLOCK_ELEMENTS * self._carrier.itemsize  # bytes
        self._codec = codec_of(entry.codec, entry.params)
        self._known_table: tuple[list[int], list[int]] | None = None

    @property
    def _table(self) -> tuple[list[int], list[int]]:
        """Where each block starts, and its sum."""
        if self._known_table is None:  # a cached_property has, before Python 3.12, one lock for all, also when forked
            self._known_table = self._read_table()
        return self._known_table

    def _read_table(self) -> tuple[list[int], list[int]]:
        entry = self.stored.entry
        count = -(-entry.nbytes // self.block)
        size = 8 * count + 4
        if entry.size < size:
            raise CorruptObject(f"tensor {entry.id[:12]} is too short for its table")
        table = np.empty(size, np.uint8)
        self.stored.file.read_into(table, entry.offset + entry.size - size)
        sizes_and_sums = table[:-4].view("<u4").reshape(count, 2)
        starts = [0, *accumulate(sizes_and_sums[:, 0].tolist())]
        if zlib.crc32(table[:-4]) != int(table[-4:].view("<u4")[0]) or starts[-1] + size != entry.size:
            raise CorruptObject(f"tensor {entry.id[:12]}: its table was changed")
        return starts, sizes_and_sums[:, 1].tolist()

    def read(self, at: int, base: Bytes | None, out: Bytes, *, checked: bool) -> None:
        """Fill `out` with the bytes from `at` on, a whole number of blocks of both kinds, but for the last."""
        entry, file = self.stored.entry, self.stored.file
        if entry.codec == RAW:
            file.read_into(out, entry.offset + at)
            for start in range(0, out.size if checked else 0, BLOCK):
                if fold(out[start : start + BLOCK]) != entry.sums[(at + start) // BLOCK]:
                    raise CorruptObject(f"tensor {entry.id[:12]} fails its check at byte {at + start}")
            return
        if entry.codec == Same.code:
            assert base is not None
            out[:] = base
            return
        starts, sums = self._table
        first, last = at // self.block, -(-(at + out.size) // self.block)
        stored = buffer("stored", starts[last] - starts[first])
        file.read_into(stored, entry.offset + starts[first])
        for number in range(first, last):
            data = stored[starts[number] - starts[first] : starts[number + 1] - starts[first]]
            part = slice((number - first) * self.block, (number - first + 1) * self.block)
            bits = None if base is None else base[part].view(self._carrier)
            self._codec.decode(data, bits, out[part].view(self._carrier))
            if checked and fold(out[part]) != sums[number]:
                raise CorruptObject(f"tensor {entry.id[:12]}: encoded block {number} fails its check")


class Chain:
    """How to get at a tensor's bytes: a copy, a copy of its base, and so on down to one that stands alone."""

    def __init__(self, links: Sequence[Stored]) -> None:
        self.links = tuple(links)
        self._links = [_Link(stored) for stored in links]
        self.unit = max(BLOCK, self._links[0].block)
        """Bytes that are read at once."""
        self._summed = sum(1 for _ in itertools.takewhile(lambda link: link.entry.codec == Same.code, links))
        """The first link with sums: one that is the same as its base has none of its own."""

    @property
    def entry(self) -> Entry:
        """That of the tensor itself."""
        return self.links[0].entry

    @property
    def whole(self) -> bool:
        """Whether the tensor is stored as it is."""
        return self.links[0].whole

    @property
    def depth(self) -> int:
        """How many differences lie between the tensor and a copy that stands alone."""
        return len(self.links) - 1

    def bases(self) -> Iterator[Chain]:
        """The tensors that it is a difference from, the nearest first."""
        for depth in range(1, len(self.links)):
            yield Chain(self.links[depth:])

    def read(self, at: int, out: Bytes, *, checked: bool = True) -> None:
        """Fill `out` with the bytes from `at`, the start of a unit, on: at most that unit.

        If `checked`, what comes out is compared with its sums, which shows damage anywhere in the chain. Raises
        CorruptObject, EOFError.
        """
        base = self._shown(at, out.size) if self.depth > self._summed or not checked else None
        for depth in range(self.depth - (base is not None), -1, -1):
            target = buffer(f"base {depth % 2}", out.size) if depth else out
            self._links[depth].read(at, base, target, checked=checked and depth == self._summed)
            base = target

    def _shown(self, at: int, size: int) -> Bytes | None:
        """What the last link, if it is whole, has from `at` on, as it is mapped."""
        last = self.links[-1]
        return _view(last, at, size) if self.depth and last.whole else None

    def peek(self, at: int, size: int, name: str) -> Bytes:
        """The unit from `at` on, unchecked and not to be written to: mapped, or in memory of this thread."""
        found = _view(self.links[0], at, size) if self.whole else None
        if found is None:
            found = buffer(name, size)
            self.read(at, found, checked=False)
        return found

    def units(self) -> Iterator[tuple[int, int]]:
        """Start and end of each unit."""
        for at in range(0, self.entry.nbytes, self.unit):
            yield at, min(at + self.unit, self.entry.nbytes)

    def digests(self, start: int, end: int) -> bytes:
        """The SHA-256 of each block of a unit, whose stored bytes are checked by their sums."""
        data = buffer("verified", end - start)
        self.read(start, data)
        return b"".join([sha256(data[at : at + BLOCK]) for at in range(0, data.size, BLOCK)])

    def verify(self, digests: bytes | None = None) -> None:
        """Check by everything there is: sums, SHA-256 of each block, id. CorruptObject if anything differs.

        `digests` are those of all units, where they are known.
        """
        entry = self.entry
        if digests is None:
            digests = b"".join(itertools.starmap(self.digests, self.units()))
        if digests != entry.digests or entry.dtype is None or tensor_id(entry.dtype, entry.shape, digests) != entry.id:
            raise CorruptObject(f"tensor {entry.id[:12]} is not what was stored: its SHA-256 differs")


def buffer(name: str, size: int) -> Bytes:
    """Memory of this thread that is used again under the same name."""
    held: Bytes | None = getattr(_scratch, name, None)
    if held is None or held.size < size:
        held = np.empty(max(size, BLOCK), np.uint8)
        setattr(_scratch, name, held)
    return held[:size]


def read_tensors(chains: Sequence[Chain]) -> list[Bytes | None]:
    """The raw bytes of tensors, mapped where they are large and whole, all checked; None for one that fails.

    OSError where one cannot be read.
    """
    found: list[Bytes | None] = [_raw(chain.links[0]) if chain.whole else None for chain in chains]
    whole = [data for data in found if data is not None]
    sums = iter(folds(whole))
    found = [
        None if data is None or next(sums) != chain.entry.sums else data
        for data, chain in zip(found, chains, strict=True)
    ]
    for number, data in zip(*_decoded([(n, c) for n, c in enumerate(chains) if not c.whole]), strict=True):
        found[number] = data
    return found


def verify_tensors(chains: Sequence[Chain]) -> Iterator[tuple[Chain, CorruptObject | EOFError | None]]:
    """What is wrong with each of some tensors, by everything there is to check; all threads work on them."""

    def work(job: list[tuple[int, Chain, int, int]]) -> list[tuple[int, bytes, CorruptObject | EOFError | None]]:
        found: list[tuple[int, bytes, CorruptObject | EOFError | None]] = []
        for number, chain, start, end in job:
            try:
                found.append((number, chain.digests(start, end), None))
            except (CorruptObject, EOFError) as error:
                found.append((number, b"", error))
        return found

    digests = [b""] * len(chains)
    problems: list[CorruptObject | EOFError | None] = [None] * len(chains)
    for done in pool().map(work, _jobs(list(enumerate(chains)))):
        for number, some, problem in done:
            digests[number] += some
            problems[number] = problems[number] or problem
    for chain, joined, problem in zip(chains, digests, problems, strict=True):
        if problem is None:
            try:
                chain.verify(joined)
            except CorruptObject as error:
                problem = error
        yield chain, problem


def _decoded(chains: Sequence[tuple[int, Chain]]) -> tuple[list[int], list[Bytes | None]]:
    """The numbers of chains, and what they decode to."""
    # one piece of memory for all of them: large pieces come in large pages
    starts = [0, *itertools.accumulate(-(-chain.entry.nbytes // _ALIGNED) * _ALIGNED for _, chain in chains)]
    memory = np.empty(starts[-1], np.uint8)
    outs: dict[int, Bytes | None] = {
        number: memory[start : start + chain.entry.nbytes]
        for start, (number, chain) in zip(starts, chains, strict=False)
    }

    def work(job: list[tuple[int, Chain, int, int]]) -> None:
        for number, chain, start, end in job:
            out = outs[number]
            try:
                if out is not None:
                    chain.read(start, out[start:end])
            except (CorruptObject, EOFError):
                outs[number] = None

    for _ in pool().map(work, _jobs(chains)):
        pass
    return list(outs), list(outs.values())


def _jobs(chains: Sequence[tuple[int, Chain]]) -> Iterator[list[tuple[int, Chain, int, int]]]:
    """The units of chains in jobs of about one size."""
    job: list[tuple[int, Chain, int, int]] = []
    size = 0
    for number, chain in chains:
        for start, end in chain.units():
            job.append((number, chain, start, end))
            size += end - start
            if size >= _JOB:
                yield job
                job, size = [], 0
    if job:
        yield job


def _view(stored: Stored, at: int, size: int) -> Bytes | None:
    found = stored.file.view(stored.entry.offset + at, size)
    return None if found is None else fault_in(found)


def _raw(stored: Stored) -> Bytes:
    file, entry = stored.file, stored.entry
    data = file.region(entry.offset, entry.size) if entry.size >= MAPPED else None
    if data is None:
        data = np.empty(entry.size, np.uint8)
        file.read_into(data, entry.offset)
    return data
