from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from fractions import Fraction
from typing import Any, get_args

import pytest

from coral.errors import CorruptObject, PolicyError
from coral.training import _events
from coral.training._config import CheckpointConfig
from coral.training._events import (
    Action,
    Annotate,
    Cause,
    EpochEnd,
    Evaluated,
    Event,
    Interrupted,
    Prune,
    Save,
    Saved,
    SaveFailed,
    SaveRequested,
    StepEnd,
    Stop,
    TrainBegin,
    TrainEnd,
)
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import Best, Kept, PolicyState


class Run:
    """A policy and its state; `emit` gives the actions of one call, `keep` reports every save at once."""

    def __init__(self, **options: Any) -> None:
        self.policy = CheckpointPolicy(CheckpointConfig(**options))
        self.state = PolicyState()

    def emit(self, *events: Event) -> list[Action]:
        self.state, actions = self.policy.advance(self.state, *events)
        return list(actions)

    def keep(self, *events: Event) -> list[Action]:
        actions = self.emit(*events)
        for action in actions:
            if isinstance(action, Save):
                actions = actions + self.emit(Saved(action.step, "id"))
        return actions

    @property
    def kept(self) -> list[int]:
        return [entry.step for entry in self.state.kept]


def save(step: int, *reasons: str) -> Save:
    return Save(step, frozenset(reasons))


def note(step: int, *reasons: str, **metrics: float) -> Annotate:
    return Annotate(step, frozenset(reasons), metrics)


def val(step: int, value: float) -> Evaluated:
    return Evaluated(step, {"val": value})


# Step, epoch and time


def test_nothing_is_asked_for_when_every_trigger_is_off() -> None:
    run = Run(save_on_train_end=False, save_on_interrupt=False)
    events: list[Event] = [
        TrainBegin(0),
        StepEnd(1, 5.0),
        EpochEnd(1, 0),
        val(1, 1.0),
        Interrupted(1, "exception"),
        TrainEnd(1),
    ]
    assert run.emit(*events) == []


def test_a_step_trigger_fires_when_the_quotient_has_advanced() -> None:
    run = Run(save_every_n_steps=3)
    asked = [action for step in (1, 2, 4, 5, 7, 8, 12) for action in run.emit(StepEnd(step))]
    assert asked == [save(4, "step"), save(7, "step"), save(12, "step")]


def test_a_step_trigger_counts_from_any_earlier_save_and_needs_the_step_to_end() -> None:
    run = Run(save_every_n_steps=3, save_every_n_epochs=1)
    assert run.emit(EpochEnd(4, 0)) == [save(4, "epoch")]
    assert run.emit(StepEnd(5)) == []
    assert run.emit(StepEnd(6)) == [save(6, "step")]


@pytest.mark.parametrize(("resumed", "begin"), [(False, 0), (False, 7), (True, 7)])
def test_a_step_trigger_counts_from_where_training_begins(resumed: bool, begin: int) -> None:
    run = Run(save_every_n_steps=5)
    run.emit(TrainBegin(begin, resumed=resumed))
    asked = [action for step in range(begin + 1, begin + 6) for action in run.emit(StepEnd(step))]
    assert asked == [save(begin + 5 - begin % 5, "step")]


def test_a_late_second_beginning_does_not_move_the_anchor() -> None:
    run = Run(save_every_n_steps=5)
    run.emit(StepEnd(5))
    run.emit(TrainBegin(9))
    assert run.emit(StepEnd(10)) == [save(10, "step")]


def test_an_epoch_trigger_fires_on_every_nth_complete_epoch() -> None:
    run = Run(save_every_n_epochs=2)
    assert [run.emit(EpochEnd(step, step - 1)) for step in (1, 2, 3, 4)] == [
        [],
        [save(2, "epoch")],
        [],
        [save(4, "epoch")],
    ]
    assert run.emit(EpochEnd(5, 5, complete=False)) == []


def test_a_time_trigger_counts_from_the_first_time_seen_and_then_from_the_last_save() -> None:
    run = Run(save_every_seconds=10, save_every_n_epochs=1)
    assert run.emit(TrainBegin(0)) == []
    assert run.emit(StepEnd(1, 100.0)) == []
    assert run.emit(StepEnd(2, 109.9)) == []
    assert run.emit(StepEnd(3, 110.0)) == [save(3, "time")]
    assert run.emit(StepEnd(4, 115.0), EpochEnd(4, 0)) == [save(4, "epoch")]
    assert run.emit(StepEnd(5, 120.0)) == []
    assert run.emit(StepEnd(6)) == []
    assert run.emit(StepEnd(7, 125.0)) == [save(7, "time")]


