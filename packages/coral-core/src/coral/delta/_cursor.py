"""Reading an encoded block without ever leaving it."""

from __future__ import annotations

from coral.delta._entropy import Data
from coral.errors import CorruptObject


class Cursor:
    """A place in some bytes that only goes forward; CorruptObject where they end too early, or too late."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: Data) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise CorruptObject(f"an encoded block ends early: {size} bytes are due at {self._at} of {len(self._data)}")
        found = self._data[self._at : end]
        self._at = end
        return found

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """The next four bytes as a number."""
        return int.from_bytes(self.take(4), "little")

    def end(self) -> None:
        """Say that nothing may follow."""
        if self._at != len(self._data):
            raise CorruptObject(f"{len(self._data) - self._at} bytes stand behind the end of an encoded block")
