"""Schedules drawn by hypothesis: any that an adapter may be given, and that can be played.

    @given(schedules())
    def test_any_schedule(schedule: Schedule) -> None:
        with TemporaryDirectory() as folder:
            TestMyAdapter().check(schedule, Path(folder))

Where a framework cannot do some of them, filter: `schedules().filter(lambda schedule: schedule.accumulate == 1)`.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from coral.errors import ConfigError
from coral.testing._reference import reference
from coral.testing._schedule import Crash, Evaluations, Schedule
from coral.training import CheckpointConfig

__all__ = ["schedules"]

_SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, math.nan, math.inf]), min_size=1, max_size=6)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule of a few steps, with at most one crash and one resume."""
    accumulate = draw(st.integers(1, 3))
    shape: dict[str, Any] = {
        "epochs": draw(st.integers(1, 4)),
        "batches": accumulate * draw(st.integers(1, 4)),
        "accumulate": accumulate,
    }
    steps = shape["epochs"] * shape["batches"] // accumulate
    if draw(st.booleans()):
        shape["max_steps"] = draw(st.integers(1, steps))
    evaluations = draw(st.none() | _evaluations())
    last = shape.get("max_steps", steps)
    if last > 1 and draw(st.booleans()):
        shape["crash"] = Crash(draw(st.integers(1, last - 1)), draw(st.booleans()))
        refs = st.sampled_from(["last", "best"]) | st.integers(1, last).map("step:{}".format)
        shape["resume"] = draw(st.none() | refs)
    try:
        schedule = Schedule(evaluations=evaluations, config=draw(_configs(evaluations)), **shape)
        reference(schedule)
    except ConfigError:
        assume(False)
        raise
    return schedule


@st.composite
def _evaluations(draw: st.DrawFn) -> Evaluations:
    by = draw(st.sampled_from(["every_n_steps", "every_n_epochs"]))
    names = draw(st.sampled_from([["eval_loss"], ["eval_a_loss", "eval_loss"]]))
    return Evaluations(
        {name: tuple(draw(_SCORES)) for name in names},
        **{by: draw(st.integers(1, 3))},
        order=draw(st.sampled_from(["before", "after"])),
    )


@st.composite
def _configs(draw: st.DrawFn, evaluations: Evaluations | None) -> CheckpointConfig:
    few, maybe = st.none() | st.integers(1, 3), st.booleans()
    judged: dict[str, Any] = {}
    if evaluations is not None and draw(maybe):
        judged = {
            "save_on_best_metric": "eval_loss",
            "minimize_metric": draw(maybe),
            "best_threshold": draw(st.sampled_from([0.0, 0.75])),
            "keep_best_n_checkpoints": draw(few),
            "early_stopping_patience": draw(few),
            "early_stopping_threshold": draw(st.sampled_from([0.0, 0.75])),
        }
    return CheckpointConfig(
        save_every_n_steps=draw(few),
        save_every_n_epochs=draw(few),
        keep_last_n_checkpoints=draw(few),
        keep_checkpoint_every_n_epochs=draw(few),
        save_on_train_end=draw(maybe),
        save_on_interrupt=draw(maybe),
        durability="fast",
        background_repack=False,
        check_disk=False,
        **judged,
    )