def test_the_clock_starts_anew_when_training_does() -> None:
    run = Run(save_every_seconds=10)
    run.emit(StepEnd(1, 1000.0))
    run.emit(StepEnd(2, 1010.0))
    run.emit(TrainBegin(2, resumed=True))
    assert run.emit(StepEnd(3, 5000.0)) == []
    assert run.emit(StepEnd(4, 5010.0)) == [save(4, "time")]


def test_the_clock_starts_anew_at_a_step_without_a_save_too() -> None:
    run = Run(save_every_seconds=10)
    run.emit(StepEnd(1, 1000.0), StepEnd(2, 1001.0))
    run.emit(TrainBegin(2))
    assert run.emit(StepEnd(3, 5000.0)) == []


@pytest.mark.parametrize("time", [math.nan, math.inf])
def test_a_time_that_is_no_time_is_left_aside(time: float) -> None:
    run = Run(save_every_seconds=10)
    assert run.emit(StepEnd(1, 0.0)) == []
    assert run.emit(StepEnd(2, time)) == []
    assert run.emit(StepEnd(3, 10.0)) == [save(3, "time")]


# One step, one save


def test_later_triggers_at_a_step_annotate_its_save() -> None:
    run = Run(save_every_n_steps=2, save_every_n_epochs=1, save_on_best_metric="val")
    assert run.emit(StepEnd(2, metrics={"loss": 0.5})) == [save(2, "step")]
    assert run.emit(val(2, 1.0)) == [note(2, "step", "best", loss=0.5, val=1.0)]
    assert run.emit(EpochEnd(2, 0)) == [note(2, "step", "best", "epoch", loss=0.5, val=1.0)]
    assert run.emit(TrainEnd(2)) == [note(2, "step", "best", "epoch", "final", loss=0.5, val=1.0)]
    assert run.emit(TrainEnd(2)) == []


def test_what_comes_in_one_call_is_said_once() -> None:
    run = Run(save_every_n_steps=2, save_every_n_epochs=1, save_on_best_metric="val")
    assert run.emit(StepEnd(2), val(2, 1.0), EpochEnd(2, 0)) == [save(2, "step", "best", "epoch")]
    assert run.emit(Evaluated(2, {"acc": 0.5}), TrainEnd(2)) == [
        note(2, "step", "best", "epoch", "final", val=1.0, acc=0.5)
    ]


def test_a_new_metric_alone_annotates_a_save_and_a_repeated_one_does_not() -> None:
    run = Run(save_every_n_steps=1)
    run.emit(StepEnd(1))
    assert run.emit(Evaluated(1, {"acc": math.nan}))[0] == Annotate(1, frozenset({"step"}), run.state.metrics)
    assert run.emit(Evaluated(1, {"acc": math.nan})) == []
    assert run.emit(Evaluated(2, {"acc": 0.5})) == []


def test_an_epoch_alone_annotates_a_save_so_that_it_can_be_recorded() -> None:
    run = Run(save_every_n_steps=1)
    run.emit(StepEnd(1))
    assert run.emit(EpochEnd(1, 3)) == [note(1, "step")]
    assert run.policy.current(run.state) == Kept(1, 3, frozenset({"step"}))


def test_a_score_alone_annotates_a_save() -> None:
    run = Run(save_every_n_steps=1, save_on_best_metric="loss", best_threshold=1.0)
    run.emit(Evaluated(1, {"loss": 0.5}))
    run.emit(StepEnd(2, metrics={"loss": 0.5}))
    assert run.emit(Evaluated(2, {"loss": 0.5})) == [note(2, "step", loss=0.5)]
    assert run.policy.current(run.state).score == 0.5


def test_a_judged_metric_hides_a_logged_one_whichever_came_first() -> None:
    events: list[Event] = [StepEnd(1, metrics={"loss": 0.1}), EpochEnd(1, 0, metrics={"loss": 0.3})]
    run, backwards = Run(), Run()
    run.emit(*events)
    backwards.emit(*events[::-1])
    assert run.state == backwards.state
    assert run.state.metrics == {"loss": 0.3}


