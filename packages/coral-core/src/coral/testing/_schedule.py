"""Schedules: what a training run does, said without a framework.

The model is one that counts: two float32 weights that begin at 0, a loss of minus their sum, SGD with a learning rate
of 1. So each update adds 1 to every number in them, and the weights *are* the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from coral import WeightTensor
from coral.errors import ConfigError
from coral.training import CheckpointConfig, EpochEnd, Evaluated, Event, Interrupted, StepEnd, TrainEnd

SHAPES = {"weight": (3,), "bias": (1,)}
"""The weights of the model that counts, in the order in which an update changes them."""


@dataclass(frozen=True, slots=True)
class Evaluations:
    """When a run is evaluated: every so many steps or every so many complete epochs, one of the two.

    `scores` has, by the name of a metric, its value at each evaluation of the run in turn, of which the last holds on;
    several evaluation sets are several names. `order` is that of an evaluation and the end of its epoch, where the
    framework leaves the choice.
    """

    scores: Mapping[str, tuple[float, ...]]
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    order: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if (self.every_n_steps is None) == (self.every_n_epochs is None):
            raise ConfigError("a schedule evaluates every_n_steps or every_n_epochs: give one of the two")
        if not self.scores or not all(self.scores.values()):
            raise ConfigError(f"an evaluation has metrics, each with a score or more, not {self.scores!r}")


@dataclass(frozen=True, slots=True)
class Crash:
    """An exception in the training after `step` updates: in the next batch, or `mid_step`, inside the next update."""

    step: int
    mid_step: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run does: its epochs and batches, evaluations, crash and resume, and by which config it is saved.

    `accumulate` batches make one update. `max_steps` ends the run after so many, in the middle of an epoch too. After
    a `crash` the run goes on in a new process, as it were, from the checkpoint that `resume` names: "last", "best" or
    "step:4"; it goes on within the epoch, with the batches that are left of it. With `outside` the model is evaluated
    outside of training too, with a score that would be the best: a sanity check before, a prediction after it. With
    `load_best` the best weights are loaded when training is over, before whatever the framework does last.

    Raises ConfigError for what frameworks understand differently, or cannot do.

    >>> from coral.testing import Crash, Schedule
    >>> from coral.training import CheckpointConfig
    >>> Schedule(batches=4, crash=Crash(6), resume="last", config=CheckpointConfig(save_every_n_steps=2)).position(6)
    (1, 2)
    """

    epochs: int = 2
    batches: int = 3
    accumulate: int = 1
    max_steps: int | None = None
    evaluations: Evaluations | None = None
    crash: Crash | None = None
    resume: str | None = None
    outside: bool = False
    load_best: bool = False
    config: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if min(self.epochs, self.batches, self.accumulate) < 1:
            raise ConfigError(f"epochs, batches and accumulate of a schedule are 1 or more. It is {self}")
        by_epoch = self.evaluations is not None and self.evaluations.every_n_epochs is not None
        complaints = {
            "batches are a multiple of accumulate: frameworks differ on the rest": self.batches % self.accumulate,
            "max_steps is within the epochs": self.max_steps is not None
            and not 0 < self.max_steps <= self.epochs * self.steps_per_epoch,
            "a run that max_steps cuts evaluates by steps: frameworks differ on the epoch that is cut": by_epoch
            and self.last_step % self.steps_per_epoch,
            "the crash is after the first update and before the last": self.crash
            and not 0 < self.crash.step < self.last_step,
            "only a run that crashes resumes": self.resume and not self.crash,
            "save_every_seconds has no place in a schedule: no two runs take the same time": (
                self.config.save_every_seconds
            ),
        }
        for complaint, holds in complaints.items():
            if holds:
                raise ConfigError(f"this schedule cannot be: {complaint}. It is {self}")

    # The clock

    @property
    def steps_per_epoch(self) -> int:
        """Updates in a complete epoch."""
        return self.batches // self.accumulate

    @property
    def last_step(self) -> int:
        """Updates in the whole run, if nothing ends it before."""
        return self.max_steps or self.epochs * self.steps_per_epoch

    def position(self, step: int) -> tuple[int, int]:
        """The 0-based epoch, and the batch in it, that training goes on with after so many updates."""
        epoch, updates = divmod(step, self.steps_per_epoch)
        return epoch, updates * self.accumulate

    # What is evaluated

    @property
    def metrics(self) -> frozenset[str]:
        """The names of all metrics that evaluations give."""
        return frozenset(self.evaluations.scores if self.evaluations else ())

    def scores(self, step: int) -> dict[str, float] | None:
        """What an evaluation after so many updates gives; None where there is none."""
        evaluations = self.evaluations
        if evaluations is None or not step:
            return None
        every = evaluations.every_n_steps or (evaluations.every_n_epochs or 0) * self.steps_per_epoch
        if step % every:
            return None
        number = step // every - 1
        return {name: values[min(number, len(values) - 1)] for name, values in evaluations.scores.items()}

    # What the run means

    def events(self, step: int) -> tuple[Event, ...]:
        """What happens when the update that makes it `step` of them is complete."""
        scores, (epoch, left_off) = self.scores(step), self.position(step)
        evaluated = () if scores is None else (Evaluated(step, scores),)
        ends: tuple[Event, ...] = ()
        if not left_off:
            ends = (EpochEnd(step, epoch - 1),)
        elif step == self.last_step:
            ends = (EpochEnd(step, epoch, complete=False),)
        after = self.evaluations is not None and self.evaluations.order == "after"
        return (StepEnd(step), *ends, *evaluated) if after else (StepEnd(step), *evaluated, *ends)

    def end(self, step: int, *, crashes: bool) -> Event:
        """How a run that has come so far ends."""
        if crashes and self.crash is not None:
            return Interrupted(step, "exception", self.crash.mid_step)
        return TrainEnd(step)


def weights_at(step: int, *, torn: bool = False) -> dict[str, WeightTensor]:
    """The weights after so many updates; `torn` if they were saved inside the next one, which had changed the first."""
    (first, _), values = SHAPES, dict.fromkeys(SHAPES, step)
    values[first] += torn
    return {name: WeightTensor(np.full(shape, values[name], np.float32)) for name, shape in SHAPES.items()}
