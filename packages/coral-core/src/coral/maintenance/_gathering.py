"""Gathering what a repair needs: objects that are whole in damaged packs, in the quarantine, in other copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from coral.errors import CoralError, CorruptObject, MissingExtra, NewerFormat
from coral.filesystem import ReadFile
from coral.maintenance._fsck import Examined
from coral.maintenance._quarantine import quarantined_packs
from coral.maintenance._salvage import find_directory, is_intact
from coral.objects import Note, State, decode_commit, decode_tree
from coral.store import Operation, Store
from coral.store._files import unseal
from coral.store._pack import Directory, Entry, pieces
from coral.store._pack_writer import PackWriter
from coral.store._partial import partial_names

__all__ = ["Gathered", "Source"]


class Source(Protocol):
    """Another copy of the repository. What it gives has been checked; CoralError where it cannot be asked."""

    url: str

    def bring(self, operation: Operation, ids: Iterable[str], have: Examined) -> set[str]:
        """Bring objects here, of those that it has whole; their ids, and those of what they are differences from."""
        ...

    def tips(self, kind: str) -> Mapping[str, str]:
        """The commits that its refs of a kind ("heads", "tags") name."""
        ...

    def small(self, path: str) -> bytes:
        """A small file that never changes. FileNotFoundError where there is none."""
        ...


class Gathered:
    """What a repair has brought, in packs of its own; `actions` says from where."""

    def __init__(self, store: Store, operation: Operation, sources: Sequence[Source], actions: list[str]) -> None:
        self._store = store
        self._fs = store.fs
        self._operation = operation
        self._sources = list(sources)
        self._actions = actions
        self._came: set[str] = set()
        self._differences: set[str] = set()  # that were rescued: of use only with their bases

    def __len__(self) -> int:
        """How many objects came."""
        return len(self._came | self._differences)

    def rescue(self, path: str, name: str, wanted: Callable[[Entry], bool] | None = None) -> str | None:
        """Write what is whole in a damaged pack, and wanted, into a new one; that one's name, if any."""
        try:
            file = self._fs.open(path)
        except CorruptObject:
            return None
        try:
            directory = find_directory(file, name)
            entries = [] if directory is None else [*_intact(directory, file, wanted)]
            if directory is None or not entries:
                return None

            def fill(writer: PackWriter) -> None:
                for entry in entries:
                    if entry.id not in writer:
                        writer.add_stored(entry, pieces(file, entry))

            _, made = self._store.write_pack(fill, self._operation, durable=True)
        except (NewerFormat, EOFError):
            return None
        except CorruptObject as error:  # it was whole a moment ago
            self._actions.append(f"{path}: nothing could be written anew: {error}")
            return None
        finally:
            file.close()
        self._actions.append(f"{path}: {len(entries)} of {len(directory)} objects are whole, and were written anew")
        self._came |= {entry.id for entry in entries if entry.base is None}
        self._differences |= {entry.id for entry in entries if entry.base is not None}
        return made.name

    def bring(self, ids: Iterable[str], examined: Examined) -> None:
        """Look for what is lost, and then for what that leads to and is lost, too."""
        wanted = {id for id in ids if not self._has(id, examined)}
        while wanted:
            self._from_quarantine(wanted, examined)
            for source in list(self._sources):
                if left := {id for id in wanted if not self._has(id, examined)}:
                    try:
                        came = source.bring(self._operation, left, examined)
                    except CoralError as error:
                        self._refuse(source, error)
                        continue
                    self._came |= came
                    if came:
                        self._actions.append(f"{source.url}: {len(came)} objects restored")
            new = [id for id in wanted if self._has(id, examined)]
            wanted = {id for each in new for id in self._leads_to(each, examined) if not self._has(id, examined)}

    def fetch(self, id: str, examined: Examined) -> bool:
        """Make sure of a commit; whether it is here."""
        self.bring([id], examined)
        try:
            self._store.read_object("commit", id)
        except CorruptObject:
            return False
        return True

    def tips(self, kind: str) -> Iterator[Mapping[str, str]]:
        """What each other copy's refs of a kind name."""
        for source in list(self._sources):
            try:
                yield source.tips(kind)
            except CoralError as error:
                self._refuse(source, error)

    def note(self, path: str, commit: str) -> bytes | None:
        """A note on a commit as another copy has it, whole."""
        for source in list(self._sources):
            try:
                content = source.small(path)
                Note.decode(unseal(content, path), commit, path)
                return content
            except (FileNotFoundError, CorruptObject):
                continue
            except CoralError as error:
                self._refuse(source, error)
        return None

    def _from_quarantine(self, wanted: set[str], examined: Examined) -> None:
        def lacks(entry: Entry) -> bool:
            base = entry.base
            if entry.id not in left or (base and base not in wanted and not self._has(base, examined)):
                return False
            with self._store.copies() as copies:
                return not any(
                    (stored.entry.codec, stored.entry.base) == (entry.codec, entry.base) and is_intact(*stored)
                    for stored in copies.all(entry.id)
                )

        for path, name in [*quarantined_packs(self._fs)]:
            if left := {id for id in wanted if not self._has(id, examined)}:
                with suppress(FileNotFoundError):
                    self.rescue(path, name, lacks)

    def _has(self, id: str, examined: Examined) -> bool:
        if id in self._differences - self._came and self._opens(id):
            self._came.add(id)
        return id in self._came or examined.found.has(id)

    def _opens(self, id: str) -> bool:
        """Whether some copy of a tensor, with what it is a difference from, gives what was stored."""
        with self._store.copies() as copies, suppress(MissingExtra):
            for chain in copies.chains(id):
                with suppress(CorruptObject, EOFError, OSError):
                    chain.verify()
                    return True
        return False

    def _leads_to(self, id: str, examined: Examined) -> Iterator[str]:
        """What an object that came names."""
        with self._store.copies() as copies:
            stored = copies.known(id) or next(copies.all(id), None)
        kind = stored.entry.kind if stored else "tensor"
        if kind == "tensor":
            return
        data = self._store.read_object(kind, id)
        if kind == "commit":
            commit = decode_commit(data, id)
            yield from commit.parents
            if id not in examined.found.pruned:
                yield commit.tree
                yield from [commit.state] if commit.state else []
                yield from examined.found.later.get(id, ())
        elif not self._partial():
            tree = decode_tree(data, kind) if kind == "tree" else State.decode(data, kind).tensors
            yield from (entry.id for entry in tree.values())

    def _partial(self) -> bool:
        try:
            return partial_names(self._fs) is not None
        except CorruptObject:
            return True

    def _refuse(self, source: Source, error: CoralError) -> None:
        """Ask a source no more."""
        self._actions.append(f"{source.url} could not be asked: {error}")
        self._sources.remove(source)


def _intact(directory: Directory, file: ReadFile, wanted: Callable[[Entry], bool] | None) -> Iterator[Entry]:
    for number in range(len(directory)):
        with suppress(CorruptObject):
            entry = directory.checked(number)
            if (wanted is None or wanted(entry)) and is_intact(directory, file, entry):
                yield entry