def test_a_step_that_goes_back_raises_and_names_both() -> None:
    run = Run()
    run.emit(StepEnd(10))
    with pytest.raises(PolicyError, match="from 10 to 9"):
        run.emit(StepEnd(9))
    with pytest.raises(PolicyError, match="from 10 to 0"):
        run.emit(TrainBegin(0))


# Best


def test_best_is_strictly_better_and_never_a_number_that_is_not_finite() -> None:
    run = Run(save_on_best_metric="val")
    values = [math.nan, math.inf, -math.inf, 2.0, 2.0, math.nan, 3.0, 1.0]
    asked = [action for step, value in enumerate(values, 1) for action in run.keep(val(step, value))]
    assert asked == [save(4, "best"), save(8, "best")]
    assert run.state.best == Best(8, 1.0)


def test_best_of_a_metric_to_maximize() -> None:
    run = Run(save_on_best_metric="val", minimize_metric=False)
    asked = [
        action for step, value in enumerate([1.0, 0.5, -math.inf, 2.0], 1) for action in run.keep(val(step, value))
    ]
    assert asked == [save(1, "best"), save(4, "best")]


def test_best_is_better_by_more_than_the_threshold() -> None:
    run = Run(save_on_best_metric="val", best_threshold=0.5)
    asked = [action for step, value in enumerate([2.0, 1.5, 1.25], 1) for action in run.keep(val(step, value))]
    assert asked == [save(1, "best"), save(3, "best")]


def test_best_is_judged_by_evaluations_of_the_same_step_only() -> None:
    run = Run(save_on_best_metric="val", save_every_n_steps=3)
    assert run.emit(StepEnd(1, metrics={"val": 1.0})) == []
    assert run.emit(val(2, 5.0)) == [save(2, "best")]
    assert run.emit(StepEnd(3)) == [save(3, "step")]
    assert run.policy.current(run.state).score is None
    assert run.emit(EpochEnd(4, 0, complete=False, metrics={"val": 4.0})) == [save(4, "best")]


def test_the_better_of_two_values_at_a_step_counts() -> None:
    for values in ((3.0, 2.0), (2.0, 3.0), (2.0, math.nan), (-math.inf, 2.0), (math.inf, 2.0)):
        run = Run(save_on_best_metric="val")
        for value in values:
            run.emit(val(1, value))
        assert run.policy.current(run.state) == Kept(1, None, frozenset({"best"}), 2.0)


@pytest.mark.parametrize("value", [True, "0.5", None, 10**400])
def test_a_metric_that_is_no_number_is_left_aside(value: Any) -> None:
    run = Run(save_on_best_metric="val")
    assert run.emit(val(1, value)) == []
    assert run.state.metrics == {}


def test_any_real_number_is_a_metric() -> None:
    run = Run(save_on_best_metric="val")
    metrics: Mapping[str, Any] = {"val": Fraction(1, 2), "n": 3}
    assert run.emit(Evaluated(1, metrics)) == [save(1, "best")]
    assert run.state.metrics == {"val": 0.5, "n": 3.0}


# Reports


def test_a_save_counts_from_its_report_on() -> None:
    run = Run(save_every_n_steps=1, keep_last_n_checkpoints=1, save_on_best_metric="val")
    run.emit(StepEnd(1), val(1, 1.0))
    assert (run.kept, run.state.best) == ([], None)
    assert run.emit(StepEnd(2), val(2, 0.5)) == [save(2, "step", "best")]
    assert run.emit(Saved(1, "id")) == []
    assert (run.kept, run.state.best) == ([1], Best(1, 1.0))
    assert run.emit(Saved(2, "id")) == [Prune((1,))]
    assert (run.kept, run.state.best) == ([2], Best(2, 0.5))


def test_a_failed_save_prunes_nothing_and_leaves_the_best_as_it_was() -> None:
    run = Run(save_every_n_steps=5, keep_last_n_checkpoints=1, save_on_best_metric="val")
    run.keep(val(1, 2.0))
    assert run.emit(StepEnd(5), val(5, 1.0)) == [save(5, "step", "best")]
    assert run.emit(SaveFailed(5, "disk full")) == []
    assert (run.kept, run.state.best) == ([1], Best(1, 2.0))
    assert run.emit(TrainEnd(5)) == []  # no second save at the step, and no note on what is not there
    assert run.emit(StepEnd(6)) == []  # nor at every step from now on
    assert run.emit(val(7, 1.5)) == [save(7, "best")]  # better than the best that exists


