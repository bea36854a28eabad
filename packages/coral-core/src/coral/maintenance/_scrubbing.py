"""For who looks for damage: what a disk cannot read is damage, too, and what is around it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from coral._digest import Bytes
from coral._unreadable import is_unreadable
from coral.errors import CorruptObject
from coral.filesystem import FileSystem, ReadFile
from coral.store import Store

__all__ = ["scrubbing"]


def scrubbing(store: Store) -> Store:
    """A store on the same files, where bytes that cannot be read are a CorruptObject, not an OSError.

    All else that the system refuses stays an OSError: memory, descriptors, permissions are no damage.
    """
    return Store(cast("FileSystem", _Scrubbed(store.fs)), "full")


class _Scrubbed:
    """A FileSystem."""

    def __init__(self, inner: FileSystem) -> None:
        self._inner = inner
        self.root = inner.root

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, path: str) -> ReadFile:
        with _as_damage(path):
            return _ScrubbedFile(self._inner.open(path), path)

    def read(self, path: str, limit: int) -> bytes:
        with _as_damage(path):
            return self._inner.read(path, limit)


class _ScrubbedFile:
    def __init__(self, inner: ReadFile, path: str) -> None:
        self._inner = inner
        self._path = path
        self.size = inner.size

    def read_into(self, buffer: Bytes, offset: int) -> None:
        with _as_damage(self._path, f" between byte {offset} and {offset + buffer.size}"):
            self._inner.read_into(buffer, offset)

    def region(self, offset: int, size: int) -> None:
        """None: what is mapped might not be readable when it is looked at."""

    def view(self, offset: int, size: int) -> Bytes | None:
        with _as_damage(self._path, f" between byte {offset} and {offset + size}"):
            return self._inner.view(offset, size)

    def close(self) -> None:
        self._inner.close()


@contextmanager
def _as_damage(path: str, where: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_unreadable(error):
            raise
        raise CorruptObject(f"{path} cannot be read{where}: {error.strerror}", path=path) from error
