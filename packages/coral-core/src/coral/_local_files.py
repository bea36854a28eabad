"""The open files of this machine: a part of the seam. `coral.filesystem` says what is asked of them.

What is mapped can be read in such a way that what the disk cannot give is an error, not a signal that ends the process.
"""

from __future__ import annotations

import bisect
import errno
import mmap
import os
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from coral._digest import Bytes
from coral._fork import renewed_by_fork
from coral.errors import CorruptObject

__all__ = ["LocalReadFile", "LocalWriteFile", "fault_in", "sync"]

_POPULATE_READ = 22  # madvise(2)


class LocalWriteFile:
    """A `coral.filesystem.WriteFile`."""

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
        sync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def sync(fd: int) -> None:
    """Make a file or a folder durable; on macOS fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL):  # of filesystems that do not know it
                raise
    os.fsync(fd)


class LocalReadFile:
    """A `coral.filesystem.ReadFile`."""

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
                raise CorruptObject(f"{name} is not a regular file: refused", path=name) from error
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


def fault_in(data: Bytes) -> Bytes:
    """Mapped bytes, read; OSError(EIO) where that cannot be: to access it would be a SIGBUS that ends the process.

    Does nothing where the system has no such call (Linux has, since 5.14). What it has read can be given up again where
    memory is short: soon used, it is safe.
    """
    if _populate is None or not data.size:
        return data
    address = data.ctypes.data
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    code = errno.EINTR
    while code == errno.EINTR:
        code = _populate(start, address + data.size - start)
    if code in (errno.EFAULT, getattr(errno, "EHWPOISON", None)):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return data


def _find_populate() -> Callable[[int, int], int] | None:
    """A call that reads so many bytes of memory from an address on; it returns 0, or why not."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        # that of `mmap` lets no other thread run while the disk is waited for
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (ImportError, OSError, AttributeError):  # some builds of Python are without
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def populate(address: int, size: int) -> int:
        return ctypes.get_errno() if madvise(address, size, _POPULATE_READ) else 0

    return populate


_populate = _find_populate()