def test_a_save_fails_while_later_ones_are_under_way() -> None:
    run = Run(save_on_best_metric="val")
    run.emit(val(1, 3.0))
    run.emit(val(2, 2.0))
    assert run.emit(val(3, 2.5)) == []  # 2 may still become the best
    run.emit(Saved(1, "id"), SaveFailed(2, "disk full"))
    assert run.state.best == Best(1, 3.0)
    assert run.emit(val(4, 2.5)) == [save(4, "best")]


def test_a_failure_within_a_step_does_not_move_the_mark_of_that_step() -> None:
    run = Run(save_on_best_metric="val")
    run.emit(val(1, 1.0))
    run.emit(StepEnd(2), SaveFailed(1, "disk full"))
    assert run.emit(val(2, 2.0)) == []
    assert run.emit(val(3, 2.0)) == [save(3, "best")]


def test_saves_may_be_reported_out_of_order() -> None:
    run = Run(save_on_best_metric="val", keep_last_n_checkpoints=1)
    run.emit(val(1, 2.0))
    run.emit(val(2, 1.0))
    assert run.emit(Saved(2, "id")) == []
    assert run.emit(Saved(1, "id")) == [Prune((1,))]
    assert run.state.best == Best(2, 1.0)


def test_a_report_on_what_is_not_pending_changes_nothing() -> None:
    run = Run(save_every_n_steps=1, keep_last_n_checkpoints=1)
    run.keep(StepEnd(1))
    before = run.state
    assert run.emit(Saved(1, "id"), SaveFailed(1, "late"), Saved(99, "id"), SaveFailed(0, "never asked")) == []
    assert run.state == before


# What is kept


def test_without_budgets_nothing_is_pruned_or_tracked() -> None:
    run = Run(save_every_n_steps=1, keep_checkpoint_every_n_epochs=2, save_on_best_metric="val")
    for step in range(1, 20):
        assert not any(isinstance(action, Prune) for action in run.keep(StepEnd(step), val(step, -step)))
    assert run.kept == []
    assert run.state.best == Best(19, -19.0)


def test_the_last_and_the_best_are_separate_budgets() -> None:
    run = Run(save_every_n_epochs=1, save_on_best_metric="val", keep_last_n_checkpoints=2, keep_best_n_checkpoints=2)
    pruned = []
    for step, value in enumerate([3.0, 1.0, 2.0, 5.0, 6.0, 4.0], 1):
        actions = run.keep(EpochEnd(step, step - 1, metrics={"val": value}))
        pruned.append([action.steps for action in actions if isinstance(action, Prune)])
    assert pruned == [[], [], [(1,)], [], [], [(4,)]]
    assert run.kept == [2, 3, 5, 6]


def test_of_equal_scores_the_earlier_step_is_kept() -> None:
    run = Run(save_every_n_steps=1, save_on_best_metric="val", keep_best_n_checkpoints=2)
    for step in range(1, 5):
        run.keep(StepEnd(step), val(step, 1.0))
    assert run.kept == [1, 2, 4]


def test_the_newest_is_kept_without_a_budget_for_the_last() -> None:
    run = Run(save_every_n_steps=1, save_on_best_metric="val", keep_best_n_checkpoints=1)
    run.keep(StepEnd(1), val(1, 1.0))
    run.keep(StepEnd(2))
    assert run.keep(StepEnd(3)) == [save(3, "step"), Prune((2,))]
    assert run.kept == [1, 3]


def test_the_best_is_kept_without_a_budget_for_the_best() -> None:
    run = Run(save_every_n_steps=1, save_on_best_metric="val", keep_last_n_checkpoints=1)
    for step, value in enumerate([2.0, 1.0, 3.0, 4.0], 1):
        run.keep(StepEnd(step), val(step, value))
    assert run.kept == [2, 4]


def test_the_best_by_the_threshold_is_kept_though_others_rank_higher() -> None:
    run = Run(
        save_every_n_steps=1,
        save_on_best_metric="val",
        best_threshold=1.0,
        keep_last_n_checkpoints=1,
        keep_best_n_checkpoints=1,
    )
    for step, value in enumerate([2.0, 1.5, 1.75], 1):
        run.keep(StepEnd(step), val(step, value))
    assert run.state.best == Best(1, 2.0)
    assert run.kept == [1, 2, 3]


