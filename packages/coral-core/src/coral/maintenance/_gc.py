"""gc: give back the space of what nothing leads to any more, and of copies that better ones stand for.

1. what collections left in the trash whose process is gone is put back: it is looked at like anything else
2. mark what is alive; settle which copy of each object to go by; what is to stand for another copy is read first
3. write what lives in packs that are mostly dead into a new one, durably
4. move packs that nothing is gone by into a trash folder of this collection's own; readers look there, too
5. mark and settle again: what has come alive meanwhile is put back; then the trash is emptied

No lock is needed. Whatever an operation relies on it has announced (`coral.store.intent`) before it looks whether it is
there; so either the second marking sees that, or the operation sees that it is gone, and writes it itself. A pack has
its new name durably before it loses its old one.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from coral._digest import pool
from coral._fork import renewed_by_fork
from coral.errors import CorruptObject, MissingObject
from coral.maintenance._duplicates import unfit
from coral.maintenance._inventory import Copy, Inventory, by_pack, settle
from coral.maintenance._marking import Marker, Marks
from coral.maintenance._trash import Trash
from coral.store import Operation, Store, _refs, intent, intents
from coral.store._files import filesystem_time, tag_of
from coral.store._intents import FOREIGN_AGE
from coral.store._pack import Directory, directory_of, path_of, pieces
from coral.store._pack_writer import PackWriter
from coral.store._partial import partial_names

__all__ = ["Collected", "Collector"]

_log = logging.getLogger("coral")

_P = ParamSpec("_P")
_T = TypeVar("_T")

SHARED_GRACE = 14 * 86400.0
"""Seconds for which a pack that nothing leads to is kept where other machines may be about to make use of it."""
_DEAD = 0.1  # the part of a pack that has to be dead for the rest to be worth moving
_SMALL, _MANY = 1 << 20, 16  # so many packs of fewer bytes are put together
_LOOKS = 2  # more, where something is missing that others may be about to put back
_NOT_A_FILE = (FileNotFoundError, IsADirectoryError, PermissionError)  # as unlink says it, here or there
_FULL = 256 << 20  # bytes after which what is moved goes on in another pack


@dataclass(slots=True)
class Collected:
    """What a collection did. Sizes in bytes."""

    packs_removed: int = 0
    packs_written: int = 0
    bytes_freed: int = 0  # of packs removed, less those written
    packs_restored: int = 0  # came alive while it ran

    def __str__(self) -> str:
        return f"{self.bytes_freed:,} bytes freed: {self.packs_removed} packs removed, {self.packs_written} written"


class _Nothing(Exception):
    """There is nothing left to move."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which packs go, and what has to be moved out of them first."""

    condemned: list[str]
    moved: dict[str, list[tuple[str, Copy]]]


def _locked(method: Callable[Concatenate[Collector, _P], _T]) -> Callable[Concatenate[Collector, _P], _T]:
    def call(self: Collector, /, *args: _P.args, **options: _P.kwargs) -> _T:
        with self.lock:
            return method(self, *args, **options)

    return functools.update_wrapper(call, method)


