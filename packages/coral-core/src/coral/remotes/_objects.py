"""The commits, trees and states of the other side: many are read in one request, and checked against their ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coral._digest import object_id
from coral.errors import CorruptObject, MissingObject
from coral.maintenance._inventory import Copy
from coral.remotes._side import Side, each_at_once
from coral.store import Store
from coral.store._pack import RAW, Directory, Entry, path_of

__all__ = ["RemoteObjects", "runs"]

_GAP = 16 << 10  # bytes that are read and thrown away rather than asking once more
_RUN = 8 << 20  # bytes asked for at once


class RemoteObjects:
    """Reads objects from here, where they are here, and else from the other side."""

    def __init__(self, ours: Store, side: Side) -> None:
        self._ours = ours
        self._side = side
        self._loaded: dict[str, bytes] = {}

    def read(self, kind: str, id: str) -> bytes:
        """The bytes of an object. MissingObject where neither side has it."""
        if id not in self._loaded:
            try:
                return self._ours.read_object(kind, id)
            except MissingObject:
                self.load(kind, [id])
        if id not in self._loaded:
            raise MissingObject(
                f"{kind} {id[:12]} is not at {self._side.url}, which leads to it: run fsck there, or push(repair=True) "
                "to it from where it is"
            )
        return self._loaded[id]

    def load(self, kind: str, ids: Iterable[str] | None = None) -> None:
        """Read objects of a kind that are not here, side by side; all of them where no ids are given."""
        wanted = None if ids is None else set(ids)
        entries: dict[str, list[Entry]] = {}
        seen = set(self._loaded)
        for pack in self._side.inventory.packs():
            for id, copy in self._side.inventory.held(pack):
                if id not in seen and (wanted is None or id in wanted) and not self._here(id):
                    entry = self.entry(copy)
                    if entry.kind == kind and entry.codec == RAW:
                        seen.add(id)
                        entries.setdefault(pack, []).append(entry)
        jobs = [(pack, run) for pack, some in entries.items() for run in runs(some)]
        for found in each_at_once(lambda job: self._read_run(*job), jobs):
            self._loaded |= found

    def entry(self, copy: Copy) -> Entry:
        """The entry of a copy over there, checked to be consistent in itself."""
        return self.directory(copy.pack).checked(copy.number)

    def directory(self, pack: str) -> Directory:
        """What a pack over there holds."""
        found = self._side.store.index.directory(pack)
        if found is None:
            raise MissingObject(f"{path_of(pack)} of {self._side.url} is gone: try again")
        return found

    def _here(self, id: str) -> bool:
        return bool(self._ours.index.known(id))

    def _read_run(self, pack: str, run: list[Entry]) -> dict[str, bytes]:
        start, end = run[0].offset, max(entry.offset + entry.size for entry in run)
        data = self._side.fs.remote.read_all(path_of(pack), start, end - start)
        found = {}
        for entry in run:
            payload = data[entry.offset - start : entry.offset - start + entry.size]
            if object_id(entry.kind, payload) != entry.id:
                raise CorruptObject(
                    f"{entry.kind} {entry.id[:12]} came from {self._side.url} with other bytes than were stored: try "
                    "again, and run fsck there",
                    path=path_of(pack),
                )
            found[entry.id] = payload
        return found


def runs(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries of one pack in runs that are near each other, and not too much to ask for at once."""
    run: list[Entry] = []
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if run and (entry.offset > end + _GAP or max(end, entry.offset + entry.size) - run[0].offset > _RUN):
            yield run
            run, end = [], 0
        run.append(entry)
        end = max(end, entry.offset + entry.size)
    if run:
        yield run
