"""One thread that does what it is given, in the order it was given."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from coral._handing import hand

_T = TypeVar("_T")


class Worker:
    """A thread that is started when it is needed. A forked process has its own; if none can be had the caller works."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._pid = 0

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Have something done after all that was submitted before."""
        if self._executor is None or self._pid != os.getpid():
            self._executor, self._pid = ThreadPoolExecutor(1, thread_name_prefix="coral-save"), os.getpid()
        return hand(self._executor, work)

    def close(self) -> None:
        """Finish what was submitted, and end the thread; it is started anew if there is more to do."""
        executor, self._executor = self._executor, None
        if executor is not None and self._pid == os.getpid():
            executor.shutdown(wait=True)
