"""The events of a step, collected as the Trainer's hooks come, until the boundary."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real

from coral.training import EpochEnd, Evaluated, Event, StepEnd

__all__ = ["Collected", "is_final"]

_TIMINGS = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")


class Collected:
    """What has happened since the last boundary. `monitored` is the metric that the run is judged by.

    A metric that the Trainer calls `eval_<name>` is known as `<name>` too, if that is the monitored one, as it is for
    `metric_for_best_model`.
    """

    def __init__(self, monitored: str | None) -> None:
        self._monitored = monitored
        self._events: list[Event] = []
        self._logged: dict[str, float] = {}
        self._epoch_moved = False

    def step_end(self, step: int) -> None:
        """An update is complete."""
        self._events.append(StepEnd(step, time.monotonic()))
        self._epoch_moved = True

    def epoch_end(self, step: int, epoch: float, *, complete: bool) -> None:
        """An epoch is over; `epoch` is the Trainer's count. One without a single update is none."""
        if self._epoch_moved:
            self._events.append(EpochEnd(step, math.ceil(epoch) - 1, complete))
        self._epoch_moved = False

    def evaluated(self, step: int, metrics: Mapping[str, object]) -> None:
        """The weights of this step were evaluated."""
        numbers = _numbers(metrics)
        name = self._monitored
        if name is not None and name not in numbers and f"eval_{name}" in numbers:
            numbers[name] = numbers[f"eval_{name}"]
        self._events.append(Evaluated(step, numbers))

    def logged(self, logs: Mapping[str, object]) -> None:
        """Numbers of the step's training: recorded with it, never judged."""
        self._logged |= {name: value for name, value in _numbers(logs).items() if not name.startswith("eval_")}

    @property
    def events(self) -> tuple[Event, ...]:
        """What has come so far."""
        return tuple(
            replace(event, metrics=dict(self._logged)) if isinstance(event, StepEnd) else event
            for event in self._events
        )

    def take(self) -> tuple[Event, ...]:
        """What has come, to be told now; what is logged of a step that is not complete stays."""
        events = self.events
        if any(isinstance(event, StepEnd) for event in events):
            self._logged.clear()
        self._events.clear()
        return events


def is_final(logs: Mapping[str, object] | None) -> bool:
    """Whether these logs are the last of a training: with `include_num_input_tokens_seen` all have a train_runtime."""
    return logs is not None and "train_runtime" in logs and "train_loss" in logs


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Those that are numbers, without the timings, which no two runs have in common."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real)
        and not isinstance(value, bool)
        and name not in ("epoch", "total_flos")
        and not name.endswith(_TIMINGS)
    }
