"""Leg: one process of a run, as the code that trains in it sees it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from coral import Repository
from coral.errors import PolicyError
from coral.testing._schedule import Schedule

OUTSIDE = -1e9
"""The score of an evaluation outside of training: better than any, by whichever sign the config has."""


class TrainingCrash(Exception):
    """What a schedule's crash raises: nothing else may come out of the training."""


@dataclass(slots=True)
class Leg:
    """One process of a schedule's run: from the beginning or a checkpoint, to the end or the crash.

    It is given to `AdapterTests.train`, which calls `forward`, `update` and `scores` from the code that trains: they
    raise the crash where the schedule has it, and tell the kit what the framework really did.

    `repo` and `branch` are where to save, `experiment` is a name for the run where the adapter takes one. `resume` is
    the id of the commit to go on from, or None.
    """

    schedule: Schedule
    repo: Repository
    branch: str = "counting"
    experiment: str = "counts"
    resume: str | None = None
    crashes: bool = False
    error: TrainingCrash = field(default_factory=lambda: TrainingCrash("the schedule crashes here"))
    batches: list[int] = field(default_factory=list)  # the step that the weights were of, at each batch
    changed: threading.Condition = field(default_factory=threading.Condition)
    changing: int = -1  # the step whose weights are being changed by an update, or were last

    def forward(self, weight: float) -> None:
        """A batch of training goes through the model, whose weights hold `weight`: the step, that is."""
        step = _whole(weight)
        self.batches.append(step)
        self._crash(step, mid_step=False)

    def update(self, weight: float) -> None:
        """An update of weights that held `weight` has changed the first of them, and not yet the second."""
        step = _whole(weight)
        with self.changed:
            self.changing = step
            self.changed.notify_all()
        self._crash(step, mid_step=True)

    def scores(self, weight: float) -> dict[str, float]:
        """What an evaluation of weights that hold `weight` gives, by the names of its metrics."""
        found = self.schedule.scores(_whole(weight))
        if found is None:
            raise PolicyError(f"weights of step {weight:g} are evaluated, where the schedule has no evaluation")
        return found

    def outside_scores(self) -> dict[str, float]:
        """What an evaluation outside of training gives: where `schedule.outside` says that there is one."""
        worst = -1.0 if not self.schedule.config.minimize_metric else 1.0
        return dict.fromkeys(sorted(self.schedule.metrics), worst * OUTSIDE)

    def _crash(self, step: int, *, mid_step: bool) -> None:
        crash = self.schedule.crash
        if self.crashes and crash is not None and (step, mid_step) == (crash.step, crash.mid_step):
            raise self.error


def _whole(weight: float) -> int:
    if weight != int(weight):
        raise PolicyError(f"the weights hold {weight}: not every update adds 1, so this is not the model that counts")
    return int(weight)
