"""A remote that is asked again where it did not answer: a network is not a disk."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from coral._digest import Bytes
from coral.errors import RemoteUnreachable
from coral.remotes._newest import Newest
from coral.remotes._remote import Remote, RemoteFile

__all__ = ["PatientRemote"]

_log = logging.getLogger("coral")

_PAUSES = (0.1, 0.5, 2.0)
"""Seconds before it is asked for the second, third, last time; half of each by chance."""
_T = TypeVar("_T")
_Read = TypeVar("_Read", bytes, Bytes)


class PatientRemote(Remote):
    """Asks another remote, and asks it again where it was unreachable.

    So a `put` may have been done before, and its answer lost: False then means no more than that something is there.
    """

    def __init__(self, inner: Remote) -> None:
        self._inner = inner
        self.url = inner.url
        self.shared = inner.shared
        self.shows = inner.shows

    def put(self, name: str, data: memoryview) -> bool:
        return self._again(lambda: self._inner.put(name, data))

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self._again(lambda: self._inner.read(name, offset, size))

    def read_all(self, name: str, offset: int, size: int) -> bytes:
        """The bytes of a file that is known to have so many; where that is none it is not asked."""
        if not size:
            return b""
        return self._again(lambda: self._whole(self._inner.read(name, offset, size), name, size))

    def read_array(self, name: str, offset: int, size: int) -> Bytes:
        """The same as an array (uint8)."""
        if not size:
            return np.empty(0, np.uint8)
        return self._again(lambda: self._whole(self._inner.read_array(name, offset, size), name, size))

    def _whole(self, data: _Read, name: str, size: int) -> _Read:
        if len(data) != size:
            raise RemoteUnreachable(
                f"{self.url} answered with {len(data)} bytes of {name}, not {size}: try again", remote=self.url
            )
        return data

    def list(self, prefix: str) -> Iterable[RemoteFile]:
        return self._again(lambda: [*self._inner.list(prefix)])

    def delete(self, name: str) -> None:
        self._again(lambda: self._inner.delete(name))

    def copy(self, source: str, target: str) -> None:
        self._again(lambda: self._inner.copy(source, target))

    def flush(self) -> None:
        self._again(self._inner.flush)

    def show(self, newest: Newest) -> None:
        self._again(lambda: self._inner.show(newest))

    def _again(self, ask: Callable[[], _T]) -> _T:
        for pause in () if self._inner.retries else _PAUSES:
            try:
                return ask()
            except RemoteUnreachable as error:
                _log.info("%s; asking again", error)
                time.sleep(pause * (0.5 + random.random() / 2))
        return ask()
