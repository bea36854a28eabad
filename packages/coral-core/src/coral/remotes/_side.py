"""The other side: a remote, opened as the store that is in it."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np

from coral import _json
from coral._digest import Bytes
from coral.errors import CorruptObject, NotARepository, RemoteError
from coral.filesystem import FileSystem
from coral.maintenance._inventory import Copy, Inventory, settle
from coral.objects import is_id
from coral.remotes._errors import no_condition
from coral.remotes._filesystem import RemoteFileSystem
from coral.remotes._patient import PatientRemote
from coral.remotes._records import Memory
from coral.remotes._remote import Remote
from coral.store import Store, _refs
from coral.store._files import put_if_absent, seal, unseal
from coral.store._format import FORMAT, check_format
from coral.store._pack import VERSION, Directory, directory_of, path_of, read_directory

__all__ = ["THREADS", "Side", "each_at_once"]

_A = TypeVar("_A")
_B = TypeVar("_B")

THREADS = 8
"""Requests that are under way at a time."""
_TAIL = 16 << 10  # bytes at the end of a pack that are asked for first: most directories are in them


def each_at_once(work: Callable[[_A], _B], items: Sequence[_A]) -> Iterator[_B]:
    """What `work` makes of the items, in their order, several requests being under way at a time."""
    if len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="coral-remote") as threads:
        ahead: deque[Future[_B]] = deque()
        try:
            for item in items:
                ahead.append(threads.submit(work, item))
                if len(ahead) > 2 * THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for each in ahead:
                each.cancel()


class Side:
    """What the other side has."""

    def __init__(self, remote: Remote, ours: FileSystem, memory: Memory) -> None:
        self.fs = RemoteFileSystem(remote)
        self.store = Store(self.fs)
        self.memory = memory
        self._ours = ours
        self._tips: dict[str, tuple[list[str], _refs.RefEntry | None]] = {}  # of a ref: its files, and the newest
        self.inventory = Inventory(self.store)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.fs.root

    def check(self) -> None:
        """Make sure that there is a repository that this coral can use."""
        try:
            check_format(self.fs)
        except FileNotFoundError:
            raise NotARepository(
                f"no coral repository at {self.url}. Correct the URL, or push to it: that makes one.", path=self.url
            ) from None

    def make(self) -> None:
        """Make sure that there is a repository, or make one where there is nothing yet.

        ConfigError where a name can be taken twice: that is tried once for each remote that has a name here.
        """
        made = False
        try:
            check_format(self.fs)
        except FileNotFoundError:
            made = self._begin()
            check_format(self.fs)
        if made or not self.memory.refused():
            self._try_twice(made=made)

    def _begin(self) -> bool:
        """Make a repository where there is nothing; whether this call made it."""
        strange = next((each.name for each in self.fs.remote.list("") if not each.name.startswith("tmp/")), None)
        if strange is not None:
            raise NotARepository(
                f"{self.url} is no coral repository, and it is not empty (it has {strange[:80]!r}): nothing is written "
                "to it. Take another folder.",
                path=self.url,
            )
        return put_if_absent(self.fs, "format", seal(_json.dumps({"format": FORMAT})), durable=True)

    def _try_twice(self, *, made: bool) -> None:
        """Put `format` again, as it is: where a name can be taken twice it shows now, before a ref is lost by it."""
        content = self.fs.read("format", 4096)
        unseal(content, "format")  # where it is overwritten it is by the same
        if self.fs.remote.put("format", memoryview(content)):
            if made:
                with suppress(RemoteError):  # then it stays, and the next push tries again
                    self.fs.remote.delete("format")
            raise no_condition(self.url)
        self.memory.remember_refused()

    def ref(self, folder: str) -> _refs.RefEntry | None:
        """The newest entry of a ref. CorruptObject where it is damaged, which is never taken for one that is not there.

        Wrong bytes may have been a matter of the way: it is asked for twice.
        """
        try:
            return _refs.read(self.fs, folder)
        except CorruptObject:
            return _refs.read(self.fs, folder)

    def tips(self, kind: str) -> dict[str, _refs.RefEntry]:
        """The newest entry of each branch ("heads") or tag ("tags") that is there; within `listed("refs")`."""
        found = {}
        for name in _refs.components(self.fs.list(f"refs/{kind}")):
            folder = _refs.folder_of(kind, name)
            files = sorted(self.fs.list(folder))
            if folder not in self._tips or self._tips[folder][0] != files:  # an entry never changes
                self._tips[folder] = files, self.ref(folder)
            entry = self._tips[folder][1]
            if entry is not None and entry.value is not None:
                if not is_id(entry.value):
                    raise CorruptObject(f"{name} of {self.url} names {entry.value[:80]!r}, which is no commit")
                found[name] = entry
        return found

    def held(self) -> dict[str, str]:
        """The commits that branches and tags name over there as of now, each with what does."""
        with self.fs.listed("refs"):
            found = {entry.value: f"the tag {name}" for name, entry in self.tips("tags").items()}
            found |= {entry.value: f"the branch {name}" for name, entry in self.tips("heads").items()}
        return {commit: holder for commit, holder in found.items() if commit}

    def look(self) -> None:
        """Learn which packs there are, and what is in them: from those here, from memory, or from their ends."""
        with self.fs.listed("packs"):
            paths = {each.name: each.size for each in self.fs.files("packs") if each.name.endswith(".pack")}
            sizes = {path[6:-5]: size for path, size in paths.items() if is_id(path[6:-5])}
            unknown = [name for name in sizes if self.store.index.directory(name) is None]
            for directory in each_at_once(lambda name: self._directory(name, sizes[name]), unknown):
                if directory is not None:
                    self.store.index.add(directory)
            self.memory.forget_packs(set(sizes))
            self.inventory.refresh()

    def has(self, pack: str) -> bool:
        """Whether a pack was there when it was last looked."""
        return pack in self.inventory

    def settled(self, ids: Iterable[str]) -> tuple[dict[str, Copy], list[str]]:
        """Which copy to go by of each of these, and of the bases that they need; and which of them are not there."""
        return settle(self.inventory, ids, frozenset())

    def _directory(self, name: str, size: int) -> Directory | None:
        """What a pack holds; None where it cannot be read: then nothing that is in it counts as there."""
        with suppress(CorruptObject, FileNotFoundError):
            found = read_directory(self._ours, name)  # the same name: the same directory
            if self._ours.stat(path_of(name)).size == size:
                return found
        known = self.memory.pack(name)
        for data in (known, None):
            end = _End(self.fs.remote, path_of(name), size, data)
            try:
                found = directory_of(end, name)
            except (CorruptObject, EOFError, FileNotFoundError):
                continue
            if data is None:
                self.memory.remember_pack(name, end.tail())
            return found
        return None


class _End:
    """A pack of the remote of which the end alone is read, in one request mostly."""

    def __init__(self, remote: PatientRemote, path: str, size: int, known: bytes | None) -> None:
        self.size = size
        self._remote = remote
        self._path = path
        self._tail = known
        self._head = struct.pack("<8sII", b"CORALPK\n", VERSION, 0)  # what is in the pack is checked by itself

    def tail(self) -> bytes:
        """All of the end that was read."""
        return self._tail or b""

    def read_into(self, buffer: Bytes, offset: int) -> None:
        if offset == 0 and buffer.size <= len(self._head) and self.size > len(self._head):
            buffer[:] = np.frombuffer(self._head, np.uint8)[: buffer.size]
            return
        if self._tail is None or offset < self.size - len(self._tail):
            wanted = self.size - offset if self._tail is not None else min(self.size, max(_TAIL, self.size - offset))
            if wanted > self.size or wanted < buffer.size:
                raise EOFError
            self._tail = self._remote.read_all(self._path, self.size - wanted, wanted)
        at = offset - (self.size - len(self._tail))
        part = self._tail[at : at + buffer.size]
        if len(part) != buffer.size:
            raise EOFError
        buffer[:] = np.frombuffer(part, np.uint8)

    def region(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def view(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def close(self) -> None:
        pass
