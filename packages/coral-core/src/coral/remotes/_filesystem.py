"""A remote as the filesystem of a store: so all that reads and writes a repository works on one that is elsewhere.

What is being written is kept in memory until it is given its name; a name is given by `put`, which is the one
primitive that all safety rests on, as `link` is on a disk. There are no folders, and nothing to sync.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from coral._digest import Bytes
from coral.errors import CorruptObject, UnsafeInput
from coral.filesystem import FileStat, LocalFileSystem, Origin, ReadFile, WriteFile
from coral.remotes._patient import PatientRemote
from coral.remotes._remote import Remote, RemoteFile
from coral.store._format import FOLDERS

__all__ = ["RemoteFileSystem"]

_STEP = 8 << 20  # bytes asked for at once


class RemoteFileSystem:
    """The files of a remote. What a folder holds is asked for each time, but inside `listed`."""

    def __init__(self, remote: Remote) -> None:
        self.remote = PatientRemote(remote)
        self.root = remote.url
        self._here = LocalFileSystem(".")  # for what is not of files
        self._written: dict[str, _Written] = {}
        self._listed: dict[str, list[RemoteFile]] = {}
        self._packs: dict[str, RemoteFile] = {}  # as they were listed last: they never change

    @contextmanager
    def listed(self, folder: str) -> Iterator[None]:
        """Have one folder, and all below it, listed once for all that happens in the block."""
        self._listed[folder] = self._ask(folder)
        try:
            yield
        finally:
            del self._listed[folder]

    def files(self, folder: str) -> list[RemoteFile]:
        """All files in a folder and below it."""
        for known, found in self._listed.items():
            if f"{folder}/".startswith(f"{known}/"):
                return [each for each in found if each.name.startswith(f"{folder}/")]
        return self._ask(folder)

    def _ask(self, folder: str) -> list[RemoteFile]:
        found = [each for each in self.remote.list(f"{folder}/") if self._belongs(each.name, folder)]
        if folder == "packs":
            self._packs = {each.name: each for each in found}
        return found

    def _belongs(self, name: str, folder: str) -> bool:
        """Whether a name that the remote gave may be made use of; UnsafeInput where it would lead elsewhere."""
        if not name.startswith(f"{folder}/") or ".." in name.split("/") or "\\" in name or not name.isprintable():
            raise UnsafeInput(f"{self.root} has a file named {name[:80]!r}, which is not in {folder}/: refused")
        return True

    # -- what a store asks of a filesystem --------------------------------------------------------------------------

    def create(self, path: str) -> WriteFile:
        if not path.startswith("tmp/"):  # it is there once it is whole
            return _Put(self.remote, path)
        self._written[path] = found = _Written()
        return found

    def open(self, path: str) -> ReadFile:
        if path in self._written:
            return MemoryFile(self._written[path].joined())
        return _Ranges(self.remote, path, self.stat(path).size)

    def read(self, path: str, limit: int) -> bytes:
        return self.remote.get(path, limit)

    def stat(self, path: str) -> FileStat:
        found = self._packs.get(path) or self._look(path)
        return FileStat(found.size, found.modified)

    def _look(self, path: str) -> RemoteFile:
        for each in self.remote.list(path):
            if each.name == path:
                return each
        raise FileNotFoundError(2, "no such file on the remote", path)

    def list(self, path: str) -> list[str]:
        if not path:
            return list(FOLDERS)
        if path in ("tmp", "index"):  # what is derived, or not finished, is never put
            return []
        return list({each.name[len(path) + 1 :].partition("/")[0] for each in self.files(path)})

    def mkdir(self, path: str) -> bool:  # noqa: ARG002 - there are no folders
        return False

    def link(self, source: str, target: str) -> None:
        if source not in self._written:
            self.remote.copy(source, target)
        elif not self.remote.put(target, memoryview(self._written[source].joined())):
            raise FileExistsError(17, "the name is taken", target)

    def replace(self, source: str, target: str) -> None:
        data = memoryview(self._written[source].joined())
        self.put(target, data)

    def put(self, target: str, data: memoryview) -> None:
        """Have a file hold this, whose name stands for it: what is there otherwise is torn, and goes."""
        for _ in range(2):
            if self.remote.put(target, data) or self._is(target, data):
                return
            self.remote.delete(target)
        if not self.remote.put(target, data):
            raise CorruptObject(f"{self.root} has other bytes under {target}, and cannot be rid of them", path=target)

    def _is(self, target: str, data: memoryview) -> bool:
        try:
            if self._look(target).size != len(data):
                return False
            for at in range(0, len(data), _STEP):
                part = data[at : at + _STEP]
                if self.remote.read_all(target, at, len(part)) != part:
                    return False
        except FileNotFoundError:
            return False
        return True

    def unlink(self, path: str) -> None:
        if self._written.pop(path, None) is None and not path.startswith("tmp/"):
            self.remote.delete(path)

    def rmdir(self, path: str) -> None:
        pass

    def fsync_file(self, path: str) -> None:
        pass

    def fsync_dir(self, path: str) -> None:
        pass

    def make_root(self) -> None:
        return

    def usage(self) -> int:
        return sum(each.size for folder in FOLDERS if "/" not in folder for each in self.files(folder))

    def free(self) -> int | None:
        return None

    def shared(self) -> bool:
        return self.remote.shared

    def now(self) -> float:
        return time.time()

    def origin(self) -> Origin:
        return self._here.origin()

    def alive(self, origin: Origin) -> bool:
        return self._here.alive(origin)


class _Written:
    """A file that is being written: pieces in memory."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, buffers: Sequence[Bytes | bytes]) -> None:
        self._pieces += [bytes(piece) for piece in buffers]

    def joined(self) -> bytes:
        self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def fsync(self) -> None:
        return

    def close(self) -> None:
        return


class _Put(_Written):
    """A file that is put when it is closed, under a name that nobody else has."""

    def __init__(self, remote: PatientRemote, path: str) -> None:
        super().__init__()
        self._remote = remote
        self._path = path

    def close(self) -> None:
        self._remote.put(self._path, memoryview(self.joined()))


class MemoryFile:
    """A file that is nothing but bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_into(self, buffer: Bytes, offset: int) -> None:
        part = self._data[offset : offset + buffer.size]
        if len(part) < buffer.size:
            raise EOFError(f"the file ends at byte {self.size}")
        buffer[:] = np.frombuffer(part, np.uint8)

    def region(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def view(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def close(self) -> None:
        return


class _Ranges:
    """A file of the remote, read by ranges."""

    def __init__(self, remote: PatientRemote, name: str, size: int) -> None:
        self._remote = remote
        self._name = name
        self.size = size

    def read_into(self, buffer: Bytes, offset: int) -> None:
        if offset + buffer.size > self.size:
            raise EOFError(f"{self._name} ends at byte {self.size}")
        for at in range(0, buffer.size, _STEP):
            part = buffer[at : at + _STEP]
            part[:] = self._remote.read_array(self._name, offset + at, part.size)

    def region(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def view(self, offset: int, size: int) -> None:
        """None: it is not mapped."""

    def close(self) -> None:
        return
