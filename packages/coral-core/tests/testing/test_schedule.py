"""Schedules: what they mean, and which cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from coral.errors import ConfigError
from coral.testing import Crash, Evaluations, Schedule, weights_at
from coral.training import CheckpointConfig, EpochEnd, Evaluated, Interrupted, StepEnd, TrainEnd

BY_STEP = Evaluations({"loss": (3.0, 2.0)}, every_n_steps=2)
BY_EPOCH = Evaluations({"loss": (3.0, 2.0)}, every_n_epochs=2)


def test_accumulated_batches_make_one_update() -> None:
    schedule = Schedule(epochs=3, batches=6, accumulate=2)
    assert (schedule.steps_per_epoch, schedule.last_step) == (3, 9)
    assert [schedule.position(step) for step in range(5)] == [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2)]


def test_evaluations_come_by_step_or_by_epoch_and_the_last_score_holds_on() -> None:
    assert [Schedule(epochs=3, evaluations=BY_STEP).scores(step) for step in range(9)] == [
        None, None, {"loss": 3.0}, None, {"loss": 2.0}, None, {"loss": 2.0}, None, {"loss": 2.0},
    ]  # fmt: skip
    by_epoch = Schedule(epochs=4, evaluations=BY_EPOCH)
    assert [step for step in range(13) if by_epoch.scores(step)] == [6, 12]


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_events_of_a_step_come_in_the_order_that_is_asked_for(order: Any) -> None:
    schedule = Schedule(evaluations=Evaluations({"loss": (3.0,)}, every_n_epochs=1, order=order))
    step, *rest = schedule.events(3)
    assert step == StepEnd(3)
    expected = [Evaluated(3, {"loss": 3.0}), EpochEnd(3, 0)]
    assert rest == (expected if order == "before" else expected[::-1])
    assert schedule.events(2) == (StepEnd(2),)


def test_max_steps_cuts_an_epoch_short() -> None:
    schedule = Schedule(epochs=3, max_steps=5)
    assert schedule.last_step == 5
    assert schedule.events(3) == (StepEnd(3), EpochEnd(3, 0))
    assert schedule.events(5) == (StepEnd(5), EpochEnd(5, 1, complete=False))
    assert Schedule(max_steps=3).events(3) == (StepEnd(3), EpochEnd(3, 0))


def test_a_run_ends_or_crashes() -> None:
    schedule = Schedule(crash=Crash(4, mid_step=True))
    assert schedule.end(4, crashes=True) == Interrupted(4, "exception", mid_step=True)
    assert schedule.end(6, crashes=False) == TrainEnd(6)


def test_the_weights_are_the_step_and_an_update_changes_one_after_the_other() -> None:
    assert {name: weight.data.tolist() for name, weight in weights_at(4).items()} == {"weight": [4, 4, 4], "bias": [4]}
    torn = weights_at(4, torn=True)
    assert (torn["weight"].data.tolist(), torn["bias"].data.tolist()) == ([5, 5, 5], [4])
    assert torn["weight"].data.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate": 0}, "1 or more"),
        ({"epochs": 0}, "1 or more"),
        ({"batches": 5, "accumulate": 2}, "a multiple of accumulate"),
        ({"max_steps": 7}, "within the epochs"),
        ({"max_steps": 0}, "within the epochs"),
        ({"max_steps": 5, "evaluations": Evaluations({"loss": (1.0,)}, every_n_epochs=1)}, "evaluates by steps"),
        ({"crash": Crash(6)}, "before the last"),
        ({"crash": Crash(0)}, "after the first"),
        ({"resume": "last"}, "only a run that crashes resumes"),
        ({"config": CheckpointConfig(save_every_seconds=1)}, "no two runs take the same time"),
    ],
)
def test_what_frameworks_cannot_agree_on_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Schedule(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scores": {"loss": (1.0,)}}, "one of the two"),
        ({"scores": {"loss": (1.0,)}, "every_n_steps": 1, "every_n_epochs": 1}, "one of the two"),
        ({"scores": {}, "every_n_steps": 1}, "each with a score"),
        ({"scores": {"loss": ()}, "every_n_steps": 1}, "each with a score"),
    ],
)
def test_evaluations_that_say_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Evaluations(**options)


def test_a_score_may_be_anything_that_a_metric_can_be() -> None:
    scores = Schedule(evaluations=Evaluations({"loss": (math.nan,)}, every_n_steps=1)).scores(1)
    assert scores is not None
    assert math.isnan(scores["loss"])
