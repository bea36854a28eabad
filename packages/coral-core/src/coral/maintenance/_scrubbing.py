"""For who looks for damage: what a disk cannot read is named like damage, and kept apart from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

from coral._digest import Bytes
from coral._local_files import fault_in
from coral._unreadable import is_unreadable
from coral.errors import CorruptObject
from coral.filesystem import FileSystem, ReadFile
from coral.store import Store

__all__ = ["scrubbing", "unreadable_in"]


def scrubbing(store: Store) -> Store:
    """A store on the same files, where bytes that cannot be read are a CorruptObject, not an OSError.

    All else that the system refuses stays an OSError: memory, descriptors, permissions are no damage.
    """
    return Store(cast("FileSystem", _Scrubbed(store.fs)), store.durability)


def unreadable_in(store: Store) -> set[str]:
    """The files of which bytes could not be read in such a store, until it is cleared; they may be whole."""
    return store.fs.unreadable if isinstance(store.fs, _Scrubbed) else set()


class _Scrubbed:
    """A FileSystem."""

    def __init__(self, inner: FileSystem) -> None:
        self._inner = inner
        self.root = inner.root
        self.unreadable: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, path: str) -> ReadFile:
        with self.noting(path):
            return _ScrubbedFile(self._inner.open(path), partial(self.noting, path))

    def read(self, path: str, limit: int) -> bytes:
        with self.noting(path):
            return self._inner.read(path, limit)

    @contextmanager
    def noting(self, path: str, where: str = "") -> Iterator[None]:
        """Note that a file cannot be read, if that is so, and call it damaged."""
        try:
            yield
        except OSError as error:
            if not is_unreadable(error):
                raise
            self.unreadable.add(path)
            raise CorruptObject(f"{path} cannot be read{where}: {error.strerror}", path=path) from error


class _ScrubbedFile:
    def __init__(self, inner: ReadFile, noting: Callable[[str], AbstractContextManager[None]]) -> None:
        self._inner = inner
        self._noting = noting
        self.size = inner.size

    def read_into(self, buffer: Bytes, offset: int) -> None:
        with self._noting(f" between byte {offset} and {offset + buffer.size}"):
            self._inner.read_into(buffer, offset)

    def region(self, offset: int, size: int) -> None:
        """None: what is mapped might not be readable when it is looked at."""

    def view(self, offset: int, size: int) -> Bytes | None:
        with self._noting(f" between byte {offset} and {offset + size}"):
            found = self._inner.view(offset, size)
            return None if found is None else fault_in(found)

    def close(self) -> None:
        self._inner.close()
