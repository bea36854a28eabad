"""A remote as another copy of what is damaged here: what it has whole is brought here, checked as what is fetched."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from coral.errors import CoralError, CorruptObject, MissingObject
from coral.maintenance._fsck import Examined
from coral.maintenance._inventory import Copy, settle
from coral.remotes._errors import remote_errors
from coral.remotes._objects import RemoteObjects
from coral.remotes._receiving import receive
from coral.remotes._side import Side
from coral.store import Operation, Store
from coral.store._files import LIMIT

__all__ = ["RemoteSource"]

_log = logging.getLogger("coral")


class RemoteSource:
    """One remote, asked for nothing before it is needed."""

    def __init__(self, ours: Store, side: Side) -> None:
        self._ours = ours
        self._side = side
        self._looked = False
        self.url = side.url

    def bring(self, operation: Operation, ids: Iterable[str], have: Examined) -> set[str]:
        """Bring objects here, of those that it has whole, with what they are differences from; the ids of all.

        What is damaged over there is left out; the rest comes all the same.
        """
        self._look()
        wanted = [id for id in ids if id in self._side.inventory.copies]
        copies = self._settled(wanted, have)
        if not copies:
            return set()
        try:
            return self._receive(operation, copies)
        except CorruptObject as error:
            _log.warning("%s: %s: what is whole there is taken one by one", self.url, error)
        came: set[str] = set()
        for id in wanted:
            came |= self._bring_one(operation, id, have, came)
        return came

    def _bring_one(self, operation: Operation, id: str, have: Examined, came: set[str]) -> set[str]:
        while id not in came:
            copies = {each: copy for each, copy in self._settled([id], have).items() if each not in came}
            if id not in copies:
                break
            try:
                return self._receive(operation, copies)
            except CorruptObject:  # another of its packs may hold it whole
                self._side.inventory.refuse(id, copies[id])
        return set()

    def _settled(self, ids: list[str], have: Examined) -> dict[str, Copy]:
        found, _ = settle(self._side.inventory, ids, frozenset())
        return {id: copy for id, copy in found.items() if id in ids or not have.found.has(id)}

    def _receive(self, operation: Operation, copies: Mapping[str, Copy]) -> set[str]:
        try:
            receive(self._ours, self._side, operation, copies, RemoteObjects(self._ours, self._side), None)
        except (EOFError, FileNotFoundError) as error:
            raise MissingObject(f"{self.url} is shorter than it says: {error}") from error
        except OSError as error:
            if isinstance(error, CoralError) or not str(error.filename or "").startswith(self.url):
                raise  # it is of this side
            with remote_errors(self.url, "reading"):
                raise
        return set(copies)

    def tips(self, kind: str) -> Mapping[str, str]:
        """The commits that its branches ("heads") or tags ("tags") name."""
        with remote_errors(self.url, "asking"), self._side.fs.listed("refs"):
            self._side.check()
            return {name: entry.value for name, entry in self._side.tips(kind).items() if entry.value}

    def small(self, path: str) -> bytes:
        """A small file that never changes, as it is there. FileNotFoundError where there is none."""
        with remote_errors(self.url, "asking"):
            return self._side.fs.read(path, LIMIT)

    def _look(self) -> None:
        if not self._looked:
            with remote_errors(self.url, "asking"):
                self._side.check()
                self._side.look()
            self._looked = True
