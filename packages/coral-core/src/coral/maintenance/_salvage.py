"""Getting out of a damaged pack what is whole in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from coral._digest import Bytes, sha256
from coral.errors import CoralError, CorruptObject, MissingExtra, NewerFormat
from coral.filesystem import ReadFile
from coral.store import Chain, Stored
from coral.store._pack import VERSION, Directory, Entry, directory_of, pieces, read_object

__all__ = ["find_directory", "is_intact"]

_TRAILER, _MOST = 64, 256 << 20
_HEADER = np.frombuffer(struct.pack("<8sII", b"CORALPK\n", VERSION, 0), np.uint8)


def find_directory(file: ReadFile, name: str) -> Directory | None:
    """The directory of a pack of which the header or the trailer is damaged, or that has another one's name.

    A pack's name says what its directory is, so that it is known again wherever it lies. None where it is not whole.
    NewerFormat where it is a newer coral's.
    """
    for tried in (name, _named_inside(file)):
        if tried is not None:
            with suppress(CorruptObject, EOFError):
                return directory_of(_Headed(file), tried)
    return next(_at_the_end(file, name), None)


def _named_inside(file: ReadFile) -> str | None:
    """What a trailer says that the pack is called."""
    if file.size < _TRAILER:
        return None
    trailer = np.empty(_TRAILER, np.uint8)
    file.read_into(trailer, file.size - _TRAILER)
    return trailer[24:56].tobytes().hex()


def _at_the_end(file: ReadFile, name: str) -> Iterator[Directory]:
    """The directory of that name, if it ends where a trailer begins, or one that is cut short would."""
    start = max(0, file.size - _MOST) // 64 * 64
    data = np.empty(file.size - start, np.uint8)
    with suppress(EOFError):
        file.read_into(data, start)
    text = data.tobytes()
    ends = {*_places(text, b"CORALTR\n"), *range(max(0, len(text) - _TRAILER), len(text) + 1)}
    for at in _places(text, b"CORALDR\n"):
        for end in ends if (start + at) % 64 == 0 else ():
            if end > at and sha256(text[at:end]).hex() == name:
                with suppress(CorruptObject):
                    yield Directory(name, text[at:end], start + at)


def _places(text: bytes, part: bytes) -> Iterator[int]:
    at = -1
    while (at := text.find(part, at + 1)) >= 0:
        yield at


class _Headed:
    """A pack's file with the header that each pack has."""

    def __init__(self, file: ReadFile) -> None:
        self._file = file
        self.size = file.size

    def read_into(self, buffer: Bytes, offset: int) -> None:
        self._file.read_into(buffer, offset)
        head = min(max(0, _HEADER.size - offset), buffer.size)
        buffer[:head] = _HEADER[offset : offset + head]

    def region(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def view(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def close(self) -> None:
        self._file.close()


def is_intact(directory: Directory, file: ReadFile, entry: Entry) -> bool:
    """Whether a copy is as it was stored; that of a difference, whatever became of what it is a difference from."""
    try:
        if entry.kind != "tensor":
            read_object(file, entry)
            return True
        for _ in pieces(file, entry):
            pass
        if entry.base is None:
            Chain([Stored(directory, file, entry)]).verify()
    except (MissingExtra, NewerFormat):
        return True  # it cannot be decoded here: not a damage
    except (CoralError, EOFError):
        return False
    return True
