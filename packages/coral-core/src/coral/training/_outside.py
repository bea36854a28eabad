"""What is asked of a run from outside its loop, as events of the boundary at which it can be done."""

from __future__ import annotations

import logging

from coral.filesystem import FileSystem
from coral.training._config import CheckpointConfig
from coral.training._events import EpochEnd, Event, Interrupted, SaveRequested, StepEnd, TrainEnd
from coral.training._policy_state import PolicyState
from coral.training._requests import Requests
from coral.training._signals import Signals

_log = logging.getLogger("coral")


class Outside:
    """Saves that are asked for by hand, and signals. The manager of the rank that writes has one, and no other."""

    def __init__(self, fs: FileSystem, config: CheckpointConfig, experiment: str) -> None:
        self.requests = Requests(fs, watch=config.save_on_request)
        self._signals = Signals(self.requests.ask, experiment)
        self._handles = config.handle_signals
        self._experiment = experiment
        self._step: int | None = None  # the step at which a save was last asked for

    def join(self, events: tuple[Event, ...]) -> tuple[Event, ...]:
        """The events of one moment with what is asked at it: only a step or an epoch that ends, or the run, is one."""
        self._step = None
        if self._handles:
            self._signals.listen()
        if not any(isinstance(event, StepEnd | EpochEnd | TrainEnd) for event in events):
            return events
        step = max(event.step for event in events)
        if self.requests.due(last=any(isinstance(event, TrainEnd) for event in events)):
            self._step, events = step, (*events, SaveRequested(step))
        if self._signals.take():
            events = (*events, Interrupted(step, "preempted"))
        return events

    @property
    def ends(self) -> bool:
        """Whether a SIGTERM came that the next moment is to be told of."""
        return self._signals.due

    def answer(self, state: PolicyState) -> None:
        """What was asked at this moment is answered by the save of this step, if it has one."""
        if self._step is not None and state.now.status in ("asked", "saved"):
            self.requests.taken(self._step)
            if state.now.status == "saved":
                self.requests.saved(self._step)

    def stop_reason(self, events: tuple[Event, ...]) -> str | None:
        """Why the training is to end, if these events say so."""
        if not any(isinstance(event, Interrupted) and event.cause == "preempted" for event in events):
            return None
        _log.warning("%s: stop: the run was asked to end before its time", self._experiment)
        return "the run was asked to end before its time"

    def close(self) -> None:
        """Listen no more."""
        self._signals.stop()
        if self._signals.take():
            _log.warning("%s: a SIGTERM came when the run was ending: it is not passed on", self._experiment)
