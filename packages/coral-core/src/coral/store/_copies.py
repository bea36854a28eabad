"""Finding copies of objects in packs, and what each copy needs to be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from coral._unreadable import is_unreadable
from coral.delta import Same
from coral.errors import CorruptObject, MissingExtra, MissingObject, NewerFormat
from coral.filesystem import FileSystem, ReadFile
from coral.objects import is_id
from coral.store._chain import Chain, Stored
from coral.store._index import Index
from coral.store._pack import Directory, Entry, path_of

_LOOKS = 3  # for what others may be moving about
_MOST_LOOKS = 1000  # for ways to get at one tensor
_MAX_DEPTH = 16  # differences on differences that are followed; repack makes 2 at most


class Packs(Protocol):
    """What is needed of a store."""

    fs: FileSystem
    index: Index

    def open_pack(self, name: str) -> ReadFile:
        """Open a pack, in the trash too."""
        ...

    def directory(self, pack: str, file: ReadFile) -> Directory:
        """The directory of an open pack."""
        ...


class Copies:
    """Packs that are held open, so that what was found in them stays readable whatever happens to their names."""

    def __init__(self, store: Packs) -> None:
        self._store = store
        self._open: dict[str, tuple[ReadFile, Directory] | None] = {}
        self.refused: dict[str, CorruptObject | NewerFormat] = {}
        """Why a copy of an object is left out: its entry lies, or is a newer coral's."""
        self._passed_by: set[tuple[str, int]] = set()
        self._unreadable: dict[str, OSError] = {}  # packs that were left out

    def __len__(self) -> int:
        return len(self._open)

    @property
    def unreadable(self) -> OSError | None:
        """Why a pack was left out that may hold what is not found: some of its bytes cannot be read now."""
        return next(iter(self._unreadable.values()), self._store.index.unreadable)

    def known(self, id: str) -> Stored | None:
        """A copy of an object in a pack that is known of, without looking for new packs; a whole one if there is."""
        return next(iter(self._known(id)), None)

    def all(self, id: str) -> Iterator[Stored]:
        """Every copy of an object, whole ones first, after a look for new packs where the known ones do not do."""
        seen = set()
        for stored in self._known(id):
            seen.add(stored.pack.name)
            yield stored
        for _ in range(_LOOKS):  # more than one where there is nothing: it may be on its way to another place
            self._store.index.refresh()  # whatever it says: another thread may just have looked
            for stored in self._known(id):
                if stored.pack.name not in seen:
                    seen.add(stored.pack.name)
                    yield stored
            for stored in self._in_trash(id):
                if stored.pack.name not in seen:
                    seen.add(stored.pack.name)
                    yield stored
            if seen:
                return

    def _in_trash(self, id: str) -> list[Stored]:
        """Copies in packs that are being collected, or were when that was interrupted, and that no index knows of."""
        found, fs = [], self._store.fs
        for folder in fs.list("trash"):
            for file in fs.list(f"trash/{folder}"):
                name = file.removesuffix(".pack")
                opened = self._open_pack(name) if is_id(name) and name not in self._open else self._open.get(name)
                if opened is not None and id in opened[1].ids:
                    entry = self._entry(opened[1], opened[1].ids.index(id))
                    if entry is not None:
                        found.append(Stored(opened[1], opened[0], entry))
        return found

    def chains(self, id: str) -> Iterator[Chain]:
        """Every way to get at a tensor's bytes, by any copy of each base. What leads nowhere is left out.

        MissingExtra where something that is not installed is all that is missing.
        """
        yield from self._ways(self.all(id))

    def _ways(self, first: Iterator[Stored], *, again: bool = False) -> Iterator[Chain]:
        """The same, of these copies; with `again` also by way of other copies of the same tensor."""
        found, extra = False, None
        ways: list[tuple[list[Stored], Iterator[Stored]]] = [([], first)]  # links, and what they may lead on to
        for _ in range(_MOST_LOOKS):
            if not ways:
                break
            links, copies = ways[-1]
            copy = next(copies, None)
            if copy is None:
                ways.pop()
                continue
            with suppress(CorruptObject, NewerFormat):
                links = self._on(links, copy, again=again) if links else [copy]
                if copy.entry.base is not None:
                    ways.append((links, self.all(copy.entry.base)))
                    continue
                try:
                    chain = Chain(links)
                except MissingExtra as error:
                    extra = error
                    continue
                found = True
                yield chain
        if extra and not found:
            raise extra

    def chain(self, stored: Stored, *, again: bool = False) -> Chain:
        """A copy with the bases that it needs.

        With `again`, they may lead to another copy of the same tensor: enough to see whether this one is what it should
        be, and not for it to stand for that other one. CorruptObject or MissingObject if they are not there, or not
        its; NewerFormat or MissingExtra if they, or it, cannot be read here.
        """
        try:
            return self._nearest(stored)
        except CorruptObject:  # the first copies of its bases may lead back to it, and others not
            for chain in self._ways(iter([stored]), again=again):
                return chain
            raise

    def verify(self, stored: Stored, *, again: bool = False) -> None:
        """Check a copy by all that there is to check, and by way of any copies of its bases; `again` as for `chain`.

        CorruptObject or EOFError where it, or all ways to read it, are damaged; and what `chain` raises.
        """
        try:
            self.chain(stored, again=again).verify()
        except (CorruptObject, EOFError):
            if stored.entry.base is None:
                raise
            for chain in self._ways(iter([stored]), again=again):
                with suppress(CorruptObject, EOFError):
                    return chain.verify()
            raise

    def _nearest(self, stored: Stored) -> Chain:
        """A copy with the first known copy of each base."""
        links = [stored]
        while base := links[-1].entry.base:
            found = self.known(base) or next(self.all(base), None)
            if found is None:
                what = f"tensor {stored.entry.id[:12]} is a difference from {base[:12]}"
                self._raise(self.refused.get(base), what)
                raise MissingObject(f"{what}, which no pack holds. Run fsck.")
            links = self._on(links, found)
        return Chain(links)

    @staticmethod
    def _on(links: list[Stored], base: Stored, *, again: bool = False) -> list[Stored]:
        """Links that lead to a base, with it; CorruptObject where it cannot be that."""
        of, what = links[-1].entry, f"tensor {links[0].entry.id[:12]}"
        before = [link.pack.name for link in links if link.entry.id == base.entry.id]
        if len(links) > _MAX_DEPTH or (before and not again) or base.pack.name in before:
            raise CorruptObject(f"{what} is a difference that leads back to itself, or too far")
        if (base.entry.kind, base.entry.dtype, base.entry.nbytes) != ("tensor", of.dtype, of.nbytes):
            raise CorruptObject(f"{what} is a difference from {base.entry.id[:12]}, which is not of its size and dtype")
        if of.codec == Same.code and base.entry.digests != of.digests:
            raise CorruptObject(f"{what} is said to be the same as {base.entry.id[:12]}, and is not")
        return [*links, base]

    def get(self, id: str, name: str, commit: str) -> Chain:
        """How to read a commit's tensor; MissingObject, or CorruptObject, says which it is where that cannot be.

        NewerFormat or MissingExtra where a newer coral, or another package, could.
        """
        found, problem = self.known(id), None
        try:
            if found is not None:
                return self.chain(found)
            for chain in self.chains(id):
                return chain
            if (found := self.known(id)) is not None:  # by now: what it needs does not lead anywhere
                return self.chain(found)
        except (CorruptObject, NewerFormat, MissingExtra) as error:
            problem = error
            with suppress(MissingExtra):
                for chain in self.chains(id):
                    return chain
        problem = problem or self.refused.get(id)
        if self.unreadable is not None and not isinstance(problem, NewerFormat | MissingExtra):
            raise self.unreadable  # another copy may be in there
        what = f"tensor {name!r} of commit {commit[:12]}"
        self._raise(problem, what, tensor=name, commits=[commit])
        raise MissingObject(f"{what} is missing: no pack holds {id[:12]}. Run fsck.", tensor=name, commits=[commit])

    @staticmethod
    def _raise(problem: CorruptObject | NewerFormat | MissingExtra | None, what: str, **data: Any) -> None:
        """Raise a problem, if there is one, as one of `what`."""
        if isinstance(problem, CorruptObject):
            raise CorruptObject(f"{what}: {problem}", **data) from problem
        if problem is not None:
            raise type(problem)(f"{what}: {problem}") from problem

    def _known(self, id: str) -> list[Stored]:
        copies = []
        for place in self._store.index.known(id):
            found = self._open[place.pack] if place.pack in self._open else self._open_pack(place.pack)
            if found is not None:
                file, pack = found
                if place.entry < len(pack.ids) and pack.ids[place.entry] == id:
                    entry = self._entry(pack, place.entry)
                    if entry is not None:
                        copies.append(Stored(pack, file, entry))
        return copies if len(copies) < 2 else sorted(copies, key=lambda stored: stored.entry.codec)

    def _entry(self, pack: Directory, number: int) -> Entry | None:
        """An entry; None if it is refused: another copy may do."""
        if (pack.name, number) in self._passed_by:
            return None
        try:
            return pack.entry(number)
        except (CorruptObject, NewerFormat) as error:
            self.refused[pack.ids[number]] = error
            return None

    def pass_by(self, pack: str, number: int) -> None:
        """Do not go by an entry of a pack: it is known to be damaged, and another copy is whole."""
        self._passed_by.add((pack, number))

    def open(self, name: str) -> tuple[ReadFile, Directory]:
        """A pack, opened; MissingObject if it is gone or damaged, OSError if it cannot be read."""
        found = self._open[name] if name in self._open else self._open_pack(name)
        if name in self._unreadable:
            raise self._unreadable[name]
        if found is None:
            raise MissingObject(f"{path_of(name)} is gone, or damaged")
        return found

    def _open_pack(self, name: str) -> tuple[ReadFile, Directory] | None:
        """Open a pack; None if it is gone, damaged or unreadable: another copy may do, and fsck says what is wrong."""
        found, file = None, None
        try:
            file = self._store.open_pack(name)
            found = file, self._store.directory(name, file)
        except FileNotFoundError:
            self._store.index.forget(name)
            return None  # not for good: it may be put back
        except CorruptObject:
            if file is not None:
                file.close()
        except OSError as error:
            if file is not None:
                file.close()
            if not is_unreadable(error):
                raise
            self._unreadable[name] = error
        self._open[name] = found
        return found

    def close(self) -> None:
        """Let the packs go."""
        for found in self._open.values():
            if found is not None:
                found[0].close()
        self._open.clear()
