"""A part of the seam: reading files that are mapped so that what the disk cannot give is an error, not a signal."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

try:
    import ctypes
except ImportError:  # some builds of Python are without
    ctypes = None  # type: ignore[assignment]

__all__ = ["fault_in"]

_POPULATE_READ = 22  # madvise(2)


def fault_in(data: NDArray[np.uint8]) -> None:
    """Read what is mapped; OSError(EIO) where that cannot be: to access it would be a SIGBUS that ends the process.

    Does nothing where the system has no such call (Linux has, since 5.14). What it has read can be given up again where
    memory is short: soon used, it is safe.
    """
    if _madvise is None or not data.size:
        return
    address = data.ctypes.data
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    while _madvise(start, address + data.size - start, _POPULATE_READ):
        code = ctypes.get_errno()
        if code in (errno.EFAULT, getattr(errno, "EHWPOISON", None)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if code != errno.EINTR:
            return


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """The system's: with that of `mmap`, no other thread runs while the disk is waited for."""
    if sys.platform != "linux" or ctypes is None:
        return None
    found = ctypes.CDLL(None, use_errno=True).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast("Callable[[int, int, int], int]", found)


_madvise = _find_madvise()
