"""Which packs hold an object. Derived from the packs' directories, and thrown away whenever it does not fit them.

An index file covers some packs: their names, and a row (id, pack, entry) for each of their entries, sorted by the
first eight bytes of the id, which are kept as an integer. A commit leaves its pack uncovered; once there are many
such, whoever commits next covers them in a new file, merged with those of about its size, so that there are few files
and each row is rewritten rarely. Packs that no file covers are read by their directories. A row is only a hint:
whoever follows it finds the entry in the pack, or looks again.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from coral._digest import sha256
from coral._fork import renewed_by_fork
from coral._unreadable import is_unreadable
from coral.errors import CorruptObject
from coral.filesystem import FileSystem
from coral.store._files import temporary
from coral.store._pack import Directory, read_directory

_ROW = np.dtype([("key", "<u8"), ("rest", "V24"), ("pack", "<u4"), ("entry", "<u4")])
_P = ParamSpec("_P")
_T = TypeVar("_T")
_MAGIC = b"CORALIX\n"
_HEAD = 24  # magic, version u32, packs u32, rows u64
_UNCOVERED = 32
_LIMIT = 1 << 32


class Location(NamedTuple):
    """A place where an object lies: the number of an entry in a pack."""

    pack: str
    entry: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """One index file."""

    name: str
    packs: list[str]
    rows: NDArray[Any]
    keys: NDArray[np.uint64]  # those of the rows, side by side, for the search

    @classmethod
    def decode(cls, name: str, data: bytes) -> _Segment:
        counts = np.frombuffer(data, "<u4", 2, 8) if len(data) >= _HEAD + 4 else None
        if counts is None or data[:8] != _MAGIC or counts[0] != 1:
            raise CorruptObject(f"index/{name} is not an index of this format")
        packs, rows = int(counts[1]), int(np.frombuffer(data, "<u8", 1, 16)[0])
        if len(data) != _HEAD + packs * 32 + rows * _ROW.itemsize + 4 or zlib.crc32(data[:-4]) != int.from_bytes(
            data[-4:], "little"
        ):
            raise CorruptObject(f"index/{name} is torn or was changed")
        text = data[_HEAD : _HEAD + packs * 32].hex()
        table = np.frombuffer(data, _ROW, rows, _HEAD + packs * 32)
        names = [text[i : i + 64] for i in range(0, len(text), 64)]
        return cls(name, names, table, np.ascontiguousarray(table["key"], np.uint64))

    @staticmethod
    def encode(packs: list[str], rows: NDArray[Any]) -> bytes:
        head = _MAGIC + np.array([1, len(packs)], "<u4").tobytes() + np.array([len(rows)], "<u8").tobytes()
        body = b"".join([head, *map(bytes.fromhex, packs), rows.tobytes()])
        return body + zlib.crc32(body).to_bytes(4, "little")

    def find(self, id: str) -> Iterator[Location]:
        raw = bytes.fromhex(id)
        key, rest = int.from_bytes(raw[:8], "big"), raw[8:]
        at = self._from(key)
        while at < len(self.keys) and self.keys[at] == key:
            row = self.rows[at]
            if bytes(row["rest"]) == rest and row["pack"] < len(self.packs):
                yield Location(self.packs[row["pack"]], int(row["entry"]))
            at += 1

    def by_pack(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Each pack with its rows, in the order of its entries."""
        rows = self.rows[np.lexsort((self.rows["entry"], self.rows["pack"]))]
        ends = np.searchsorted(rows["pack"], np.arange(len(self.packs) + 1))
        for number, name in enumerate(self.packs):
            yield name, rows[ends[number] : ends[number + 1]]

    def with_prefix(self, prefix: str) -> Iterator[str]:
        low = int(prefix[:16].ljust(16, "0"), 16)
        high = int(prefix[:16].ljust(16, "f"), 16)
        for row in self.rows[self._from(low) :]:
            if int(row["key"]) > high:
                return
            id = int(row["key"]).to_bytes(8, "big").hex() + bytes(row["rest"]).hex()
            if id.startswith(prefix):
                yield id

    def _from(self, key: int) -> int:
        return int(self.keys.searchsorted(np.uint64(key)))