def test_every_nth_epoch_is_never_pruned_counts_in_the_budgets_and_is_forgotten_in_time() -> None:
    run = Run(save_every_n_epochs=1, keep_checkpoint_every_n_epochs=2, keep_last_n_checkpoints=2)
    pruned = []
    for step in range(1, 7):
        pruned += [action.steps for action in run.keep(EpochEnd(step, step - 1)) if isinstance(action, Prune)]
    assert pruned == [(1,), (3,)]
    assert run.kept == [5, 6]


def test_of_two_epochs_that_end_at_one_step_either_keeps_it() -> None:
    for epochs in ((1, 2), (2, 1)):
        run = Run(save_every_n_epochs=1, keep_checkpoint_every_n_epochs=2, keep_last_n_checkpoints=1)
        run.keep(*(EpochEnd(1, epoch) for epoch in epochs))
        assert run.keep(EpochEnd(2, 4)) == [save(2, "epoch")]
        assert run.keep(EpochEnd(3, 5)) == [save(3, "epoch"), Prune((2,))]


def test_what_exceptions_alone_save_takes_no_place_among_the_last() -> None:
    run = Run(save_every_n_epochs=1, keep_last_n_checkpoints=2)
    for step in (1, 2, 3):
        run.keep(EpochEnd(step, step - 1))
    for step in (4, 5, 6):
        run.keep(Interrupted(step, "exception", mid_step=step > 4))
    assert run.kept == [2, 3, 6]
    run.keep(EpochEnd(7, 3))
    assert run.kept == [3, 7]


@pytest.mark.parametrize("cause", get_args(Cause))
def test_the_newest_that_no_interrupt_alone_has_made_is_kept(cause: Cause) -> None:
    run = Run(save_every_n_epochs=1, keep_last_n_checkpoints=1)
    for step in (1, 2):
        run.keep(EpochEnd(step, step - 1))
    for step in (3, 4, 5):
        run.keep(Interrupted(step, cause, mid_step=True))
    assert run.kept == [2, 5]


def test_a_later_reason_gives_an_interrupt_its_place_among_the_last() -> None:
    run = Run(save_every_n_epochs=1, keep_last_n_checkpoints=1)
    run.keep(EpochEnd(1, 0))
    assert run.keep(Interrupted(2, "preempted")) == [save(2, "preempted")]
    assert run.emit(EpochEnd(2, 1)) == [note(2, "preempted", "epoch"), Prune((1,))]


def test_the_resumed_from_is_kept() -> None:
    run = Run(save_every_n_steps=1, keep_last_n_checkpoints=1)
    run.keep(StepEnd(1))
    run.emit(TrainBegin(1, resumed=True))
    assert run.keep(StepEnd(2)) == [save(2, "step")]
    assert run.keep(StepEnd(3)) == [save(3, "step"), Prune((2,))]
    assert run.kept == [1, 3]
    assert run.emit(TrainBegin(3, resumed=True)) == []  # prunes follow saves, and nothing else
    assert run.emit(TrainEnd(3)) == [note(3, "step", "final")]
    assert run.keep(StepEnd(4)) == [save(4, "step"), Prune((1,))]


def test_an_evaluation_of_a_saved_step_ranks_it_anew() -> None:
    run = Run(save_every_n_steps=1, save_on_best_metric="val", keep_best_n_checkpoints=1)
    run.keep(StepEnd(1), val(1, 2.0))
    assert run.keep(StepEnd(2)) == [save(2, "step")]
    assert run.emit(val(2, 1.0)) == [note(2, "step", "best", val=1.0), Prune((1,))]
    assert run.kept == [2]
    assert run.emit(TrainEnd(2)) == [note(2, "step", "best", "final", val=1.0)]


# The end


def test_the_end_is_saved_unless_its_step_is_already() -> None:
    run = Run()
    assert run.emit(StepEnd(3), TrainEnd(3)) == [save(3, "final")]
    assert Run(save_on_train_end=False).emit(StepEnd(3), TrainEnd(3)) == []


def test_a_save_asked_for_by_hand_is_made_at_that_step_or_joins_what_is_saved_there() -> None:
    run = Run(save_every_n_steps=2)
    assert run.emit(StepEnd(1), SaveRequested(1)) == [save(1, "requested")]
    assert run.emit(SaveRequested(1)) == []
    assert run.emit(SaveRequested(2), StepEnd(2)) == [save(2, "requested", "step")]
    run.emit(StepEnd(4))
    assert run.emit(SaveRequested(4)) == [note(4, "requested", "step")]


