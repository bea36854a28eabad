"""What a remote is: files under names that are put if absent, read in ranges, listed and deleted. Nothing else.

A remote holds a repository (docs/format.md) and knows nothing of it: push and fetch are the same code for all.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from coral._digest import Bytes
from coral.errors import CorruptObject, UnsafeInput
from coral.remotes._newest import Newest

__all__ = ["Remote", "RemoteFile", "check_remote_name"]

_PART = re.compile(r"[A-Za-z0-9_%][A-Za-z0-9._%-]*")
_LONGEST = 1024


class RemoteFile(NamedTuple):
    """A file as a listing shows it: its name, its size in bytes, and when it was put, in seconds since the epoch."""

    name: str
    size: int
    modified: float


class Remote(ABC):
    """Somewhere else to keep a repository: subclass it, and prove it with `coral.testing.RemoteTests`.

    Names are relative, as `packs/<id>.pack`; their parts have letters, digits and `. _ % -`. Several threads call it at
    once. Whatever fails raises a RemoteError; RemoteUnreachable where trying again may help, which the caller does.
    No message holds a credential.
    """

    url: str
    """What it was opened by, without credentials."""

    shared: bool = True
    """Whether processes of other machines may write to it, too."""

    retries: bool = False
    """Whether it asks again by itself where it got no answer: then the caller does not."""

    shows: bool = False
    """Whether `show` does anything."""

    @abstractmethod
    def put(self, name: str, data: memoryview) -> bool:
        """Put a whole file, durably, unless the name is taken: False then, and what is there is left alone.

        Of two that put the same name at once only one may be told True, and nobody ever sees a part of a file.
        """

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> bytes:
        """The bytes of a file from `offset` on: `size` of them, or as many as there are.

        FileNotFoundError where there is no such file.
        """

    def read_array(self, name: str, offset: int, size: int) -> Bytes:
        """What `read` does, as an array (uint8): to be overridden where that saves a copy of what may be large."""
        return np.frombuffer(self.read(name, offset, size), np.uint8)

    @abstractmethod
    def list(self, prefix: str) -> Iterable[RemoteFile]:
        """All files in a folder and below it, where the prefix ends in "/"; else the file of that very name, if any."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing where there is none."""

    def get(self, name: str, limit: int) -> bytes:
        """A whole small file; CorruptObject where it has more than `limit` bytes."""
        data = self.read(name, 0, limit + 1)
        if len(data) > limit:
            raise CorruptObject(f"{name} has more than {limit} bytes, which is the limit", path=name)
        return data

    def copy(self, source: str, target: str) -> None:
        """Give a file's content a second name, which nobody else is about to give; FileNotFoundError without a file."""
        size = {found.name: found.size for found in self.list(source)}.get(source)
        if size is None:
            raise FileNotFoundError(source)
        self.put(target, memoryview(self.read(source, 0, size)))

    def flush(self) -> None:
        """Return when all that was put can be seen: where writing is by transactions, they end here.

        Until then, packs and notes that were put need not show; a ref shows with all that was put before it. Raises
        Conflict, and forgets what was put and deleted, where that must not be: somebody else has written meanwhile.
        """
        return

    def show(self, newest: Newest) -> None:  # noqa: ARG002 - for those that do
        """Have others find these weights, in a form that they read, once the next ref is put.

        It is called for the branch that HEAD over there is on.
        """
        return


def check_remote_name(name: str) -> str:
    """Return a name that a remote may be asked for; UnsafeInput where it could lead anywhere else."""
    parts = name.split("/")
    if len(name) > _LONGEST or not all(_PART.fullmatch(part) for part in parts):
        raise UnsafeInput(
            f"{name[:80]!r} cannot name a file of a remote: parts have letters, digits and . _ % - and no leading '.'"
        )
    return name
