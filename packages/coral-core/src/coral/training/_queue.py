"""What a run has given its worker to do, and has not heard of yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from coral._handing import done_here
from coral.training._worker import Worker


@dataclass(frozen=True, slots=True)
class PendingSave:
    """A save that was not reported on yet."""

    step: int
    commit: Future[str]


class Queue:
    """At most one save, and the notes, tags and prunes that follow saves: done one after the other, in this order.

    Without `beside` nothing goes on beside the training: it waits for everything but saves of copies.
    """

    def __init__(self, *, beside: bool) -> None:
        self.pending: PendingSave | None = None
        self._beside = beside
        self._later: list[Future[None]] = []
        self._worker = Worker()

    def save(self, step: int, work: Callable[[], str], *, here: bool) -> Future[str]:
        """Have a save done; `here` by the calling thread, and an interrupt of that is the caller's."""
        commit = done_here(work) if here else self._worker.submit(work)
        self.pending = PendingSave(step, commit)
        return commit

    def do(self, work: Callable[[], None], *, here: bool = False) -> None:
        """Have something done after what there is to do already."""
        self._later.append(self._worker.submit(work) if self._beside and not here else done_here(work))

    def finished(self, *, wait: bool) -> Iterator[tuple[int | None, Future[str] | Future[None]]]:
        """What is done, with the step where it is a save; everything if `wait`.

        An interrupt of the wait leaves what is waited for pending: its memory is in use.
        """
        while self.pending and (wait or self.pending.commit.done()):
            pending = self.pending
            pending.commit.exception()
            self.pending = None
            yield pending.step, pending.commit
        while self._later and (wait or self._later[0].done()):
            self._later[0].exception()
            yield None, self._later.pop(0)

    def close(self) -> None:
        """Finish what there is to do, and end the thread; it is started anew if there is more."""
        self._worker.close()
