"""The processes of a distributed run: the main one decides and saves, the others give what only they have.

Whatever several of them do together, all of them do, in the same order: at a boundary the main process sends word of
each thing that it wants, and of the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from coral.errors import CoralError

__all__ = ["Ranks", "on_main", "rank"]

_GO_ON, _STOP, _GIVE = range(3)


class _Failed(NamedTuple):
    """What a process gives that could not."""

    why: str


class Ranks:
    """What the processes of a run do together; `give` is what each of them does when the main one needs it.

    With `together` False (one process, or nothing that is needed of the others) nothing here talks to anyone.
    """

    def __init__(self, give: Callable[[], Any], device: torch.device | str = "cpu") -> None:
        self.together = False
        self._give = give
        self._device = device

    def lead(self, work: Callable[[], bool]) -> bool:
        """On the main process: do the work, which may `gather`, and tell all if it says that training is to end."""
        if not self.together:
            return work()
        stop = False
        try:
            stop = work()
        finally:  # the others wait for word, whatever has become of the work
            self._tell(_STOP if stop else _GO_ON)
        return stop

    def follow(self) -> bool:
        """On the others: give what the main process asks for, until it says whether training is to end."""
        while self.together:
            word = self._tell()
            if word != _GIVE:
                return word == _STOP
            self.gather()
        return False

    def gather(self) -> list[Any]:
        """What `give` returns on each process, by rank; elsewhere than on the main one an empty list.

        Within `lead` and `follow` alone; outside of them, where `together` is False, this process's only.
        """
        if not self.together:
            return [self._give()]
        main = dist.get_rank() == 0
        if main:
            self._tell(_GIVE)
        given: list[Any] = [None] * dist.get_world_size() if main else []
        dist.gather_object(self._given(), given if main else None, dst=0)
        if failed := [f"rank {rank}: {each.why}" for rank, each in enumerate(given) if isinstance(each, _Failed)]:
            raise RuntimeError("; ".join(failed))
        return given

    def _given(self) -> Any:
        try:
            return self._give()
        except Exception as error:  # noqa: BLE001 - the main process waits for something, and hears of it
            return _Failed(repr(error))

    def _tell(self, word: int = -1) -> int:
        message = torch.tensor([word], device=self._device)
        dist.broadcast(message, src=0)
        return int(message.item())


def rank() -> int:
    """Which of the processes of a distributed run this is; 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def on_main(work: Callable[[], str]) -> str:
    """What it returns, or raises, on the main process, on all of them: the others wait for it."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return work()
    told: list[Any] = ["", None]
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except Exception as error:  # noqa: BLE001 - raised below, on all of them
            told[1] = error if isinstance(error, CoralError) else RuntimeError(repr(error))
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return str(told[0])
