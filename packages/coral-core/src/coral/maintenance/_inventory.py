"""Which copies there are of everything, and which of them to go by."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from coral.errors import CorruptObject
from coral.store import Store
from coral.store._pack import RAW, UNSYNCED, Directory, path_of, read_directory

__all__ = ["Copy", "Inventory", "settle"]

MAX_DEPTH = 8
"""Differences on differences that are gone by; repack makes 2 at most."""


class Copy(NamedTuple):
    """One copy of an object, from the directory of its pack."""

    pack: str
    number: int
    codec: int
    base: str | None
    size: int  # bytes as stored
    nbytes: int  # bytes as they are


@dataclass(slots=True)
class _Pack:
    size: int
    unsynced: bool
    copies: list[tuple[str, Copy]]  # (id, copy)


class Inventory:
    """All copies in the packs that are there, read once from each pack's directory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs: dict[str, _Pack] = {}
        self._ids: dict[str, str] = {}
        self.copies: dict[str, list[Copy]] = {}
        """Of each object, the smallest first, and of equal ones that in the largest pack: whoever looks, and whenever,
        goes by the same."""

    def refresh(self) -> None:
        """Take in what has come, and drop what has gone. A pack that cannot be read counts for nothing."""
        there = {name.removesuffix(".pack") for name in self._store.fs.list("packs") if name.endswith(".pack")}
        for gone in self._packs.keys() - there:
            for id, copy in self._packs.pop(gone).copies:
                if copy in self.copies.get(id, ()):
                    self.refuse(id, copy)
        for name in there - self._packs.keys():
            with suppress(CorruptObject, FileNotFoundError):
                directory = self._store.index.directory(name) or read_directory(self._store.fs, name)
                self._take(directory, self._store.fs.stat(path_of(name)).size)

    def _take(self, directory: Directory, size: int) -> None:
        copies: list[tuple[str, Copy]] = []
        self._packs[directory.name] = _Pack(size, bool(directory.flags & UNSYNCED), copies)
        for number, row in enumerate(directory.rows.tolist()):
            id = self._ids.setdefault(directory.ids[number], directory.ids[number])
            base = None if row[1] == bytes(32) else row[1].hex()
            copy = Copy(directory.name, number, row[3], base and self._ids.setdefault(base, base), row[8], row[9])
            copies.append((id, copy))
            insort(self.copies.setdefault(id, []), copy, key=self._order)

    def _order(self, copy: Copy) -> tuple[int, int, str, int]:
        return copy.size, -self._packs[copy.pack].size, copy.pack, copy.number

    def refuse(self, id: str, copy: Copy) -> None:
        """Go by that copy no more, as long as its pack is there: it is not what it should be."""
        left = self.copies[id]
        left.remove(copy)
        if not left:
            del self.copies[id]

    def __contains__(self, pack: str) -> bool:
        return pack in self._packs

    def packs(self) -> list[str]:
        """The names of all packs that can be read."""
        return list(self._packs)

    def size(self, pack: str) -> int:
        """Bytes of a pack's file."""
        return self._packs[pack].size

    def part(self, pack: str, copies: Sequence[Copy]) -> int:
        """Bytes that some of a pack's copies take of it."""
        there = self._packs[pack]
        around = there.size - sum(copy.size for _, copy in there.copies)
        return sum(copy.size for copy in copies) + around * len(copies) // len(there.copies)

    def unsynced(self, pack: str) -> bool:
        """Whether a pack was written without a sync."""
        return self._packs[pack].unsynced

    def held(self, pack: str) -> list[tuple[str, Copy]]:
        """What a pack holds, in its order."""
        return self._packs[pack].copies


def settle(inventory: Inventory, ids: Iterable[str], whole: Set[str]) -> tuple[dict[str, Copy], list[str]]:
    """The copy to go by of each object and of each base that these need, and what there is no way to.

    For ids of `whole` that is a copy as it is, if there is one; else the smallest whose bases lead to one that stands
    alone, by way of copies that are gone by themselves: nothing that is settled ever leads to itself.
    """
    settled: dict[str, tuple[Copy, int]] = {}  # with its depth

    def find(id: str, path: tuple[str, ...]) -> int | None:
        """The depth at which an id is settled, or None."""
        if id in settled:
            return settled[id][1]
        if id in path or len(path) > MAX_DEPTH:
            return None
        copies = inventory.copies.get(id, [])
        for copy in sorted(copies, key=lambda copy: copy.codec != RAW) if id in whole else copies:
            under = -1 if copy.base is None else find(copy.base, (*path, id))
            if under is not None and under < MAX_DEPTH:
                settled[id] = copy, under + 1
                return under + 1
        return None

    lost = [id for id in sorted(ids) if find(id, ()) is None]
    return {id: copy for id, (copy, _) in settled.items()}, lost


def by_pack(settled: Mapping[str, Copy]) -> dict[str, list[tuple[str, Copy]]]:
    """What is gone by in each pack, in the pack's order."""
    found: dict[str, list[tuple[str, Copy]]] = {}
    for id, copy in settled.items():
        found.setdefault(copy.pack, []).append((id, copy))
    return {pack: sorted(held, key=lambda item: item[1].number) for pack, held in found.items()}
