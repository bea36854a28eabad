"""The kit: an adapter that does everything right passes it, and each way of being wrong is caught by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coral import WeightTensor
from coral.errors import PolicyError, SaveFailedError
from coral.testing import SCHEDULES, AdapterTests, Leg, Schedule
from coral.training import (
    CheckpointConfig,
    CheckpointManager,
    EpochEnd,
    Evaluated,
    Event,
    Interrupted,
    Snapshot,
    StepEnd,
)


class Loop:
    """A training loop with its adapter in it; those below are wrong in one thing each."""

    def __init__(self, leg: Leg) -> None:
        self.leg = leg
        self.schedule = leg.schedule
        self.weight, self.bias = np.zeros(3, np.float32), np.zeros(1, np.float32)
        self.step = 0
        self.inside = False  # an update
        self.manager = self.make_manager(leg.schedule.config)

    def make_manager(self, config: CheckpointConfig) -> CheckpointManager:
        return CheckpointManager(self.leg.repo, config, self, branch=self.leg.branch, experiment=self.leg.experiment)

    # The source

    def capture(self, *, copy: bool = True) -> Snapshot:
        weights = {"weight": self.weight, "bias": self.bias}
        return Snapshot(
            {name: WeightTensor(value.copy() if copy else value) for name, value in weights.items()},
            {"step": self.step},
        )

    def restore(self, snapshot: Snapshot) -> None:
        self.weight[...], self.bias[...] = snapshot.weights["weight"].data, snapshot.weights["bias"].data
        assert isinstance(snapshot.state, Mapping)
        self.step = int(snapshot.state["step"])

    # The training

    def run(self) -> None:
        if self.leg.resume:
            self.resume(self.leg.resume)
        if self.schedule.outside:
            self.outside()
        try:
            self.train()
        except Exception as error:
            self.crashed(error)
            raise
        self.finish()

    def resume(self, ref: str) -> None:
        self.manager.restore(ref)

    def train(self) -> None:
        while self.step < self.schedule.last_step and not self.stops():
            epoch, _ = self.schedule.position(self.step)
            for _ in range(self.schedule.accumulate):
                self.batch()
            self.update()
            self.step += 1
            self.updated()
            scores = self.leg.scores(self.weight[0]) if self.schedule.scores(self.step) else {}
            if scores:
                self.evaluated(scores)
            if self.schedule.position(self.step)[1] == 0:
                self.epoch_ended(epoch, complete=True)
            elif self.step == self.schedule.last_step:
                self.epoch_ended(epoch, complete=False)

    def batch(self) -> None:
        self.leg.forward(self.weight[0])

    def update(self) -> None:
        self.inside = True
        self.weight += 1
        self.leg.update(self.weight[0] - 1)
        self.bias += 1
        self.inside = False

    # The adapter

    def tell(self, *events: Event) -> None:
        self.manager.emit(*events)

    def updated(self) -> None:
        self.tell(StepEnd(self.step))

    def evaluated(self, scores: Mapping[str, float]) -> None:
        self.tell(Evaluated(self.step, scores))

    def epoch_ended(self, epoch: int, *, complete: bool) -> None:
        self.tell(EpochEnd(self.step, epoch, complete))

    def outside(self) -> None:
        pass

    def stops(self) -> bool:
        return self.manager.stop_reason is not None

    def crashed(self, error: Exception) -> None:
        try:
            self.tell(Interrupted(self.step, "exception", self.inside))
            self.manager.close()
        except SaveFailedError:
            pass  # logged; the error that ends the training matters more

    def finish(self) -> None:
        self.manager.close()
        if self.schedule.load_best:
            self.manager.restore("best")


class TestLoop(AdapterTests):
    def train(self, leg: Leg) -> None:
        Loop(leg).run()


# -- wrong adapters, each with the schedule that shows it, and what the kit says ---------------------------------------


class SavesBeforeTheBoundary(Loop):
    def update(self) -> None:
        self.tell(StepEnd(self.step + 1))
        super().update()

    def updated(self) -> None:
        pass


class RepeatsAStep(Loop):
    def batch(self) -> None:
        super().batch()
        if self.step:
            self.tell(StepEnd(self.step))


class CountsBatches(Loop):
    batches = 0

    def batch(self) -> None:
        super().batch()
        self.batches += 1

    def updated(self) -> None:
        self.tell(StepEnd(self.batches))

    def epoch_ended(self, epoch: int, *, complete: bool) -> None:
        self.tell(EpochEnd(self.batches, epoch, complete))


class SwallowsTheException(Loop):
    def run(self) -> None:
        try:
            super().run()
        except Exception:  # noqa: BLE001 - this is what is wrong with it
            pass


class WrapsTheException(Loop):
    def crashed(self, error: Exception) -> None:
        super().crashed(error)
        raise RuntimeError("training failed") from error


class LetsItsOwnErrorThrough(Loop):
    def crashed(self, error: Exception) -> None:
        self.tell(Interrupted(self.step, "exception", self.inside))
        self.manager.close()


class SavesNothingOnAnException(Loop):
    def crashed(self, error: Exception) -> None:
        self.manager.wait()


class CallsAnExceptionARequest(Loop):
    def crashed(self, error: Exception) -> None:
        self.tell(Interrupted(self.step, "requested", self.inside))
        self.manager.close()


class TakesATornUpdateForWhole(Loop):
    def crashed(self, error: Exception) -> None:
        self.tell(Interrupted(self.step, "exception", mid_step=False))
        self.manager.close()


class JudgesTheSanityCheck(Loop):
    def outside(self) -> None:
        self.evaluated(self.leg.outside_scores())


class JudgesAPrediction(Loop):
    def finish(self) -> None:
        if self.schedule.outside:
            self.evaluated(self.leg.outside_scores())
        super().finish()


class JudgesStaleScores(Loop):
    last: Mapping[str, float] = {}

    def evaluated(self, scores: Mapping[str, float]) -> None:
        self.last = scores
        super().evaluated(scores)

    def epoch_ended(self, epoch: int, *, complete: bool) -> None:
        self.tell(EpochEnd(self.step, epoch, complete, self.last))


class TakesACutEpochForComplete(Loop):
    def epoch_ended(self, epoch: int, *, complete: bool) -> None:
        super().epoch_ended(epoch, complete=True)


class CountsEpochsFromOne(Loop):
    def epoch_ended(self, epoch: int, *, complete: bool) -> None:
        super().epoch_ended(epoch + 1, complete=complete)


class TellsOneMetric(Loop):
    def evaluated(self, scores: Mapping[str, float]) -> None:
        super().evaluated({"eval_b_loss": scores["eval_b_loss"]})


class ForgetsToStop(Loop):
    def stops(self) -> bool:
        return False


class ResumesTheWeightsAlone(Loop):
    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self.step = 0


class BeginsAnew(Loop):
    def resume(self, ref: str) -> None:
        pass


class ResumesWithoutThePolicy(Loop):
    def resume(self, ref: str) -> None:
        self.restore(Snapshot(self.leg.repo.load(ref), {"step": self.leg.repo.show(ref).step}))


class SavesWhenTheBestIsLoaded(Loop):
    def finish(self) -> None:
        if self.schedule.load_best:
            self.manager.wait()
            best = self.leg.repo.load(f"{self.leg.branch}@best")
            self.weight[...], self.bias[...] = best["weight"].data, best["bias"].data
        self.manager.close()


class SavesOnHead(Loop):
    def make_manager(self, config: CheckpointConfig) -> CheckpointManager:
        return CheckpointManager(self.leg.repo, config, self)


class KeepsEverything(Loop):
    def make_manager(self, config: CheckpointConfig) -> CheckpointManager:
        return super().make_manager(replace(config, keep_last_n_checkpoints=None))


class SavesNoEnd(Loop):
    def finish(self) -> None:
        self.manager.wait()


class SavesHalf(Loop):
    def capture(self, *, copy: bool = True) -> Snapshot:
        whole = super().capture(copy=copy)
        return replace(whole, weights={"weight": whole.weights["weight"]})


WRONG = [
    (SavesBeforeTheBoundary, "every second step, the last two kept", "the weights of step 6 are not those"),
    (RepeatsAStep, "accumulation", "StepEnd comes once for each update"),
    (CountsBatches, "accumulation", "StepEnd comes once for each update"),
    (SwallowsTheException, "a crash", "what came out of it was None"),
    (WrapsTheException, "a crash", r"what came out of it was RuntimeError\('training failed'\)"),
    (SavesNothingOnAnException, "a crash", "the saved steps differ"),
    (CallsAnExceptionARequest, "a crash", "the reasons differ"),
    (TakesATornUpdateForWhole, "a crash inside an update", "was saved inside an update, and claims to be exact"),
    (JudgesTheSanityCheck, "evaluations outside of training", "scores that are not those of its step"),
    (JudgesAPrediction, "evaluations outside of training", "scores that are not those of its step"),
    (JudgesStaleScores, "evaluation every second epoch", "scores that are not those of its step"),
    (TakesACutEpochForComplete, "max_steps within an epoch", "the complete epochs"),
    (CountsEpochsFromOne, "every epoch", "the complete epochs"),
    (TellsOneMetric, "two evaluation sets", "the metrics differ"),
    (ForgetsToStop, "early stopping within an epoch", "the batches of the training"),
    (BeginsAnew, "resumed within an epoch", "the batches of the training"),
    (ResumesWithoutThePolicy, "resumed within an epoch", "the saved steps differ"),
    (SavesWhenTheBestIsLoaded, "the best is loaded at the end", "the weights of step 9 are not those"),
    (SavesOnHead, "every epoch", "the branch to save to"),
    (KeepsEverything, "every second step, the last two kept", "the pruned steps differ"),
    (SavesNoEnd, "every second step, the last two kept", "the reasons differ"),
    (SavesHalf, "every epoch", "the weights of step 3 are not those"),
]


@pytest.mark.parametrize(("wrong", "name", "said"), WRONG, ids=[wrong.__name__ for wrong, _, _ in WRONG])
def test_a_wrong_adapter_is_caught(wrong: type[Loop], name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=said):
        kit(wrong).test_it_saves_what_the_schedule_means(name, tmp_path)


def test_an_adapter_that_resumes_the_weights_alone_is_caught(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="the step went back from 6 to 1"):
        kit(ResumesTheWeightsAlone).test_it_saves_what_the_schedule_means("resumed at the end of an epoch", tmp_path)


class AliasesMemory(Loop):
    def capture(self, *, copy: bool = True) -> Snapshot:
        return super().capture(copy=False)


def test_an_adapter_that_aliases_memory_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="what was captured at step 2 changed"):
        kit(AliasesMemory).test_what_it_captures_is_a_copy(tmp_path)


def test_an_adapter_whose_own_error_hides_the_exception_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="what came out of it was SaveFailedError"):
        kit(LetsItsOwnErrorThrough).test_a_save_that_fails_hides_no_exception(tmp_path)


def test_a_save_in_place_needs_no_copy(tmp_path: Path) -> None:
    class SavesInPlace(AliasesMemory):
        def make_manager(self, config: CheckpointConfig) -> CheckpointManager:
            return super().make_manager(replace(config, async_save=False))

    kit(SavesInPlace).test_what_it_captures_is_a_copy(tmp_path)


def test_an_adapter_must_say_how_it_trains(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="writing-an-adapter"):
        AdapterTests().test_what_it_captures_is_a_copy(tmp_path)


def test_a_model_that_does_not_count_is_named() -> None:
    leg = Leg(SCHEDULES["every epoch"], repo=None)  # type: ignore[arg-type]  # it does not come to that
    for call in (leg.forward, leg.update, leg.scores):
        with pytest.raises(ValueError, match="not every update adds 1"):
            call(1.5)


def test_an_evaluation_that_the_schedule_does_not_have_is_named() -> None:
    leg = Leg(Schedule(), repo=None)  # type: ignore[arg-type]  # it does not come to that
    with pytest.raises(ValueError, match="weights of step 2 are evaluated"):
        leg.scores(2)


def kit(loop: type[Loop]) -> AdapterTests:
    """The kit for an adapter."""

    class Tests(AdapterTests):
        def train(self, leg: Leg) -> None:
            loop(leg).run()

    return Tests()
