"""The reference: what a schedule leaves behind, here by hand."""

from __future__ import annotations

import pytest

from coral.errors import ConfigError
from coral.testing import SCHEDULES, Course, Crash, Evaluations, Schedule, reference, weights_at
from coral.training import CheckpointConfig

LOSS = Evaluations({"loss": (3.0, 1.0, 2.0, 0.5)}, every_n_epochs=1)


def steps(schedule: Schedule) -> list[tuple[int, str]]:
    """The saved steps with their reasons; in brackets where pruned."""
    found = [(each.step, " ".join(each.reasons), each.pruned) for each in reference(schedule).checkpoints]
    return [(step, f"({why})" if pruned else why) for step, why, pruned in found]


def test_what_is_saved_why_and_what_is_pruned() -> None:
    config = CheckpointConfig(save_every_n_steps=4, save_on_best_metric="loss", keep_last_n_checkpoints=1)
    assert steps(Schedule(epochs=4, evaluations=LOSS, config=config)) == [
        (3, "(best)"), (4, "(step)"), (6, "(best)"), (8, "(step)"), (12, "best final step"),
    ]  # fmt: skip


def test_a_checkpoint_has_the_weights_and_the_scores_of_its_step() -> None:
    config = CheckpointConfig(save_every_n_epochs=1, save_on_train_end=False, keep_last_n_checkpoints=1)
    first, last = reference(Schedule(evaluations=LOSS, config=config)).checkpoints
    assert (first.weights, first.metrics) == (None, {"loss": "3"})
    assert last.weights == {name: weight.id for name, weight in weights_at(6).items()}
    assert last.metrics == {"loss": "1"}


def test_a_crash_inside_an_update_leaves_torn_weights_unless_the_step_was_saved() -> None:
    crash = Crash(4, mid_step=True)
    (torn,) = reference(Schedule(crash=crash)).checkpoints
    assert (torn.torn, torn.reasons) == (True, ("exception",))
    assert torn.weights == {name: weight.id for name, weight in weights_at(4, torn=True).items()}
    whole = reference(Schedule(crash=crash, config=CheckpointConfig(save_every_n_steps=4))).checkpoints[-1]
    assert (whole.torn, whole.reasons) == (False, ("exception", "step"))
    assert whole.weights == {name: weight.id for name, weight in weights_at(4).items()}


def test_a_crashed_run_goes_on_from_a_checkpoint_with_the_budgets_that_it_had() -> None:
    config = CheckpointConfig(save_every_n_epochs=1, keep_last_n_checkpoints=1, save_on_interrupt=False)
    schedule = Schedule(epochs=4, crash=Crash(8), resume="last", config=config)
    assert reference(schedule).courses == (Course(0, 8, True, None), Course(6, 12, False, "last"))
    # the second run prunes what the first one left; what it went on from stays
    assert steps(schedule) == [(3, "(epoch)"), (6, "epoch"), (9, "(epoch)"), (12, "epoch final")]


def test_early_stopping_ends_a_run() -> None:
    config = CheckpointConfig(save_on_best_metric="loss", early_stopping_patience=1)
    found = reference(Schedule(epochs=4, evaluations=LOSS, config=config))
    assert found.courses == (Course(0, 9, False, None),)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(crash=Crash(2), resume="best"), "cannot resume from best"),
        (Schedule(crash=Crash(2, mid_step=True), resume="last"), "cannot resume from last"),
        (Schedule(crash=Crash(2), resume="step:1"), "cannot resume from step:1"),
        (
            Schedule(
                epochs=4,
                crash=Crash(10),
                evaluations=LOSS,
                config=CheckpointConfig(save_on_best_metric="loss", early_stopping_patience=1),
            ),
            "ends at step 9, before its crash",
        ),
        (
            Schedule(
                crash=Crash(5),
                resume="step:1",
                config=CheckpointConfig(save_every_n_steps=1, keep_last_n_checkpoints=1),
            ),
            "cannot resume from step:1",
        ),
    ],
)
def test_a_schedule_that_cannot_be_played_is_refused(schedule: Schedule, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reference(schedule)


def test_the_schedules_of_the_kit_need_all_that_a_checkpoint_is_compared_by() -> None:
    """A part of the language that no schedule uses would prove nothing."""
    every = [each for schedule in SCHEDULES.values() for each in reference(schedule).checkpoints]
    reasons = {reason for each in every for reason in each.reasons}
    assert reasons == {"step", "epoch", "best", "final", "exception"}
    assert any(each.pruned for each in every)
    assert any(each.torn for each in every)
    assert any(each.metrics for each in every)
    schedules = SCHEDULES.values()
    assert {schedule.resume for schedule in schedules} >= {None, "last", "best"}
    assert {schedule.evaluations.order for schedule in schedules if schedule.evaluations} == {"before", "after"}
    assert any(schedule.accumulate > 1 and schedule.resume for schedule in schedules)
    assert any(schedule.max_steps for schedule in schedules)
    assert any(schedule.load_best for schedule in schedules)
    assert any(schedule.outside for schedule in schedules)
    stopped = [each for each in schedules if reference(each).courses[-1].end < each.last_step and not each.crash]
    assert {each.position(reference(each).courses[-1].end)[1] > 0 for each in stopped} == {True, False}
