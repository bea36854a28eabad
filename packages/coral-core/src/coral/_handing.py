"""Handing work to threads, of which there may be none to be had: then the calling thread does it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

_T = TypeVar("_T")


def hand(executor: Executor, work: Callable[[], _T]) -> Future[_T]:
    """Have a thread do something, or do it here: while the interpreter shuts down, and where no thread can be started.

    An executor that cannot start a thread has queued the work all the same: it is done once, by whoever comes first.
    """
    job = _Job(work)
    try:
        return executor.submit(job)
    except RuntimeError:
        return done_here(job)


def done_here(work: Callable[[], _T]) -> Future[_T]:
    """What the calling thread makes of the work. An interrupt is not caught: it ends the work, and goes on."""
    done: Future[_T] = Future()
    try:
        done.set_result(work())
    except Exception as error:  # noqa: BLE001 - raised where the result is asked for
        done.set_exception(error)
    return done


class _Job(Generic[_T]):
    """Work that is done once, however often it is called."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work: Callable[[], _T] | None = work
        self._lock = threading.Lock()
        self._done: Future[_T] | None = None

    def __call__(self) -> _T:
        with self._lock:
            work, self._work = self._work, None
            if work is not None:
                self._done = done_here(work)
        if self._done is None:
            raise RuntimeError("it was interrupted when it was done")
        return self._done.result()
