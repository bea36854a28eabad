"""What a disk cannot read: told from all else that the system refuses, and left out where something else will do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_unreadable", "unreadable_left_out"]

_UNREADABLE = {
    getattr(errno, name)
    for name in ("EIO", "EBADMSG", "EUCLEAN", "EILSEQ", "ENODATA", "EREMOTEIO", "EHWPOISON")
    if hasattr(errno, name)
}
"""What disks, and filesystems with sums of their own, say of bytes that they cannot give."""


def is_unreadable(error: OSError) -> bool:
    """Whether bytes cannot be read, and what is around them can; all else that the system refuses is no such thing."""
    return error.errno in _UNREADABLE


@contextmanager
def unreadable_left_out() -> Iterator[None]:
    """Go on without what cannot be read."""
    try:
        yield
    except OSError as error:
        if not is_unreadable(error):
            raise