class Collector:
    """Collects garbage in a store, time and again: what it has read it remembers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.after_fork()
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Remember nothing yet."""
        self.marker = Marker(self.store)
        self.inventory = Inventory(self.store)
        self.lock = threading.RLock()  # what is remembered is not for two threads at a time
        self.verified: set[str] = set()  # packs that a repack has just read back
        self._candidates: list[str] = []  # packs that were there before the last marking

    @_locked
    def survey(self) -> tuple[Marks, dict[str, Copy]]:
        """What is alive, and the copy to go by of each object.

        CorruptObject if a ref or the history cannot be read, MissingObject if there is no way to something that is
        alive: then nothing can be said to be dead.
        """
        marks, settled, lost = self._look()
        for _ in range(_LOOKS):
            if lost:
                self._recall(lost)
                marks, settled, lost = self._look()
        if lost := [id for id in lost if id not in marks.maybe]:
            raise _missing(lost)
        return marks, settled

    def _recall(self, lost: list[str]) -> None:
        """Give what has come alive in a trash, also one that is not this collection's, its name back at once."""
        wanted = set(lost)
        for name in self.store.fs.list("trash"):
            trash = Trash(self.store.fs, name)
            for pack in trash.packs():
                with suppress(FileNotFoundError):
                    if wanted & trash.ids(self.store, pack):
                        trash.recall([pack])

    @_locked
    def reclaimable(self) -> int:
        """Bytes that a collection would free, but for rounding: what a pack's directory takes it takes by the entry.

        Nothing is read for it: a collection that finds damage keeps other copies, and frees less.
        """
        marks, settled = self.survey()
        plan = self._plan(marks, settled, 0.0)
        moved = sum(self.inventory.part(pack, [copy for _, copy in held]) for pack, held in plan.moved.items())
        return sum(map(self.inventory.size, plan.condemned)) - moved

    def _look(self) -> tuple[Marks, dict[str, Copy], list[str]]:
        # Packs are listed before anything is marked: what is published meanwhile is not taken for garbage.
        self.inventory.refresh()
        self._candidates = self.inventory.packs()
        try:
            marks = self.marker.mark()
        except MissingObject:  # pruned, and freed, between its notes and its tree
            marks = self.marker.mark()
        self.inventory.refresh()
        settled, lost = settle(self.inventory, marks.ids(), marks.whole)
        if lost and partial_names(self.store.fs) is not None:  # they were never fetched
            marks.maybe |= marks.tensors.intersection(lost)
        return marks, settled, lost

    @_locked
    def collect(self, grace: float | None = None) -> Collected:
        """Free what is dead. Packs that nothing leads to stay for `grace` seconds.

        By default that is 0 on a filesystem of this machine's, 14 days on one that others share.
        """
        fs, done = self.store.fs, Collected()
        if grace is None:
            grace = SHARED_GRACE if fs.shared() else 0.0
        with intent(fs, "gc", []) as operation:
            self._put_back_abandoned(operation.name)
            marks, settled, plan = self._decide(grace)
            if plan.condemned:
                self._make_durable(marks, settled)
                written = set()
                for directory in self._move(plan, operation):
                    written.add(directory.name)
                    if directory.name not in self.inventory:
                        done.packs_written += 1
                        with suppress(FileNotFoundError):  # it is put back in a moment: another collection has it
                            done.bytes_freed -= fs.stat(path_of(directory.name)).size
                trash = Trash(fs, operation.name)
                try:
                    # one that died after it had moved the same left a pack of the same name
                    trash.take([pack for pack in plan.condemned if pack not in written])
                    done.packs_restored = self._restore_living(trash)
                except BaseException:
                    trash.put_back(trash.packs())
                    raise
                packs = trash.packs()
                for pack, size in zip(packs, pool().map(trash.remove, packs), strict=True):
                    done.packs_removed += 1
                    done.bytes_freed += size
                    self.store.index.forget(pack)
                trash.close()
            self._sweep_up()
        with suppress(OSError, CorruptObject):  # only derived
            self.store.index.trim()
        if done.packs_removed:
            _log.info("%s: %s", fs.root, done)
        return done

    def _decide(self, grace: float) -> tuple[Marks, dict[str, Copy], _Plan]:
        """What is to go, such that all that stands for it has been read: a copy that is damaged stands for nothing."""
        while True:
            marks, settled = self.survey()
            plan = self._plan(marks, settled, grace)
            others = (item for pack in plan.condemned for item in self.inventory.held(pack))
            ids = {id for id, copy in others if id in settled and settled[id] != copy}
            # what is moved is read then: where it is damaged, another copy has to be known by now
            ids |= {id for held in plan.moved.values() for id, _ in held if len(self.inventory.copies[id]) > 1}
            bases = {base for id in ids for base in _bases(settled, id) if len(self.inventory.copies[base]) > 1}
            ids |= bases  # a copy may be whole by way of others of its bases than those that stay
            wrong = list(unfit(self.store, {id: settled[id] for id in ids if settled[id].pack not in self.verified}))
            if not wrong:
                return marks, settled, plan
            for id, copy in wrong:
                _log.warning("%s: %s in %s is damaged: another copy is kept", self.store.fs.root, id[:12], copy.pack)
                self.inventory.refuse(id, copy)

    def _put_back_abandoned(self, own: str) -> None:
        folders = self.store.fs.list("trash")  # before the intents: each has one before it has a folder
        alive = {found.name for found in intents(self.store.fs) if found.alive} | {own}
        for name in folders:
            if name not in alive:
                trash = Trash(self.store.fs, name)
                trash.put_back(trash.packs())
                trash.close()

    def _plan(self, marks: Marks, settled: dict[str, Copy], grace: float) -> _Plan:
        fs, needed = self.store.fs, by_pack(settled)
        condemned: list[str] = []
        moved: dict[str, list[tuple[str, Copy]]] = {}
        small: list[str] = []
        now = filesystem_time(fs) if grace else 0.0
        for pack in self._candidates:
            if pack in marks.packs or pack not in self.inventory:
                continue
            size, held = self.inventory.size(pack), needed.get(pack, [])
            if not held:
                published = any(id in marks for id, _ in self.inventory.held(pack))
                if published or not grace or now - fs.stat(path_of(pack)).mtime > grace:
                    condemned.append(pack)
                continue
            dead = sum(copy.size for _, copy in self.inventory.held(pack)) - sum(copy.size for _, copy in held)
            if dead > _DEAD * size:
                moved[pack] = held
            elif size < _SMALL:
                small.append(pack)
        if len(small) + sum(self.inventory.size(pack) < _SMALL for pack in moved) >= _MANY:
            moved |= {pack: needed[pack] for pack in small}
        return _Plan([*condemned, *moved], moved)

    def _make_durable(self, marks: Marks, settled: dict[str, Copy]) -> None:
        """What makes things dead, and the copies that stand for others, must outlive what is about to go."""
        fs = self.store.fs
        packs = {copy.pack for copy in settled.values()}
        self.store.sync_packs({pack: self.inventory.unsynced(pack) for pack in packs})
        fs.fsync_dir("packs")  # who gave one its name may have died before it did so
        pruned = [c.id for c in marks.commits if c.pruned and c.tree in self.inventory.copies]  # not freed long ago
        for id in pruned:
            if id in marks.unsynced_notes:
                for name in fs.list(f"notes/{id}"):
                    fs.fsync_file(f"notes/{id}/{name}")
            fs.fsync_dir(f"notes/{id}")
        if pruned:
            fs.fsync_dir("notes")
        for folder in marks.unsynced_refs:
            _refs.ensure_durable(fs, folder)
        for folder in marks.refs:  # who gave an entry its name may have died before it was durable
            fs.fsync_dir(folder)

    def _move(self, plan: _Plan, operation: Operation) -> Iterator[Directory]:
        """Write what lives in packs that go into new ones; the settled copies, in the form that they have."""
        waiting = list(plan.moved.items())

        def fill(writer: PackWriter) -> None:
            while waiting and writer.size < _FULL:
                pack, held = waiting.pop()
                try:
                    file = self.store.open_pack(pack)
                except FileNotFoundError:  # another collection has moved it
                    continue
                try:
                    directory = directory_of(file, pack)
                    for id, copy in held:
                        if id not in writer:
                            entry = directory.checked(copy.number)
                            writer.add_stored(entry, pieces(file, entry))
                finally:
                    file.close()
            if not any(id in writer for held in plan.moved.values() for id, _ in held):
                raise _Nothing

        while waiting:
            with suppress(_Nothing):
                yield self.store.write_pack(fill, operation, durable=True)[1]

    def _restore_living(self, trash: Trash) -> int:
        """Put back what has come alive since it was condemned; how many packs that were."""
        restored = 0
        while True:
            marks, _, lost = self._look()
            wanted = set(lost)
            living = [
                pack
                for pack in trash.packs()
                if pack in marks.packs or (wanted and wanted & trash.ids(self.store, pack))
            ]
            if not living:
                if wanted <= marks.maybe:
                    return restored
                self.survey()  # another collection may be putting it back
                continue
            trash.put_back(living)
            restored += len(living)

    def _sweep_up(self) -> None:
        """Remove what processes that are gone were writing, and what they had announced."""
        fs = self.store.fs
        host, boot, _ = tag_of(fs.origin()).split("-")
        now: float | None = None
        for name in fs.list("tmp"):
            with suppress(*_NOT_A_FILE):
                match name.split("-"):
                    case [_, its_host, its_boot, pid] if its_host == host and pid.isdecimal():
                        origin = fs.origin()._replace(pid=int(pid))
                        if its_boot != boot or not fs.alive(origin):
                            fs.unlink(f"tmp/{name}")
                    case _:
                        now = filesystem_time(fs) if now is None else now
                        if now - fs.stat(f"tmp/{name}").mtime > FOREIGN_AGE:
                            fs.unlink(f"tmp/{name}")
        there, known = fs.list("intents"), {found.name: found.alive for found in intents(fs)}
        for name in there:
            with suppress(*_NOT_A_FILE):
                if name not in known:  # torn by a loss of power, or being written
                    now = filesystem_time(fs) if now is None else now
                if not known.get(name, now is not None and now - fs.stat(f"intents/{name}").mtime <= FOREIGN_AGE):
                    fs.unlink(f"intents/{name}")


def _bases(settled: dict[str, Copy], id: str) -> Iterator[str]:
    """The ids of what a settled copy is a difference from, directly or not."""
    while base := settled[id].base:
        yield base
        id = base


def _missing(lost: list[str]) -> MissingObject:
    return MissingObject(
        f"{len(lost)} objects that refs lead to are in no pack that can be read, as {lost[0][:12]}: nothing is "
        "collected. Run fsck."
    )