def test_a_save_asked_for_by_hand_moves_the_step_trigger_on() -> None:
    run = Run(save_every_n_steps=3)
    run.emit(StepEnd(2), SaveRequested(2))
    assert run.emit(StepEnd(3)) == [save(3, "step")]
    run.emit(StepEnd(7), SaveRequested(7))
    assert run.emit(StepEnd(8)) == []


@pytest.mark.parametrize("cause", get_args(Cause))
@pytest.mark.parametrize("mid_step", [False, True])
def test_an_interrupt_is_saved_unless_its_step_is_already(cause: Cause, mid_step: bool) -> None:
    run = Run(save_every_n_steps=2)
    assert run.emit(StepEnd(1), Interrupted(1, cause, mid_step)) == [save(1, cause)]
    run.emit(StepEnd(2))
    assert run.emit(Interrupted(2, cause, mid_step)) == [note(2, "step", cause)]
    assert Run(save_on_interrupt=False).emit(Interrupted(1, cause, mid_step)) == []


def test_a_save_inside_an_update_has_no_score_and_is_never_the_best() -> None:
    run = Run(save_on_best_metric="val", best_threshold=1.0, keep_best_n_checkpoints=1)
    run.keep(val(1, 2.0))
    assert run.keep(val(2, 1.5), Interrupted(2, "exception", mid_step=True)) == [save(2, "exception")]
    assert run.keep(val(2, 0.0), EpochEnd(2, 0), TrainEnd(2)) == []
    assert run.policy.current(run.state) == Kept(2, None, frozenset({"exception"}))
    assert run.state.metrics == {"val": 1.5}
    assert run.state.best == Best(1, 2.0)


def test_an_interrupt_inside_the_next_update_leaves_a_save_made_before_it_as_it_is() -> None:
    run = Run(save_on_best_metric="val")
    assert run.keep(val(2, 1.5)) == [save(2, "best")]
    assert run.emit(Interrupted(2, "exception", mid_step=True)) == [note(2, "best", "exception", val=1.5)]
    assert run.emit(val(2, 0.0)) == []
    assert run.policy.current(run.state).score == 1.5


# Early stopping


def stops(run: Run, *values: float) -> list[int]:
    return [s for s, value in enumerate(values, 1) for action in run.keep(val(s, value)) if isinstance(action, Stop)]


def test_early_stopping_counts_the_evaluations_that_missed_the_goal_and_stops_once() -> None:
    run = Run(save_on_best_metric="val", early_stopping_patience=2)
    assert stops(run, 3.0, 4.0, 2.0, 2.0, 5.0, 6.0, 7.0) == [5]
    assert run.state.stopped
    patient = Run(save_on_best_metric="val", early_stopping_patience=2)
    assert stops(patient, 3.0, 4.0, 2.0, 2.0, 1.0) == []
    assert not patient.state.stopped


@pytest.mark.parametrize(("patience", "stopped"), [(2, True), (3, False), (None, False)])
def test_a_run_that_goes_on_with_more_patience_is_not_stopped(patience: int | None, stopped: bool) -> None:
    run = Run(save_on_best_metric="val", early_stopping_patience=2)
    assert stops(run, 3.0, 4.0, 5.0) == [3]
    policy = CheckpointPolicy(replace(run.policy.config, early_stopping_patience=patience))
    assert policy.resume(run.state.to_json(counters_only=True), []).stopped == stopped


def test_early_stopping_says_why() -> None:
    run = Run(save_on_best_metric="val", early_stopping_patience=1)
    run.emit(val(1, 0.25))
    assert run.emit(val(2, 0.5)) == [Stop("val did not improve in 1 evaluations in a row; the best was 0.25")]
    never = Run(save_on_best_metric="val", early_stopping_patience=1)
    assert never.emit(val(1, math.nan)) == [Stop("val did not improve in 1 evaluations in a row; it was never finite")]


def test_early_stopping_has_a_threshold_and_a_goal_of_its_own() -> None:
    options: dict[str, Any] = {"save_on_best_metric": "val", "early_stopping_patience": 2}
    assert stops(Run(early_stopping_threshold=1.0, **options), 5.0, 4.5, 3.9, 3.5, 3.0) == [5]
    assert stops(Run(best_threshold=9.0, **options), 5.0, 4.5, 3.9, 3.5, 3.0) == []


