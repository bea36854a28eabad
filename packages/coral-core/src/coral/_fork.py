"""What a forked process must not take over: locks that another thread held, and what that thread was changing."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["renewed_by_fork"]


class Renewable(Protocol):
    """Something with a lock of its own."""

    def after_fork(self) -> None:
        """Begin with a new lock, and without what may be half changed."""
        ...


_known: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renewed_by_fork(thing: Renewable) -> None:
    """Have its `after_fork` called in each process that is forked off this one, as data loaders' workers are."""
    _known.add(thing)


def _renew() -> None:
    for thing in list(_known):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
