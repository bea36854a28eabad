"""The store: objects and tensors by id, in packs that are put and never changed."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal, TypeVar, get_args

from coral._fork import renewed_by_fork
from coral.errors import ConfigError, CorruptObject, MissingObject, StorageError
from coral.filesystem import FileSystem, ReadFile
from coral.objects import Commit, Note, decode_commit
from coral.store import _notes, _refs
from coral.store._copies import Copies
from coral.store._files import temporary
from coral.store._index import Index
from coral.store._intents import Operation
from coral.store._pack import UNSYNCED, Directory, directory_of, path_of, read_directory, read_object
from coral.store._pack_writer import PackWriter

Durability = Literal["full", "batch", "fast"]
"""full: what is acknowledged survives a loss of power. batch: once it is synced, every 8 commits or when asked.
fast: when the operating system gets to it; a killed process still loses nothing."""

_log = logging.getLogger("coral")

_BATCH = 8
_LOOKS = 3  # for what others may be moving about
_DIRECTORIES = 256  # parsed directories that are kept
_T = TypeVar("_T")


class Store:
    """Everything in a repository but its porcelain: packs, their index, refs, notes."""

    def __init__(self, fs: FileSystem, durability: Durability = "full") -> None:
        if durability not in get_args(Durability):
            raise ConfigError(f"durability is one of {', '.join(get_args(Durability))}, not {durability!r}")
        self.fs = fs
        self.durability: Durability = durability
        self.index = Index(fs, durable=durability == "full")
        self._directories: OrderedDict[str, Directory] = OrderedDict()
        self._unsynced: list[tuple[str, str]] = []  # (file, its folder), oldest first
        self._batched = 0
        self._synced: set[str] = set()  # packs that are known to be durable
        self._sync_failed: OSError | None = None
        self.after_fork()
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Have a lock that no thread holds."""
        self._lock = threading.RLock()

    @property
    def durable(self) -> bool:
        """Whether each write is synced before it is acknowledged."""
        return self.durability == "full"

    # -- packs ------------------------------------------------------------------------------------------------------

    def write_pack(
        self,
        fill: Callable[[PackWriter], _T],
        operation: Operation,
        *,
        durable: bool = False,
        check: Callable[[Directory, ReadFile], None] | None = None,
    ) -> tuple[_T, Directory]:
        """Write one pack with what `fill` puts into it, and put it into place; returns what `fill` returned.

        The operation announces it first: until something leads to it, it would be taken for garbage. `durable` syncs
        it even where commits are not. `check` reads it back before anybody else can; what it raises undoes the pack.
        """
        durable = durable or self.durable
        with temporary(self.fs) as (path, file):
            writer = PackWriter(file, durable=durable)
            try:
                result = fill(writer)
                directory = writer.finish()
                if check is not None:
                    writer.begin_sync()  # while it is read back
                    written = self.fs.open(path)
                    try:
                        check(directory, written)
                    finally:
                        written.close()
                writer.wait()
            except BaseException:
                writer.abandon()
                raise
            if durable:
                file.fsync()
            file.close()
            operation.needs([directory.name])
            self.fs.replace(path, path_of(directory.name))
            if durable:
                self.fs.fsync_dir("packs")
        if not durable:
            self.written(path_of(directory.name))
        self.index.add(directory)
        return result, directory

    def ensure_synced(self, packs: Iterable[Directory]) -> set[str]:
        """Make packs that were written without a sync as durable as what is about to build on them; see sync_packs."""
        return self.sync_packs({pack.name: bool(pack.flags & UNSYNCED) for pack in packs}) if self.durable else set()

    def sync_packs(self, packs: Mapping[str, bool]) -> set[str]:
        """Make those packs durable that were written without a sync, as their values say; those that are gone."""
        gone = set()
        with self._lock, self._syncing():
            names = {name: unsynced for name, unsynced in packs.items() if name not in self._synced}
            for name, unsynced in names.items():
                if unsynced:
                    try:
                        self.fs.fsync_file(path_of(name))
                    except FileNotFoundError:
                        gone.add(name)
            if any(names.values()):
                self.fs.fsync_dir("packs")
            self._synced |= names.keys() - gone
        return gone

    def ensure_history_synced(self) -> None:
        """Sync every pack that was written without: something durable is about to name what lies in them."""
        if not self.durable:
            return
        packs = []
        for file in self.fs.list("packs"):
            name = file.removesuffix(".pack")
            if name not in self._synced:
                with suppress(CorruptObject, FileNotFoundError):  # fsck's to name
                    packs.append(read_directory(self.fs, name))
        self.ensure_synced(packs)

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        """A sync that failed is not tried again: the system takes the pages for written then, and they are not."""
        if self._sync_failed is not None:
            raise StorageError(
                f"a sync failed earlier ({self._sync_failed}): what was written before it may not be durable. Run "
                "fsck, and open the repository anew to go on."
            ) from self._sync_failed
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            self._sync_failed = error
            raise

    def open_pack(self, name: str) -> ReadFile:
        """Open a pack, in the trash too: what is being collected stays readable until it is gone."""
        looks = 0
        while True:
            try:
                return self.fs.open(path_of(name))
            except FileNotFoundError:
                for folder in self.fs.list("trash"):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        return self.fs.open(f"trash/{folder}/{name}.pack")
                looks += 1
                if looks == _LOOKS:  # between these, it may have been put back, or condemned once more
                    raise

    def directory(self, pack: str, file: ReadFile) -> Directory:
        """The directory of an open pack, from memory where it was read before."""
        found = self.index.directory(pack)
        if found is not None:
            return found
        with self._lock:
            found = self._directories.pop(pack, None) or directory_of(file, pack)
            self._directories[pack] = found  # the last to go
            if len(self._directories) > _DIRECTORIES:
                self._directories.popitem(last=False)
            return found

    @contextmanager
    def copies(self) -> Iterator[Copies]:
        """A place to open packs in, closed at the end of the block."""
        found = Copies(self)
        try:
            yield found
        finally:
            found.close()

    # -- objects ----------------------------------------------------------------------------------------------------

    def read_object(self, kind: str, id: str) -> bytes:
        """The bytes of a tree, state or commit. CorruptObject if no copy is whole, MissingObject if there is none.

        OSError where one could not be read: it may be whole.
        """
        what = f"{kind} {id[:12]}"
        problem: CorruptObject | OSError | None = None
        with self.copies() as copies:
            for stored in copies.all(id):
                if stored.entry.kind != kind:
                    raise CorruptObject(f"{id[:12]} is a {stored.entry.kind}, not a {kind}")
                try:
                    return read_object(stored.file, stored.entry)
                except OSError as error:
                    problem = error
                except (CorruptObject, EOFError) as error:
                    problem = problem or CorruptObject(f"{what} is damaged in {path_of(stored.pack.name)}: {error}")
            raise (
                (problem if isinstance(problem, OSError) else copies.unreadable)
                or problem
                or copies.refused.get(id)
                or MissingObject(f"{what} is missing: no pack holds it. Run fsck.")
            )

    def read_commit(self, id: str) -> Commit:
        """A commit with its notes merged in."""
        return decode_commit(self.read_object("commit", id), id).annotated(self.read_notes(id))

    def read_notes(self, commit: str) -> list[Note]:
        """The notes on a commit, in no order. A damaged one is warned of: the commit itself is whole."""
        found = []
        for note in _notes.read(self.fs, commit):
            if isinstance(note, Note):
                found.append(note)
            else:
                _log.warning("%s: a note on commit %s is left out. Run fsck.", note, commit[:12])
        return found

    def move_ref(
        self, folder: str, value: str | None, *, after: _refs.RefEntry | None, why: str, run: str | None = None
    ) -> None:
        """Give a ref its next value; Conflict if `after` is no longer its newest entry."""
        entry = _refs.append(self.fs, folder, value, after=after, why=why, durable=self.durable, run=run)
        self.written(f"{folder}/{entry.seq:010d}")

    def ensure_ref_durable(self, folder: str) -> None:
        """Make sure of a ref that is where it should be already, before that is acknowledged."""
        if self.durable:
            _refs.ensure_durable(self.fs, folder)

    def add_note(self, commit: str, note: Note) -> None:
        """Add what became known of a commit later."""
        self.written(_notes.add(self.fs, commit, note, durable=self.durable))

    # -- durability -------------------------------------------------------------------------------------------------

    def written(self, path: str) -> None:
        """Remember a file that was put into place without a sync, for the next `sync` of a batch."""
        if self.durability == "batch":
            with self._lock:
                self._unsynced.append((path, path.rpartition("/")[0]))

    def acknowledge(self) -> None:
        """Count an operation of a batch; sync when there are enough."""
        with self._lock:
            self._batched += 1
            if self._batched >= _BATCH:
                self.sync()

    def sync(self) -> None:
        """Make durable what a batch has written so far, packs before the refs that name them."""
        with self._lock, self._syncing():
            unsynced, self._unsynced, self._batched = self._unsynced, [], 0
            for path, _ in unsynced:
                with suppress(FileNotFoundError):  # folded, or superseded, by something durable
                    self.fs.fsync_file(path)
            folders = {folder for _, folder in unsynced}
            folders |= {folder.rpartition("/")[0] for folder in folders if folder.count("/") > 0}
            for folder in sorted(folders, key=lambda folder: (folder != "packs", folder)):
                self.fs.fsync_dir(folder)
