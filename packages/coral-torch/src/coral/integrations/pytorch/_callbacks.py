"""What a user wants to be told of: a step or an epoch that ends, a checkpoint that is saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

from coral import Repository
from coral.errors import ConfigError

__all__ = ["CallbackEvent", "Callbacks"]

CallbackEvent = Literal["step_end", "epoch_end", "checkpoint_save"]


class Callbacks:
    """Functions by the event that they are called at, in the order in which they were added.

    A save is done in the background: what is to be said of it waits until the thread that trains asks.
    """

    def __init__(self, owner: object, repo: Repository) -> None:
        self._owner = owner
        self._repo = repo
        self._functions: dict[str, list[Callable[..., object]]] = {name: [] for name in get_args(CallbackEvent)}
        self._waiting: list[Callable[[], object]] = []

    def add(self, event: str, function: Callable[..., object]) -> None:
        """Call a function at an event from now on."""
        if event not in self._functions:
            raise ConfigError(f"there is no event {event!r} to be called at; there are {', '.join(self._functions)}.")
        if not callable(function):
            raise ConfigError(f"what is to be called at {event} is {function!r}; it must be a function.")
        self._functions[event].append(function)

    def saved(self, step: int, commit: str) -> None:
        """Note that a save is done, for the next `tell`."""
        functions = self._functions["checkpoint_save"]
        if not functions:
            return
        found = self._repo.show(commit)
        facts = {
            "step": step,
            "epoch": found.epoch,
            "commit": commit,
            "reasons": found.reasons,
            "metrics": dict(found.metrics),
        }
        self._waiting += [partial(function, self._owner, **facts) for function in functions]

    def tell(self, event: CallbackEvent | None = None, **facts: Any) -> None:
        """Say what was saved since, and then that this happened. An exception leaves what was not said for later."""
        for function in self._functions[event] if event else ():
            self._waiting.append(partial(function, self._owner, **facts))
        while self._waiting:
            self._waiting.pop(0)()
