"""A pack: one immutable file that holds tensors and objects, and a directory that says where and with which sums.

    header      16 bytes    "CORALPK\\n", version u32, 0 u32
    data        each tensor at a multiple of 64 bytes, of 4,096 from 1 MiB up; then objects; gaps are zeros
    directory   at a multiple of 64: "CORALDR\\n", version u32, number of entries u32, the entries (96 bytes each), then
                all shapes (u64), all SHA-256 of raw blocks (32 bytes), all folded sums of stored blocks (u32), in order
    trailer     64 bytes    "CORALTR\\n", offset u64, size u64, SHA-256 of the directory, 0 u32, CRC-32 of these u32

Integers are little-endian. The pack's name is the SHA-256 of its directory. docs/format.md has every field.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coral._digest import BLOCK, Bytes, fold, object_id, sha256
from coral.delta import GroupedDelta, PackDelta, Planes, Raw, Same
from coral.errors import CorruptObject, NewerFormat, UnsafeInput
from coral.filesystem import FileSystem, ReadFile
from coral.weights import DTYPE_BY_CODE, MAX_BYTES, MAX_RANK, check_shape

VERSION = 1
KINDS = {"tensor": 1, "tree": 2, "state": 3, "commit": 4}
KIND_BY_CODE = {code: kind for kind, code in KINDS.items()}
RAW = Raw.code
"""The codec of bytes stored as they are."""
_WITH_BASE = {Same.code, PackDelta.code, GroupedDelta.code}
_CODECS = {RAW, Planes.code} | _WITH_BASE

HEADER = struct.Struct("<8sII")
DIRECTORY = struct.Struct("<8sIIII")
TRAILER = struct.Struct("<8sQQ32sII")
ENTRY = np.dtype(
    [
        ("id", "V32"),
        ("base", "V32"),
        ("kind", "u1"),
        ("codec", "u1"),
        ("dtype", "u1"),
        ("rank", "u1"),
        ("params", "<u4"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("nbytes", "<u8"),
    ]
)
UNSYNCED = 1
"""A flag: the pack was written without fsync, so that one who relies on it for good must sync it first."""
MAPPED = 64 << 10
"""Bytes from which mapping a tensor beats reading it."""
LARGEST_DIRECTORY = 1 << 30
"""Bytes of a directory at most. It has 36 of them for each MiB of tensors: that of 1 TB of weights has 36 MB."""
_MAX_ENTRIES = 1 << 24
NO_BASE = bytes(32)


class Entry(NamedTuple):
    """One stored thing: where it lies, and the sums to check it by."""

    id: str
    kind: str
    codec: int
    params: int  # what the codec needs to know beside its code
    base: str | None  # id of the tensor that it is a difference from
    dtype: str | None
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes as stored
    nbytes: int  # bytes as they were
    digests: bytes  # SHA-256 of each block of the raw bytes (tensors only)
    sums: list[int]  # folded sum of each block of the stored bytes


class Directory:
    """What a pack holds, parsed and checked: `ids` in the pack's order, entries by number."""

    def __init__(self, name: str, data: bytes, end: int) -> None:
        """Parse the directory of pack `name`, whose data area ends at byte `end`; CorruptObject if it is not sound."""
        self.name = name
        self.end = end
        _check_size(name, len(data))
        if len(data) < DIRECTORY.size:
            raise _corrupt(name, "its directory is too short")
        magic, version, self.flags, count, _ = DIRECTORY.unpack_from(data)
        if magic != b"CORALDR\n" or count > _MAX_ENTRIES or DIRECTORY.size + count * ENTRY.itemsize > len(data):
            raise _corrupt(name, "its directory is malformed")
        if version != VERSION:
            raise NewerFormat(
                f"pack {name[:12]} has version {version}; this coral reads {VERSION}. Upgrade coral-core."
            )
        self.rows: NDArray[Any] = np.frombuffer(data, ENTRY, count, DIRECTORY.size)
        rows = self.rows
        size, nbytes, offset = (rows[f] for f in ("size", "nbytes", "offset"))
        if count and (max(size.max(), nbytes.max(), offset.max()) > MAX_BYTES or (offset + size > end).any()):
            raise _corrupt(name, "an entry lies outside the pack")
        if count and (rows["rank"].max() > MAX_RANK or not np.isin(rows["kind"], list(KIND_BY_CODE)).all()):
            raise _corrupt(name, "an entry has an unknown kind or rank")
        tensor = rows["kind"] == KINDS["tensor"]
        block = np.uint64(BLOCK)
        blocks = [rows["rank"].astype(np.int64)]
        blocks.append(np.where(tensor, -(-nbytes.astype(np.int64) // np.int64(block)), 0))
        blocks.append(-(-size.astype(np.int64) // np.int64(block)))
        if any(float(b.sum(dtype=np.float64)) > len(data) for b in blocks):
            raise _corrupt(name, "its directory is malformed")
        self._starts = [[0, *np.cumsum(b).tolist()] for b in blocks]
        tables, at = [], DIRECTORY.size + rows.nbytes
        for width, starts in zip((8, 32, 4), self._starts, strict=True):
            tables.append(data[at : at + width * starts[-1]])
            at += width * starts[-1]
        if at != len(data):
            raise _corrupt(name, "its directory has not the size that its entries need")
        self._shapes: list[int] = np.frombuffer(tables[0], "<u8").tolist()
        self._digests = tables[1]
        self._known_rows: list[tuple[Any, ...]] | None = None
        self._sums: list[int] = np.frombuffer(tables[2], "<u4").tolist()
        ids = np.ascontiguousarray(rows["id"]).tobytes().hex()
        self.ids = [ids[i : i + 64] for i in range(0, len(ids), 64)]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def _rows(self) -> list[tuple[Any, ...]]:
        rows = self._known_rows  # a cached_property has, before Python 3.12, one lock for all, also when forked
        if rows is None:
            rows = self._known_rows = self.rows.tolist()  # reading a field of one numpy row costs more than all of this
        return rows

    def entry(self, number: int) -> Entry:
        """The entry of a number. That its size fits its dtype and shape is for the caller to check (`entries` does)."""
        _, base, kind_code, codec, dtype_code, _, params, offset, size, nbytes = self._rows[number]
        (shape_from, shape_to), (digest_from, digest_to), (sum_from, sum_to) = (
            (starts[number], starts[number + 1]) for starts in self._starts
        )
        kind, shape = KIND_BY_CODE[kind_code], self._shapes[shape_from:shape_to]
        dtype = DTYPE_BY_CODE.get(dtype_code) if kind == "tensor" else None
        if kind == "tensor" and dtype is None:
            raise NewerFormat(f"pack {self.name[:12]}: dtype code {dtype_code} is not known; upgrade coral-core")
        if codec not in _CODECS:
            raise NewerFormat(f"pack {self.name[:12]}: codec {codec} is not known to this coral; upgrade coral-core")
        most = nbytes if codec == RAW else nbytes + nbytes // 512 + 64  # blocks that nothing makes shorter, and a table
        if size > most or (codec == RAW and size != nbytes) or (codec == Same.code and size):
            raise _corrupt(self.name, f"{kind} {self.ids[number][:12]} has {size} bytes, not {nbytes}")
        if (base != NO_BASE) != (codec in _WITH_BASE) or (codec != RAW and kind != "tensor"):
            raise _corrupt(self.name, f"{kind} {self.ids[number][:12]} has a codec, or a base, that it cannot have")
        return Entry(
            id=self.ids[number],
            kind=kind,
            codec=codec,
            params=params,
            base=None if base == NO_BASE else base.hex(),
            dtype=dtype,
            shape=tuple(shape),
            offset=offset,
            size=size,
            nbytes=nbytes,
            digests=self._digests[32 * digest_from : 32 * digest_to],
            sums=self._sums[sum_from:sum_to],
        )

    def entries(self) -> Iterator[Entry]:
        """All entries, in the pack's order, each checked to be consistent in itself."""
        return map(self.checked, range(len(self)))

    def checked(self, number: int) -> Entry:
        """The entry of a number, checked to be consistent in itself."""
        entry = self.entry(number)
        if entry.dtype is not None:
            try:
                fits = check_shape(entry.shape, entry.dtype)[1] == entry.nbytes
            except UnsafeInput:
                fits = False
            if not fits:
                raise _corrupt(self.name, f"tensor {entry.id[:12]} has not the bytes of its dtype and shape")
        return entry


def path_of(name: str) -> str:
    """Where the pack of a name lies."""
    return f"packs/{name}.pack"


def read_directory(fs: FileSystem, name: str) -> Directory:
    """Open a pack, check its directory against its name, and close it."""
    file = fs.open(path_of(name))
    try:
        return directory_of(file, name)
    finally:
        file.close()


def directory_of(file: ReadFile, name: str) -> Directory:
    """The directory of an open pack; CorruptObject if it is not the one that the pack is named by."""
    if file.size < HEADER.size + TRAILER.size:
        raise _corrupt(name, f"it has only {file.size} bytes")
    tail = np.empty(min(file.size, 1 << 16), np.uint8)
    file.read_into(tail, file.size - tail.size)
    trailer = tail[-TRAILER.size :].tobytes()
    magic, offset, size, digest, _, crc = TRAILER.unpack(trailer)
    if magic != b"CORALTR\n" or crc != zlib.crc32(trailer[:-4]) or offset + size + TRAILER.size != file.size:
        raise _corrupt(name, "its trailer is torn or was changed")
    _check_size(name, size)
    if size + TRAILER.size <= tail.size:
        data = tail[-TRAILER.size - size : -TRAILER.size].tobytes()
    else:
        whole = np.empty(size, np.uint8)
        file.read_into(whole, offset)
        data = whole.tobytes()
    if digest.hex() != name or sha256(data) != digest:
        raise _corrupt(name, "its directory is not the one that it is named by")
    directory = Directory(name, data, offset)  # which knows a newer version for what it is
    head = np.empty(HEADER.size, np.uint8)
    file.read_into(head, 0)
    if head.tobytes() != HEADER.pack(b"CORALPK\n", VERSION, 0):
        raise _corrupt(name, "its header was changed")
    return directory


def read_object(file: ReadFile, entry: Entry) -> bytes:
    """The bytes of a tree, state or commit, checked against its id."""
    data = np.empty(entry.size, np.uint8)
    file.read_into(data, entry.offset)
    payload = data.tobytes()
    if object_id(entry.kind, payload) != entry.id:
        raise CorruptObject(f"{entry.kind} {entry.id[:12]} is not what was stored")
    return payload


def pieces(file: ReadFile, entry: Entry) -> Iterator[Bytes]:
    """An entry's stored bytes, checked, in the blocks that its sums are of."""
    for number, total in enumerate(entry.sums):
        piece = np.empty(min(BLOCK, entry.size - number * BLOCK), np.uint8)
        file.read_into(piece, entry.offset + number * BLOCK)
        if fold(piece) != total:
            raise CorruptObject(f"{entry.kind} {entry.id[:12]} fails its check at byte {number * BLOCK}. Run fsck.")
        yield piece


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_DIRECTORY:
        raise _corrupt(name, f"its directory has {size} bytes; {LARGEST_DIRECTORY} is the limit")


def _corrupt(name: str, why: str) -> CorruptObject:
    path = path_of(name)
    return CorruptObject(f"{path}: {why}", path=path)