def read_segment(fs: FileSystem, name: str) -> _Segment:
    """An index file, checked; CorruptObject if it is not what was written."""
    return _Segment.decode(name, fs.read(f"index/{name}", _LIMIT))


def _locked(method: Callable[Concatenate[Index, _P], _T]) -> Callable[Concatenate[Index, _P], _T]:
    def call(self: Index, /, *args: _P.args, **options: _P.kwargs) -> _T:
        with self._lock:
            return method(self, *args, **options)

    return functools.update_wrapper(call, method)


class Index:
    """Finds objects in the packs of a repository. It may be used by several threads."""

    def __init__(self, fs: FileSystem, *, durable: bool = False) -> None:
        self._fs = fs
        self._durable = durable  # so that fsck finds no torn index after a loss of power
        self.after_fork()
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Know nothing yet."""
        self._segments: dict[str, _Segment] = {}
        self._covered: set[str] = set()
        self._gone: set[str] = set()  # covered, but not there any more
        self._loose: dict[str, Directory] = {}
        self._by_id: dict[str, list[Location]] = {}
        self._loaded = False
        self.unreadable: OSError | None = None
        """Why the last look left out a pack: it may hold what is not found."""
        self._lock = threading.RLock()

    @_locked
    def known(self, id: str) -> list[Location]:
        """Where an object lies, the newest packs first, as far as is known without a `refresh`."""
        if not self._loaded:
            self._load_segments()
        found = list(reversed(self._by_id.get(id, ())))
        for segment in self._segments.values():
            found += (place for place in segment.find(id) if place.pack not in self._gone)
        return found

    @_locked
    def any(self) -> bool:
        """Whether any object is known of."""
        if not self._loaded:
            self.refresh()
        return bool(self._by_id) or bool(self._segments)

    @_locked
    def with_prefix(self, prefix: str) -> set[str]:
        """The ids of all objects, of any kind, that start so."""
        self.refresh()
        found = {id for id in self._by_id if id.startswith(prefix)}
        for segment in self._segments.values():
            found.update(segment.with_prefix(prefix))
        return found

    @_locked
    def add(self, directory: Directory) -> None:
        """Take in a pack that has just been written."""
        if directory.name not in self._loose and directory.name not in self._covered:
            self._loose[directory.name] = directory
            for number, id in enumerate(directory.ids):
                self._by_id.setdefault(id, []).append(Location(directory.name, number))

    @_locked
    def directory(self, pack: str) -> Directory | None:
        """The directory of a pack that no index file covers, if it is known."""
        return self._loose.get(pack)

    @_locked
    def forget(self, pack: str) -> None:
        """Drop what is known of a pack that is gone."""
        if pack in self._covered:
            self._gone.add(pack)
        self._forget_loose(pack)

    def _forget_loose(self, pack: str) -> None:
        directory = self._loose.pop(pack, None)
        for id in directory.ids if directory else ():
            left = [place for place in self._by_id[id] if place.pack != pack]
            if left:
                self._by_id[id] = left
            else:
                del self._by_id[id]

    @_locked
    def refresh(self) -> bool:
        """Take in what other processes wrote; whether anything changed. A pack that cannot be read is left to fsck."""
        changed = self._load_segments()
        there = {name[:-5] for name in self._fs.list("packs") if name.endswith(".pack")}
        self._gone, before = self._covered - there, self._gone
        changed = changed or self._gone != before
        for gone in self._loose.keys() - there:
            self.forget(gone)
            changed = True
        unreadable: OSError | None = None
        for name in there - self._covered - self._loose.keys():
            try:
                self.add(read_directory(self._fs, name))
                changed = True
            except (CorruptObject, FileNotFoundError):
                pass
            except OSError as error:
                if not is_unreadable(error):
                    raise
                unreadable = error
        self.unreadable = unreadable
        return changed

    def _load_segments(self) -> bool:
        self._loaded = True
        names = {name for name in self._fs.list("index") if name.endswith(".idx")}
        if names == self._segments.keys():
            return False
        for name in names - self._segments.keys():
            try:
                with suppress(CorruptObject, FileNotFoundError):  # only derived: its packs count as uncovered then
                    self._segments[name] = read_segment(self._fs, name)
            except OSError as error:
                if not is_unreadable(error):
                    raise
        for name in self._segments.keys() - names:
            del self._segments[name]
        self._covered = {pack for segment in self._segments.values() for pack in segment.packs}
        for pack in self._covered & self._loose.keys():
            self._forget_loose(pack)
        return True

    @_locked
    def cover(self) -> None:
        """Write an index file if there are many packs without one. Nothing depends on it: it may fail or be lost."""
        if len(self._loose) >= _UNCOVERED:
            self.refresh()
            if len(self._loose) >= _UNCOVERED:  # nobody else has covered them
                self._rewrite(lambda segment, packs: len(segment.packs) <= 4 * packs)

    @_locked
    def trim(self) -> None:
        """Write those index files anew of whose packs many are gone."""
        self.refresh()

        def stale(segment: _Segment, _: int = 0) -> bool:
            return 4 * len(self._gone.intersection(segment.packs)) >= len(segment.packs)

        if any(map(stale, self._segments.values())):
            self._rewrite(stale)

    def _rewrite(self, merge: Callable[[_Segment, int], bool]) -> None:
        """Write one index file of the packs without one and of the segments to `merge`, asked with how many it has."""
        packs = {name: number for number, name in enumerate(self._loose)}
        parts, merged = [_rows_of(self._loose.values(), 0)], []
        for segment in sorted(self._segments.values(), key=lambda s: len(s.packs)):
            if merge(segment, len(packs)):
                merged.append(segment)
                parts.append(_renumbered(segment, packs, self._gone))
        if packs:
            self._write(list(packs), parts)
        for segment in merged:
            with suppress(FileNotFoundError):
                self._fs.unlink(f"index/{segment.name}")
        self._load_segments()

    def _write(self, packs: list[str], parts: list[NDArray[Any]]) -> None:
        rows = np.concatenate(parts)
        rows = rows[np.argsort(rows["key"], kind="stable")]
        data = _Segment.encode(packs, rows)
        with temporary(self._fs) as (path, file):
            file.write([data])
            if self._durable:
                file.fsync()
            file.close()
            self._fs.replace(path, f"index/{sha256(data).hex()[:32]}.idx")


def rows_of(directory: Directory) -> NDArray[Any]:
    """What an index has to say of a pack, but for the pack's number: its objects, in the order of their entries."""
    return _rows_of([directory], 0)


