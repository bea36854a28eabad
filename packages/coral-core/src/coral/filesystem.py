"""The one seam between a repository and the operating system.

Everything the store reads or writes goes through a `FileSystem`: a handful of operations on paths relative to the
repository. Faults are injected here, and another kind of storage is added here. Errors are plain OSErrors; whoever
calls on behalf of a user turns them into coral's (`coral.errors.storage_errors`).
"""

from __future__ import annotations

import bisect
import errno
import mmap
import os
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from coral._digest import Bytes
from coral._fork import renewed_by_fork
from coral._mapped import fault_in
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
        been read: `coral._mapped.fault_in` does that.
        """
        ...

    def view(self, offset: int, size: int) -> Bytes | None:
        """A read-only view of a range, which has been read, as often as it is asked for; None where none can be had."""
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
        return _LocalWriteFile(os.open(self._at(path), flags, 0o666), self._at(path))

    def open(self, path: str) -> ReadFile:
        return _LocalReadFile(self._at(path), path)

    def read(self, path: str, limit: int) -> bytes:
        file = _LocalReadFile(self._at(path), path)
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
        file = _LocalWriteFile(os.open(self._at(path), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), self._at(path))
        try:
            file.fsync()
        finally:
            file.close()

    def fsync_dir(self, path: str) -> None:
        if sys.platform == "win32":  # a folder cannot be opened there
            return
        fd = os.open(self._at(path), os.O_RDONLY)
        try:
            os.fsync(fd)
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
                os.fsync(fd)
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


class _LocalWriteFile:
    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def write(self, buffers: Sequence[Bytes | bytes]) -> None:
        left = [memoryview(b).cast("B") for b in buffers if len(b)]
        while left:
            done = os.writev(self._fd, left[:512])
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]

    def fsync(self) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
        else:
            os.fsync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _LocalReadFile:
    _fd = -1

    def __init__(self, path: str, name: str) -> None:
        # neither follow a link out of the repository nor wait for a pipe's other end
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._fd = _open(path, flags)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):  # what O_NOFOLLOW says, depending on the system
                raise CorruptObject(f"{name} is a link, not a file: refused", path=name) from error
            if error.errno == errno.ENXIO:
                raise CorruptObject(f"{name} is a socket, not a file: refused", path=name) from error
            raise
        self._path = path
        self._map: mmap.mmap | None = None
        self._shown: mmap.mmap | None = None
        self._given: list[tuple[int, int]] = []  # the ranges that views were given of, in order
        self._watch: dict[int, weakref.ref[Bytes]] = {}
        self.after_fork()
        renewed_by_fork(self)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise CorruptObject(f"{name} is not a regular file: refused", path=name)
        self.size = found.st_size

    def after_fork(self) -> None:
        """Have a lock that no thread holds."""
        self._lock = threading.Lock()

    def read_into(self, buffer: Bytes, offset: int) -> None:
        view = memoryview(buffer).cast("B") if buffer.size else memoryview(b"")
        while len(view):
            try:
                got = os.preadv(self._fd, [view], offset)
            except OSError as error:
                error.filename = self._path
                raise
            if not got:
                raise EOFError(f"{self._path} ends at byte {offset}")
            view, offset = view[got:], offset + got

    def region(self, offset: int, size: int) -> Bytes | None:
        end = offset + size
        if end > self.size or not size or self._fd < 0:
            return None
        with self._lock:
            at = bisect.bisect_left(self._given, (offset, end))
            if (at and self._given[at - 1][1] > offset) or (at < len(self._given) and self._given[at][0] < end):
                return None
            if self._map is None:
                try:
                    self._map = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY)
                except (OSError, ValueError):  # a filesystem without maps, or no room for one
                    return None
            self._given.insert(at, (offset, end))
        view: Bytes = np.frombuffer(self._map, np.uint8, size, offset)
        # When the last tensor made from the view is gone its pages are let go, so that a streamed load stays small.
        drop = partial(_drop, self._map, offset, end)
        self._watch[offset] = weakref.ref(view, drop)
        return view

    def view(self, offset: int, size: int) -> Bytes | None:
        if offset + size > self.size or not size:
            return None
        with self._lock:
            if self._shown is None and self._fd >= 0:
                try:
                    self._shown = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)
                except (OSError, ValueError):
                    return None
            if self._shown is None:
                return None
        view: Bytes = np.frombuffer(self._shown, np.uint8, size, offset)
        fault_in(view)
        # as in `region`; who needs the range once more gets its pages from the system's cache
        weakref.finalize(view, _drop, self._shown, offset, offset + size, None).atexit = False
        return view

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _open(path: str, flags: int) -> int:
    """os.open that asks for more descriptors where there are too few: a commit may lie in many packs."""
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE or not _raise_limit():
            raise
        return os.open(path, flags)


def _raise_limit() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    if wanted <= soft:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def _drop(mapped: mmap.mmap, offset: int, end: int, _: object) -> None:
    """Let the pages go that lie wholly in a range."""
    start, end = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, start, end - start)


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
