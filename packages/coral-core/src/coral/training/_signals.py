"""SIGTERM and SIGUSR1 while a run goes on: they set a flag, and the training sees it when its weights are whole."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from coral.training._config import CheckpointConfig

_log = logging.getLogger("coral")

_Handler = Callable[[int, FrameType | None], Any] | int | None
_NAMES = ("SIGTERM", "SIGUSR1")  # Windows lacks the second


class Signals:
    """Listens while a run goes on, and then puts back the handlers that it found.

    SIGUSR1 calls `ask`, which may only set a flag, and a handler of the program's own after it. The first SIGTERM asks
    the training to end; a second one goes to the handler that was there before. A process that was forked off meanwhile
    is none of this run's: its signals go to those handlers, too.

    In a distributed run, whose launcher signals all processes, those without a manager are bystanders.
    """

    def __init__(self, ask: Callable[[], None], experiment: str) -> None:
        self._ask = ask
        self._experiment = experiment
        self._found: dict[int, _Handler] = {}
        self._listening = False
        self._refused = False
        self._pid = 0
        self._terminated = False  # a SIGTERM came
        self._due = False  # ... and nobody was told yet

    @classmethod
    def bystander(cls, config: CheckpointConfig, rank: int) -> Self:
        """Those of a process without a manager, which listens so as not to be gone before the main one has saved.

        Where `handle_signals` is off it does not.
        """
        found = cls(lambda: None, f"rank {rank}")
        if config.handle_signals:
            found.listen()
        return found

    def listen(self) -> None:
        """Begin, if that is not done yet. Handlers can be set by the main thread alone: another one says so, once."""
        if self._listening or self._refused:
            return
        if threading.current_thread() is not threading.main_thread():
            self._refused = True
            _log.warning("%s: signals are not handled: training is not in the main thread", self._experiment)
            return
        self._pid, self._terminated, self._due, self._listening = os.getpid(), False, False, True
        for number in self._numbers():
            found = signal.getsignal(number)
            if found is None:
                _log.warning("%s: %s is not handled: it has a handler that is not Python's", self._experiment, number)
            elif found != self._handle:  # it was left in place when someone's handler lay over it
                self._found[number] = found
                signal.signal(number, self._handle)

    @property
    def due(self) -> bool:
        """Whether a SIGTERM came that nobody was told of yet."""
        return self._due

    def take(self) -> bool:
        """The same, and now somebody is told."""
        due, self._due = self._due, False
        return due

    def stop(self) -> None:
        """Put back the handlers that were found, where nobody has set others since."""
        if not self._listening:
            return
        self._listening = False
        if threading.current_thread() is not threading.main_thread():
            _log.warning("%s: handlers stay, and pass signals on: this is not the main thread", self._experiment)
            return
        for number, found in self._found.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, found)

    def _numbers(self) -> list[signal.Signals]:
        return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._listening or os.getpid() != self._pid:
            self._pass_on(number, frame)
        elif number != signal.SIGTERM:
            self._ask()
            found = self._found.get(number)
            if callable(found):
                found(number, frame)
        elif self._terminated:
            self._pass_on(number, frame)
        else:
            self._terminated = self._due = True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """What would have happened without us."""
        found = self._found.get(number)
        if callable(found):
            found(number, frame)
        elif found == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