def test_only_the_monitored_metric_spends_patience() -> None:
    run = Run(save_on_best_metric="val", early_stopping_patience=1)
    run.emit(val(1, 1.0))
    assert run.emit(StepEnd(2, metrics={"val": 9.0}), Evaluated(2, {"acc": 0.0}), EpochEnd(2, 0)) == []


# A metric that never comes


def test_a_missing_metric_is_told_with_the_names_of_those_that_came() -> None:
    run = Run(save_on_best_metric="val_loss")
    run.emit(StepEnd(1, metrics={"loss": 1.0}), EpochEnd(1, 0))
    assert run.policy.missing_metric(run.state) is None
    run.emit(Evaluated(2, {"eval_loss": 1.0}), EpochEnd(2, 1, metrics={"acc": 1.0}))
    assert run.policy.missing_metric(run.state) == ("acc", "eval_loss")
    run.emit(Evaluated(3, {"val_loss": math.nan}))
    assert run.policy.missing_metric(run.state) is None
    run.emit(Evaluated(4, {"acc": 1.0}))
    assert run.policy.missing_metric(run.state) is None


def test_an_evaluation_without_metrics_is_one_all_the_same() -> None:
    run = Run(save_on_best_metric="val_loss")
    run.emit(Evaluated(1))
    assert run.policy.missing_metric(run.state) == ()


def test_a_metric_that_has_not_come_at_the_end_is_missing() -> None:
    run = Run(save_on_best_metric="val")
    run.emit(StepEnd(1))
    assert run.policy.missing_metric(run.state) is None
    run.emit(TrainEnd(1))
    assert run.policy.missing_metric(run.state) == ()


def test_no_metric_is_missing_where_none_is_monitored() -> None:
    run = Run()
    run.emit(Evaluated(1, {"acc": 1.0}))
    assert run.policy.missing_metric(run.state) is None


def test_the_names_that_came_are_bounded() -> None:
    run = Run(save_on_best_metric="val")
    for step in range(500):
        run.emit(Evaluated(step, {f"loss at {step}": 1.0}))
    names = run.policy.missing_metric(run.state)
    assert names is not None
    assert len(names) == 64


# JSON and resume


def busy() -> Run:
    run = Run(save_every_n_steps=1, save_on_best_metric="val", keep_last_n_checkpoints=2, early_stopping_patience=9)
    run.keep(TrainBegin(0), StepEnd(1, 0.5), val(1, 2.0), EpochEnd(1, 0))
    run.keep(StepEnd(2, 1.0, {"lr": 0.1}), val(2, 1.0))
    run.emit(StepEnd(3, 1.5), Evaluated(3, {"acc": math.nan, "val": math.inf, "x": -math.inf}))
    return run


def test_json_and_back() -> None:
    state = busy().state
    text = json.dumps(state.to_json(), allow_nan=False)
    assert PolicyState.from_json(json.loads(text)).to_json() == state.to_json()
    counters = PolicyState.from_json(json.loads(json.dumps(state.to_json(counters_only=True))))
    assert counters.to_json() == replace(state, kept=()).to_json()
    entry = Kept(3, 1, frozenset({"best", "step"}), 0.5)
    assert Kept.from_json(json.loads(json.dumps(entry.to_json()))) == entry


