"""AdapterTests: what every adapter has to pass, whatever its framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from coral import Commit, Repository
from coral.errors import DiskFull
from coral.testing._leg import Leg
from coral.testing._reference import Checkpoint, Course, Reference, as_text, reference
from coral.testing._schedule import Crash, Schedule, weights_at
from coral.testing._schedules import SCHEDULES
from coral.testing._watching import after_the_next_update, commits, events_told
from coral.training import CheckpointConfig, EpochEnd, Evaluated, Event, StepEnd, TrainBegin


class AdapterTests:
    """Proves that an adapter saves what the policy would have saved: subclass it, and say how a schedule is trained.

        class TestMyAdapter(AdapterTests):
            def train(self, leg: Leg) -> None: ...

    `train` runs one leg of a schedule through its framework, from its beginning (or `leg.resume`) to its end or crash,
    with a new adapter that saves to `leg.repo`, on `leg.branch`, by `leg.schedule.config`. It builds the model that
    counts (float32 weights "weight" of shape (3,) and "bias" of shape (1,), 0 at first, an update adds 1), calls
    `leg.forward`, `leg.update` and `leg.scores` from the code that trains, and lets every exception through. When it
    returns, or raises, everything is saved.
    """

    def train(self, leg: Leg) -> None:
        """Train one leg."""
        raise NotImplementedError("say how a schedule is trained: see docs/writing-an-adapter.md")

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_it_saves_what_the_schedule_means(self, name: str, tmp_path: Path) -> None:
        self.check(SCHEDULES[name], tmp_path)

    def test_what_it_captures_is_a_copy(self, tmp_path: Path) -> None:
        """The save waits until training has changed the weights: what is written must not have changed with them."""
        config = CheckpointConfig(save_every_n_steps=2, save_on_train_end=False, durability="fast")
        leg = Leg(Schedule(epochs=1, batches=4, config=config), Repository(tmp_path / "copies", init=True))
        with commits(after_the_next_update(leg, 2)):
            self.train(leg)
        (saved,) = (each for each in leg.repo.log(leg.branch) if each.step == 2)
        assert _ids(leg.repo, saved) == _ids_at(2), "what was captured at step 2 changed while it was being saved"

    def test_a_save_that_fails_hides_no_exception(self, tmp_path: Path) -> None:
        config = CheckpointConfig(durability="fast")
        leg = Leg(Schedule(crash=Crash(2), config=config), Repository(tmp_path / "full", init=True), crashes=True)

        def fail(_: object) -> str:
            raise DiskFull("no space is left, says the kit")

        with commits(fail):
            self._train_to_the_crash(leg)

    def check(self, schedule: Schedule, folder: Path) -> None:
        """Train a schedule in a new repository in the folder, and assert that all came as the reference says."""
        expected = reference(schedule)
        repo = Repository(folder / "repo", init=True)
        for course in expected.courses:
            leg = Leg(schedule, repo, crashes=course.crashes)
            if course.resumes is not None:
                leg.resume = repo.resolve(f"{leg.branch}@{course.resumes}")
            with events_told() as told:
                if course.crashes:
                    self._train_to_the_crash(leg)
                else:
                    self.train(leg)
            _compare_training(leg, course)
            _compare_events(schedule, course, told)
        _compare_repository(schedule, expected, repo, Leg(schedule, repo).branch)

    def _train_to_the_crash(self, leg: Leg) -> None:
        came: Exception | None = None
        try:
            self.train(leg)
        except Exception as error:  # noqa: BLE001 - whatever came: it is compared with what was raised
            came = error
        assert came is leg.error, f"the training raised {leg.error!r}; what came out of it was {came!r}"


def _compare_training(leg: Leg, course: Course) -> None:
    """Whether the framework did what the schedule says, and went on where it was to: else nothing else can hold."""
    batches = [step for step in range(course.begin, course.end) for _ in range(leg.schedule.accumulate)]
    if course.crashes and leg.schedule.crash is not None:
        batches += [course.end] * (leg.schedule.accumulate if leg.schedule.crash.mid_step else 1)
    assert leg.batches == batches, "the batches of the training, by the steps that the weights were of, differ"


def _compare_events(schedule: Schedule, course: Course, told: Iterable[Event]) -> None:
    told = [event for event in told if not isinstance(event, TrainBegin)]
    steps = Counter(event.step for event in told if isinstance(event, StepEnd))
    assert steps == Counter(range(course.begin + 1, course.end + 1)), "StepEnd comes once for each update; it came"
    for event in told:
        if isinstance(event, Evaluated | EpochEnd):
            scores = as_text(event.metrics, schedule.metrics)
            fresh = as_text(schedule.scores(event.step) or {}, schedule.metrics)
            assert scores.items() <= fresh.items(), f"{event} holds scores that are not those of its step"
    ends = [(event.step, event.epoch) for event in told if isinstance(event, EpochEnd) and event.complete]
    complete = [
        (step, schedule.position(step)[0] - 1)
        for step in range(course.begin + 1, course.end + 1)
        if schedule.position(step)[1] == 0
    ]
    assert ends == complete, "the complete epochs (the step and number of each) differ"


def _compare_repository(schedule: Schedule, expected: Reference, repo: Repository, branch: str) -> None:
    branches = {branch} if expected.checkpoints else set()
    assert set(repo.branches()) == branches, f"the branch to save to was {branch!r}"
    found = [_seen(schedule, repo, commit) for commit in reversed(repo.log(branch))] if branches else []
    wanted = list(expected.checkpoints)
    assert [each.step for each in found] == [each.step for each in wanted], "the saved steps differ"
    assert [each.reasons for each in found] == [each.reasons for each in wanted], "the reasons differ"
    assert [each.step for each in found if each.pruned] == [each.step for each in wanted if each.pruned], (
        "the pruned steps differ"
    )
    assert [each.metrics for each in found] == [each.metrics for each in wanted], "the metrics differ"
    for mine, its in zip(found, wanted, strict=True):
        assert mine.weights == its.weights, f"the weights of step {its.step} are not those that it ended with"
        assert mine.torn or not its.torn, f"step {its.step} was saved inside an update, and claims to be exact"


def _seen(schedule: Schedule, repo: Repository, commit: Commit) -> Checkpoint:
    return Checkpoint(
        step=-1 if commit.step is None else commit.step,
        reasons=tuple(commit.reasons),
        metrics=as_text(commit.metrics, schedule.metrics),
        weights=None if commit.pruned else _ids(repo, commit),
        pruned=commit.pruned,
        torn=not commit.exact,
    )


def _ids(repo: Repository, commit: Commit) -> dict[str, str]:
    return {name: entry.id for name, entry in repo.tree(commit.id).items()}


def _ids_at(step: int) -> dict[str, str]:
    return {name: weight.id for name, weight in weights_at(step).items()}
