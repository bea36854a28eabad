"""The one seam between a repository and the operating system.

Everything the store reads or writes goes through a `FileSystem`: a handful of operations on paths relative to the
repository. Faults are injected here, and another kind of storage is added here. Errors are plain OSErrors; whoever
calls on behalf of a user turns them into coral's (`coral.errors.storage_errors`).
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from coral._digest import Bytes
from coral._local_files import LocalReadFile, LocalWriteFile, sync
from coral.errors import ConfigError, CorruptObject

__all__ = ["FileStat", "FileSystem", "LocalFileSystem", "Origin", "ReadFile", "WriteFile"]


class FileStat(NamedTuple):
    """What a file's metadata says: its size in bytes and when it was last written, by the filesystem's clock."""

    size: int
    mtime: float


class Origin(NamedTuple):
    """Which process this is: enough to say of a file it left behind whether it is still alive."""

    host: str
    boot: str
    pid: int


class ReadFile(Protocol):
    """A file that is open for reading; it stays readable when its name is removed."""

    size: int

    def read_into(self, buffer: Bytes, offset: int) -> None:
        """Fill `buffer` from `offset` on; EOFError where the file ends before."""
        ...

    def region(self, offset: int, size: int) -> Bytes | None:
        """A private, copy-on-write view of a range; None where one that overlaps was given before, or none can be had.

        Once only: what was written into a view stays in the pages at its ends when it is dropped. Nothing of it has
        been read: `coral._local_files.fault_in` does that, where what cannot be read is to be an error.
        """
        ...

    def view(self, offset: int, size: int) -> Bytes | None:
        """A read-only view of a range, as often as it is asked for; None where none can be had. As of `region`."""
        ...

    def close(self) -> None:
        """Let the descriptor go; views that are out stay valid."""
        ...


class WriteFile(Protocol):
    """A file that is being written, invisible to readers until it is linked or renamed into place."""

    def write(self, buffers: Sequence[Bytes | bytes]) -> None:
        """Append all of the buffers."""
        ...

    def fsync(self) -> None:
        """Return when the bytes would survive a loss of power. Never retried: after an error the file is abandoned."""
        ...

    def close(self) -> None: ...


class FileSystem(Protocol):
    """Files in folders below one root; paths are relative and use '/'."""

    root: str

    def create(self, path: str) -> WriteFile:
        """A new file; FileExistsError where the name is taken."""
        ...

    def open(self, path: str) -> ReadFile:
        """Open a file for reading; CorruptObject where it is a link, a pipe or a device."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """A whole small file; CorruptObject where it has more than `limit` bytes."""
        ...

    def stat(self, path: str) -> FileStat: ...

    def list(self, path: str) -> list[str]:
        """The names in a folder, in no order; [] where there is no such folder."""
        ...

    def mkdir(self, path: str) -> bool:
        """Make one folder; True if it was not there before."""
        ...

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError where it is taken: the primitive that all safety rests on."""
        ...

    def replace(self, source: str, target: str) -> None:
        """Rename, over whatever has the name."""
        ...

    def unlink(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        ...

    def fsync_file(self, path: str) -> None:
        """Return when a file that was written without being synced would survive a loss of power."""
        ...

    def fsync_dir(self, path: str) -> None:
        """Return when the names in a folder would survive a loss of power."""
        ...

    def make_root(self) -> None:
        """Make the root folder, and those above it, durably; nothing where it is there."""
        ...

    def usage(self) -> int:
        """Bytes in all files below the root."""
        ...

    def free(self) -> int | None:
        """Bytes that this user could still write; None where that is not known."""
        ...

    def shared(self) -> bool:
        """Whether other machines may see it, too: they may see changes late."""
        ...

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def origin(self) -> Origin: ...

    def alive(self, origin: Origin) -> bool:
        """Whether a process of this host is still running."""
        ...


class LocalFileSystem:
    """A folder on this machine (or mounted on it)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if not os.fspath(root):  # an environment variable that is not set, say
            raise ConfigError("the path of the repository is empty; the current folder is '.'")
        self.root = str(Path(root).expanduser().absolute())

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root

    def create(self, path: str) -> WriteFile:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return LocalWriteFile(os.open(self._at(path), flags, 0o666), self._at(path))

    def open(self, path: str) -> ReadFile:
        return LocalReadFile(self._at(path), path)

    def read(self, path: str, limit: int) -> bytes:
        file = LocalReadFile(self._at(path), path)
        try:
            if file.size > limit:
                raise CorruptObject(f"{path} has {file.size} bytes; {limit} is the limit", path=path)
            buffer = np.empty(file.size, np.uint8)
            file.read_into(buffer, 0)
            return buffer.tobytes()
        finally:
            file.close()

    def stat(self, path: str) -> FileStat:
        found = os.lstat(self._at(path))
        return FileStat(found.st_size, found.st_mtime)

    def list(self, path: str) -> list[str]:
        try:
            return os.listdir(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def mkdir(self, path: str) -> bool:
        try:
            os.mkdir(self._at(path))
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(self._at(path)).st_mode):
                raise
            return False
        return True

    def link(self, source: str, target: str) -> None:
        os.link(self._at(source), self._at(target))

    def replace(self, source: str, target: str) -> None:
        os.replace(self._at(source), self._at(target))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def fsync_file(self, path: str) -> None:
        file = LocalWriteFile(os.open(self._at(path), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), self._at(path))
        try:
            file.fsync()
        finally:
            file.close()

    def fsync_dir(self, path: str) -> None:
        if sys.platform == "win32":  # a folder cannot be opened there
            return
        fd = os.open(self._at(path), os.O_RDONLY)
        try:
            sync(fd)
        finally:
            os.close(fd)

    def make_root(self) -> None:
        missing = []
        path = Path(self.root)
        while not path.exists():
            missing.append(path)
            path = path.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            fd = os.open(path.parent, os.O_RDONLY)
            try:
                sync(fd)
            finally:
                os.close(fd)

    def usage(self) -> int:
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(FileNotFoundError):  # removed since it was listed
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def free(self) -> int | None:
        if sys.platform == "win32":
            return None
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def shared(self) -> bool:
        return _kind_of_mount(os.path.realpath(self.root)) in _SHARED

    def now(self) -> float:
        return time.time()

    def origin(self) -> Origin:
        return Origin(_host(), _boot_id(), os.getpid())

    def alive(self, origin: Origin) -> bool:
        if origin.boot != _boot_id() or origin.pid <= 0:  # 0 and below mean groups of processes
            return False
        try:
            os.kill(origin.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return True


_SHARED = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs",
     "gfs2", "glusterfs", "gpfs", "lustre", "ocfs2", "orangefs", "panfs", "pvfs2", "virtiofs", "weka", "wekafs")
)  # fmt: skip


def _kind_of_mount(path: str) -> str:
    """The type of the filesystem that a path is on, by the table of mounts; "" where there is none."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return ""
    at = [(len(point), kind) for point, kind in mounts if path == point or path.startswith(point.rstrip("/") + "/")]
    return max(at, default=(0, ""))[1]


@cache
def _host() -> str:
    """The machine, and on Linux the container: processes of another are not seen here, and have ids of their own."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


@cache
def _boot_id() -> str:
    """What changes when the machine starts anew: process ids of an earlier boot mean nothing."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