def describes(rows: NDArray[Any], whole: NDArray[Any]) -> bool:
    """Whether an index's rows of a pack, in the order of its entries, are those of its directory."""
    fields = ("key", "rest", "entry")
    return len(rows) == len(whole) and all(rows[field].tobytes() == whole[field].tobytes() for field in fields)


def _rows_of(directories: Iterable[Directory], first: int) -> NDArray[Any]:
    parts = []
    for number, directory in enumerate(directories, first):
        rows = np.empty(len(directory), _ROW)
        raw = np.ascontiguousarray(directory.rows["id"]).view(np.uint8).reshape(-1, 32)
        rows["key"] = np.ascontiguousarray(raw[:, :8]).view(">u8").reshape(-1)
        rows["rest"] = np.ascontiguousarray(raw[:, 8:]).view("V24").reshape(-1)
        rows["pack"] = number
        rows["entry"] = np.arange(len(directory))
        parts.append(rows)
    return np.concatenate(parts) if parts else np.empty(0, _ROW)


def _renumbered(segment: _Segment, packs: dict[str, int], gone: Set[str]) -> NDArray[Any]:
    """The rows of a segment's packs that are neither gone nor among `packs` yet, numbered on from these; adds them."""
    numbers = np.full(len(segment.packs), -1, np.int64)
    for place, name in enumerate(segment.packs):
        if name not in packs and name not in gone:
            numbers[place] = packs[name] = len(packs)
    known = segment.rows[segment.rows["pack"] < len(numbers)]
    new = numbers[known["pack"]]
    rows: NDArray[Any] = known[new >= 0].copy()
    rows["pack"] = new[new >= 0]
    return rows
