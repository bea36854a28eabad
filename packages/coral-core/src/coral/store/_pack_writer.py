"""Writing a pack, front to back; `coral.store._pack` says what is in one."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from coral._digest import BLOCK, Bytes, fold, object_id, sha256
from coral.filesystem import WriteFile
from coral.store._pack import (
    DIRECTORY,
    ENTRY,
    HEADER,
    KINDS,
    NO_BASE,
    RAW,
    TRAILER,
    UNSYNCED,
    VERSION,
    Directory,
    Entry,
)
from coral.weights import DTYPES

__all__ = ["PackWriter"]

_PAGE = 4096
_EARLY = 8 << 20  # bytes from which an early sync pays
_ZEROS = bytes(_PAGE)


class PackWriter:
    """Writes a pack front to back into an open file; `finish` returns its name."""

    def __init__(self, file: WriteFile, *, durable: bool = True) -> None:
        self._file = file
        self._flags = 0 if durable else UNSYNCED
        self._sync_early = durable
        self._syncing: _Background | None = None
        self._syncing_to = 0
        self._at = 0
        self._rows: list[tuple[Any, ...]] = []
        self._shapes: list[int] = []
        self._digests: list[bytes] = []
        self._sums: list[int] = []
        self._written: set[str] = set()
        self._write(HEADER.pack(b"CORALPK\n", VERSION, 0))

    def __contains__(self, id: str) -> bool:
        return id in self._written

    def _write(self, *buffers: Bytes | bytes) -> None:
        self._file.write(buffers)
        self._at += sum(map(len, buffers))

    def _pad(self, unit: int) -> bytes:
        return _ZEROS[: -self._at % unit]

    def add_tensor(
        self, id: str, dtype: str, shape: Sequence[int], data: Bytes, digests: bytes, sums: Sequence[int]
    ) -> None:
        """Append a whole tensor, whose id and sums the caller has computed."""
        self.enter_tensor(id, dtype, shape, self.place(data), data.size, digests, sums)

    def place(self, data: Bytes) -> int:
        """Append a whole tensor's bytes, aligned; returns their offset, for `enter_tensor`."""
        pad = self._pad(_PAGE if data.size >= BLOCK else 64)
        offset = self._at + len(pad)
        self._write(pad, data)
        return offset

    def enter_tensor(
        self, id: str, dtype: str, shape: Sequence[int], offset: int, nbytes: int, digests: bytes, sums: Sequence[int]
    ) -> None:
        """Enter a tensor that was placed at `offset` into the directory."""
        self._enter(Entry(id, "tensor", RAW, 0, None, dtype, tuple(shape), offset, nbytes, nbytes, digests, list(sums)))

    def add_object(self, kind: str, payload: bytes) -> str:
        """Append a tree, state or commit; returns its id."""
        id = object_id(kind, payload)
        if id not in self._written:
            offset = self._at
            data = np.frombuffer(payload, np.uint8)
            self._write(data)
            sums = [fold(data[i : i + BLOCK]) for i in range(0, data.size, BLOCK)]
            self._enter(Entry(id, kind, RAW, 0, None, None, (), offset, data.size, data.size, b"", sums))
        return id

    def add_stored(self, entry: Entry, pieces: Iterable[Bytes | bytes]) -> Entry:
        """Append something in the form in which `pieces` give it; its place, size and sums are found on the way."""
        aligned = _PAGE if entry.codec == RAW and entry.nbytes >= BLOCK else 64
        self._write(self._pad(aligned if entry.kind == "tensor" else 1))
        offset, sums = self._at, _RunningSums()
        for piece in pieces:
            data = np.frombuffer(piece, np.uint8) if isinstance(piece, bytes) else piece
            self._write(data)
            sums.add(data)
        stored = entry._replace(offset=offset, size=self._at - offset, sums=sums.finish())
        self._enter(stored)
        self.begin_sync()
        return stored

    def _enter(self, entry: Entry) -> None:
        self._written.add(entry.id)
        self._rows.append(
            (
                bytes.fromhex(entry.id),
                bytes.fromhex(entry.base) if entry.base else NO_BASE,
                KINDS[entry.kind],
                entry.codec,
                DTYPES[entry.dtype].code if entry.dtype else 0,
                len(entry.shape),
                entry.params,
                entry.offset,
                entry.size,
                entry.nbytes,
            )
        )
        self._shapes += entry.shape
        self._digests.append(entry.digests)
        self._sums += entry.sums

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._at

    def begin_sync(self) -> None:
        """Have what is written so far synced in the background, if it is much; `finish` waits for that."""
        if not self._sync_early or self._at - self._syncing_to < _EARLY:
            return
        if self._syncing is not None:
            if self._syncing.running:
                return
            self._syncing.result()
        self._syncing_to = self._at
        self._syncing = _Background(self._file.fsync)

    def finish(self) -> Directory:
        """Append directory and trailer; returns the directory, whose name is the pack's. The caller syncs."""
        rows = np.array(self._rows, ENTRY)
        directory = b"".join(
            [
                DIRECTORY.pack(b"CORALDR\n", VERSION, self._flags, len(rows), 0),
                rows.tobytes(),
                np.array(self._shapes, "<u8").tobytes(),
                b"".join(self._digests),
                np.array(self._sums, "<u4").tobytes(),
            ]
        )
        digest = sha256(directory)
        self._write(self._pad(64))
        end = self._at
        trailer = TRAILER.pack(b"CORALTR\n", end, len(directory), digest, 0, 0)[:-4]
        self._write(directory, trailer, struct.pack("<I", zlib.crc32(trailer)))
        self.wait()
        return Directory(digest.hex(), directory, end)

    def wait(self) -> None:
        """Wait for a sync in the background, and raise what it raised."""
        if self._syncing is not None:
            self._syncing.result()

    def abandon(self) -> None:
        """Wait for a sync in the background, whatever becomes of it: the file is not to be closed before."""
        if self._syncing is not None:
            self._syncing.join()


class _RunningSums:
    """The folded sums of bytes that come in pieces."""

    def __init__(self) -> None:
        self._block = np.empty(BLOCK, np.uint8)
        self._filled = 0
        self._sums: list[int] = []

    def add(self, data: Bytes) -> None:
        while data.size:
            if not self._filled and data.size >= BLOCK:
                self._sums.append(fold(data[:BLOCK]))
                data = data[BLOCK:]
                continue
            part = data[: BLOCK - self._filled]
            self._block[self._filled : self._filled + part.size] = part
            self._filled += part.size
            data = data[part.size :]
            if self._filled == BLOCK:
                self._sums.append(fold(self._block))
                self._filled = 0

    def finish(self) -> list[int]:
        return self._sums + ([fold(self._block[: self._filled])] if self._filled else [])


class _Background:
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="coral-sync", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is shutting down
            self._thread = None
            self._run()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def result(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error
