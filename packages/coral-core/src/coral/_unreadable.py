"""What a disk cannot read: told from all else that the system refuses."""

from __future__ import annotations

import errno

__all__ = ["is_unreadable"]

_UNREADABLE = {
    getattr(errno, name)
    for name in ("EIO", "EBADMSG", "EUCLEAN", "EILSEQ", "ENODATA", "EREMOTEIO", "EHWPOISON")
    if hasattr(errno, name)
}
"""What disks, and filesystems with sums of their own, say of bytes that they cannot give."""


def is_unreadable(error: OSError) -> bool:
    """Whether bytes cannot be read, and what is around them can; all else that the system refuses is no such thing."""
    return error.errno in _UNREADABLE