def paths(value: Any) -> list[list[Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[], *([key, *path] for key, inner in items for path in paths(inner))]


def changed(value: Any, path: list[Any], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


COUNTS = {"version", "step", "epoch", "waited", "asked_step", "resumed_from"}
NUMBERS = {"score", "time", "mark", "goal", "asked_time", "val", "acc", "x", "lr"}


@pytest.mark.parametrize("wrong", [object(), [1.5], {"x": "y"}, -1, 2**2000, "zzz", b"nan"])
def test_malformed_json_raises_wherever_it_stands(wrong: Any) -> None:
    value = busy().state.to_json()
    for path in paths(value):
        in_reasons = "reasons" in path[:-1] and isinstance(wrong, str)  # any name will do there
        long_run = wrong == 2**2000 and path[-1:] != ["version"] and COUNTS.intersection(path[-1:])
        below_zero = wrong == -1 and NUMBERS.intersection(path[-1:])
        if not (in_reasons or long_run or below_zero):
            with pytest.raises(CorruptObject, match="policy state"):
                PolicyState.from_json(changed(value, path, wrong))


@pytest.mark.parametrize("path", [["now"], ["best"], ["kept", 0], []])
def test_a_field_too_few_or_too_many_raises(path: list[Any]) -> None:
    value = busy().state.to_json()
    inner: Any = value
    for key in path:
        inner = inner[key]
    for name in inner:
        if name != "kept":
            with pytest.raises(CorruptObject):
                PolicyState.from_json(changed(value, path, {k: v for k, v in inner.items() if k != name}))
    with pytest.raises(CorruptObject):
        PolicyState.from_json(changed(value, path, {**inner, "more": 1}))


def test_entries_that_are_out_of_order_or_in_the_future_raise() -> None:
    value = busy().state.to_json()
    for kept in (value["kept"][::-1], value["kept"] * 2, [{**value["kept"][0], "step": 99}]):
        with pytest.raises(CorruptObject, match="kept"):
            PolicyState.from_json({**value, "kept": kept})


def test_resume_sorts_out_what_was_pending() -> None:
    run = Run(save_on_best_metric="val", keep_last_n_checkpoints=3)
    run.keep(val(1, 4.0))
    run.emit(val(2, 3.0))
    run.emit(val(3, 2.0))
    run.emit(val(4, 1.0))
    counters = run.state.to_json(counters_only=True)
    best = frozenset({"best"})
    state = run.policy.resume(counters, [Kept(4, None, best, 1.0), Kept(2, None, best, 3.0), Kept(1, None, best, 4.0)])
    assert state.pending == ()
    assert [entry.step for entry in state.kept] == [1, 2, 4]
    assert (state.best, state.now.status) == (Best(4, 1.0), "saved")
    state = run.policy.resume(counters, [Kept(1, None, best, 4.0)])
    assert (state.best, state.now.status) == (Best(1, 4.0), "failed")


def test_resume_joins_the_notes_on_a_checkpoint() -> None:
    run = Run(save_every_n_steps=1, save_on_best_metric="val", keep_last_n_checkpoints=1, early_stopping_patience=1)
    run.keep(StepEnd(1), val(1, 2.0))
    run.emit(StepEnd(2))
    counters = run.state.to_json(counters_only=True)
    records = [run.policy.current(run.state)]
    run.emit(Saved(2, "id"), val(2, 3.0), EpochEnd(2, 1))
    records += [run.policy.current(run.state), Kept(1, None, frozenset({"step", "best"}), 2.0)]
    state = run.policy.resume(counters, records)
    assert state == run.state
    assert state.stopped
    assert run.policy.advance(state, StepEnd(3)) == run.policy.advance(run.state, StepEnd(3))


def test_resume_leaves_the_future_and_the_permanent_aside() -> None:
    run = Run(save_every_n_epochs=1, keep_last_n_checkpoints=1, keep_checkpoint_every_n_epochs=2)
    for step in (1, 2, 3, 4, 5):
        run.keep(EpochEnd(step, step - 1))
    kept = [Kept(step, step - 1, frozenset({"epoch"})) for step in (2, 4, 5, 6, 7)]
    assert run.policy.resume(run.state.to_json(counters_only=True), kept) == run.state


def test_resume_raises_for_malformed_counters() -> None:
    with pytest.raises(CorruptObject):
        Run().policy.resume({"version": 2}, [])


def test_the_counters_do_not_grow_with_the_run() -> None:
    run = Run(
        save_every_n_epochs=1,
        save_on_best_metric="val",
        keep_last_n_checkpoints=50,
        keep_best_n_checkpoints=50,
        keep_checkpoint_every_n_epochs=2,
    )
    for step in range(1, 1000):
        run.keep(EpochEnd(step, step - 1, metrics={"val": -float(step)}))
    assert len(json.dumps(run.state.to_json(counters_only=True))) < 700
    assert len(run.state.kept) <= 102


def test_events_and_actions_are_frozen_values() -> None:
    union = {*get_args(_events.Event), *get_args(_events.Action)}
    assert {cls.__name__ for cls in union} == {name for name, cls in vars(_events).items() if is_dataclass(cls)}
    assert all("__slots__" in vars(cls) and cls.__dataclass_params__.frozen for cls in union)
    assert StepEnd(1, metrics={"a": 1.0}) == StepEnd(1, None, {"a": 1.0})
