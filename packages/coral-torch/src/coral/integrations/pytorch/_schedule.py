"""When the trainer steps the LR scheduler, and how it knows that the user has done so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch.optim.lr_scheduler import ReduceLROnPlateau

from coral.errors import ConfigError

__all__ = ["Schedule", "StepOn"]

StepOn = Literal["epoch", "step"] | None


class Schedule:
    """A scheduler with the moment at which the trainer steps it: at each "epoch", each "step", or never (None)."""

    def __init__(self, scheduler: Any, step_on: StepOn, metric: str) -> None:
        if step_on not in ("epoch", "step", None):
            raise ConfigError(f'step_on is {step_on!r}; it must be "epoch", "step" or None.')
        self.scheduler = scheduler
        self.step_on = step_on
        self._metric = metric  # what a plateau scheduler looks at
        self._seen = _ticks(scheduler)
        self._warned: set[str] = set()

    def look(self) -> None:
        """Take the scheduler as it is now: what was done to it so far was not the user's stepping."""
        self._seen = _ticks(self.scheduler)

    def advance(self, moment: StepOn, metrics: Mapping[str, float]) -> None:
        """Step the scheduler if this is the moment and the user has not, since the last one."""
        if moment != self.step_on:
            return
        if self._seen is not None and _ticks(self.scheduler) != self._seen:
            self._warn(
                "stepped",
                "the scheduler was stepped by the training loop, so the trainer leaves it alone; "
                "set_scheduler(scheduler, step_on=None) says so without a warning",
            )
        elif not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif self._metric in metrics:
            self.scheduler.step(metrics[self._metric])
        else:
            self._warn(
                "metric",
                f"the plateau scheduler was not stepped: metric {self._metric!r} is not among "
                f"{sorted(metrics)}; give it to epoch_end, or name another with set_scheduler(..., metric=...)",
            )
        self.look()

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=4)


def _ticks(scheduler: Any) -> tuple[int, ...] | None:
    """How often it was stepped, as far as it says: with its parts, which a ChainedScheduler leaves the counting to."""
    parts = [scheduler, *getattr(scheduler, "_schedulers", ())]
    counts = [part.last_epoch for part in parts if isinstance(getattr(part, "last_epoch", None), int)]
    return tuple(counts) or None
