"""What goes wrong in a callback that is written naively: each of these holds, and its naive way is shown to differ."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.integrations.hf_trainer._source import TrainerSource


def coral(repo: Repository, **options: Any) -> CoralTrainerCallback:
    return CoralTrainerCallback(repo, background_repack=False, **options)


def saved(repo: Repository, branch: str = "main") -> dict[int | None, tuple[str, ...]]:
    return {commit.step: commit.reasons for commit in reversed(repo.log(branch))}


class Scored(Trainer):
    """Its evaluations give the scores it is told, by the step."""

    scores: Any = None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self.scores(self.state.global_step, metric_key_prefix)
        return output


@pytest.fixture
def scored(training: Any) -> Any:
    """Makes Trainers whose evaluations give `scores(step, prefix)`."""

    def make(*callbacks: Any, scores: Any, **options: Any) -> Trainer:
        options = {"eval_dataset": training.examples(4), **options}
        trainer = training.trainer(*callbacks, kind=Scored, **options)
        trainer.scores = scores
        return trainer

    return make


def test_the_evaluation_after_the_end_of_an_epoch_is_of_that_epoch(scored: Any, repo: Repository) -> None:
    trainer = scored(
        coral(repo, save_every_n_epochs=1, save_on_best="eval_loss"),
        scores=lambda step, _: {6: 3.0, 12: 1.0, 18: 2.0}[step],
        num_train_epochs=3,
        eval_strategy="epoch",
    )
    trainer.train()
    assert saved(repo) == {6: ("best", "epoch"), 12: ("best", "epoch"), 18: ("epoch", "final")}
    assert [commit.metrics["eval_loss"] for commit in repo.log()] == [2.0, 1.0, 3.0]


def test_the_best_weights_that_are_loaded_at_the_end_are_not_saved_as_the_last(scored: Any, repo: Repository) -> None:
    seen: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
            if "train_loss" in logs:
                seen["last"] = model.head.weight.detach().clone()

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen["best"] = model.head.weight.detach().clone()

    trainer = scored(
        Look(),
        coral(repo),
        scores=lambda step, _: {6: 1.0, 12: 2.0}[step],
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    (commit,) = repo.log()
    assert not torch.equal(seen["last"], seen["best"]), "else on_train_end would do"
    assert np.array_equal(repo.load(commit.id)["head.weight"].data, seen["last"].numpy())


def test_the_best_is_judged_by_the_metrics_of_the_call(scored: Any, repo: Repository) -> None:
    """state.best_metric is stale inside on_evaluate."""
    stale = []

    class Look(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            stale.append(state.best_metric != metrics["eval_loss"])

    trainer = scored(
        Look(),
        coral(repo, save_on_best="loss", save_on_train_end=False),
        scores=lambda step, _: -float(step),
        eval_strategy="epoch",
        metric_for_best_model="loss",
        save_strategy="best",
        save_only_model=True,
    )
    trainer.train()
    assert stale == [True, True], "else state.best_metric would do"
    assert saved(repo) == {6: ("best",), 12: ("best",)}


def test_of_several_evaluation_sets_the_one_with_the_monitored_metric_counts(
    training: Any, scored: Any, repo: Repository, caplog: Any
) -> None:
    rows = training.examples(4)
    trainer = scored(
        coral(repo, save_on_best="eval_b_loss", save_on_train_end=False),
        eval_dataset={"a": rows, "b": rows, "c": rows},
        scores=lambda step, prefix: {"eval_a": -step, "eval_b": step, "eval_c": -step}[prefix],
        eval_strategy="epoch",
    )
    trainer.train()
    assert saved(repo) == {6: ("best",)}
    assert {"eval_a_loss", "eval_b_loss", "eval_c_loss"} <= {*repo.show().metrics}
    assert "did not come" not in caplog.text


def test_loss_will_do_for_eval_loss(scored: Any, repo: Repository) -> None:
    """... though the Trainer logs a loss of its training by that name."""
    trainer = scored(
        coral(repo, save_on_best="loss", save_on_train_end=False),
        scores=lambda step, _: 100.0 + step,
        eval_strategy="epoch",
        logging_steps=1,
    )
    trainer.train()
    assert saved(repo) == {6: ("best",)}
    assert repo.show().metrics["loss"] == 106.0


def test_an_evaluation_at_the_start_is_of_step_0(scored: Any, repo: Repository) -> None:
    trainer = scored(
        coral(repo, save_on_best="eval_loss", save_every_n_steps=2, save_every_n_epochs=1),
        scores=lambda step, _: float(step),
        eval_on_start=True,
        eval_strategy="no",
        num_train_epochs=1,
    )
    before = trainer.model.head.weight.detach().clone().numpy()
    trainer.train()
    assert saved(repo) == {0: ("best",), 2: ("step",), 4: ("step",), 6: ("epoch", "final", "step")}
    assert np.array_equal(repo.load("step:0")["head.weight"].data, before)


def test_an_evaluation_by_hand_is_none_of_the_run(scored: Any, repo: Repository) -> None:
    trainer = scored(
        coral(repo, save_on_best="eval_loss", save_on_train_end=False),
        scores=lambda step, _: 1.0 if trainer.is_in_train else -1.0,
        eval_strategy="epoch",
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert saved(repo) == {6: ("best",)}


def test_an_epoch_that_max_steps_cuts_is_not_complete(training: Any, repo: Repository) -> None:
    ends = []

    class Look(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            ends.append(state.global_step)

    training.trainer(Look(), coral(repo, save_every_n_epochs=1), max_steps=8).train()
    assert ends == [6, 8], "else there is no trap"
    assert saved(repo) == {6: ("epoch",), 8: ("final",)}


def test_an_epoch_that_ends_with_max_steps_is_complete(training: Any, repo: Repository) -> None:
    training.trainer(coral(repo, save_every_n_epochs=1), max_steps=12).train()
    assert saved(repo) == {6: ("epoch",), 12: ("epoch", "final")}


def test_every_log_may_have_a_train_runtime(training: Any, repo: Repository) -> None:
    """With include_num_input_tokens_seen the first log would pass for the end of the run."""
    options = {"include_num_input_tokens_seen": True, "logging_steps": 1}
    runtimes = []

    class Look(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            runtimes.append("train_runtime" in logs)

    trainer = training.trainer(Look(), coral(repo, save_every_n_steps=5), **options)
    trainer.model.main_input_name = "x"
    trainer.train()
    assert sum(runtimes) > 1, "else there is no trap"
    assert saved(repo) == {5: ("step",), 10: ("step",), 12: ("final",)}


def test_what_is_saved_at_the_end_need_be_no_copy(
    training: Any, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[bool] = []
    real = TrainerSource.capture

    def capture(self: TrainerSource, *, copy: bool = True) -> Any:
        copies.append(copy)
        return real(self, copy=copy)

    monkeypatch.setattr(TrainerSource, "capture", capture)
    training.trainer(coral(repo, save_every_n_steps=4)).train()
    assert copies == [False, True, True, False], "the first is measured before it is copied"
    assert saved(repo) == {4: ("step",), 8: ("step",), 12: ("final", "step")}


def test_steps_of_accumulation_are_updates(training: Any, repo: Repository) -> None:
    training.trainer(coral(repo, save_every_n_steps=1), gradient_accumulation_steps=3).train()
    assert list(saved(repo)) == [1, 2, 3, 4]


def test_a_score_that_is_not_a_number_is_never_the_best(scored: Any, repo: Repository) -> None:
    trainer = scored(
        coral(repo, save_on_best="eval_loss", save_on_train_end=False),
        scores=lambda step, _: math.nan if step == 6 else 5.0,
        eval_strategy="epoch",
        num_train_epochs=3,
    )
    trainer.train()
    assert saved(repo) == {12: ("best",)}


def test_the_policy_stops_the_training_at_once(scored: Any, repo: Repository) -> None:
    trainer = scored(
        coral(repo, save_on_best="eval_loss", early_stopping_patience=2),
        scores=lambda step, _: float(step),
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert saved(repo) == {1: ("best",), 3: ("final",)}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("evaluate", ["epoch", "steps"])
def test_a_run_that_goes_on_from_where_the_policy_had_stopped_it_saves_nothing_more(
    scored: Any, repo: Repository, caplog: Any, evaluate: str, accumulate: int
) -> None:
    """The Trainer looks whether it is to stop when it has trained a batch: again and again, if it is started so."""
    options = {"eval_strategy": evaluate, "eval_steps": 2, "gradient_accumulation_steps": accumulate}
    policy = {"save_on_best": "eval_loss", "early_stopping_patience": 2, "save_every_n_steps": 1}

    def run(**resumed: Any) -> int:
        callback = coral(repo, include_optimizer=True, **policy)
        trainer = scored(callback, scores=lambda step, _: float(step), num_train_epochs=9, **options)
        trainer.train(**{name: callback.resume_path() for name in resumed})
        return int(trainer.state.global_step)

    ended, log = run(), repo.log()
    for _ in range(2):
        caplog.clear()
        assert run(resume_from_checkpoint=True) <= ended + 1
        assert "counts for nothing" in caplog.text
        assert [commit.id for commit in repo.log()] == [commit.id for commit in log]


def test_an_exception_is_saved_by_the_guard_and_raised_as_it_is(training: Any, repo: Repository) -> None:
    error = RuntimeError("out of luck")

    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 5:
                raise error

    callback = coral(repo, include_optimizer=True)
    with pytest.raises(RuntimeError) as raised, callback.guard():
        training.trainer(callback, Fails()).train()
    assert raised.value is error
    assert saved(repo) == {5: ("exception",)}
    assert "saved on an interrupt" in str(repo.show().training["why"])


def test_an_interrupt_by_hand_is_one(training: Any, repo: Repository) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    callback = coral(repo)
    with pytest.raises(KeyboardInterrupt), callback.guard():
        training.trainer(callback, Fails()).train()
    assert saved(repo) == {5: ("requested",)}


def test_an_exception_before_the_first_step_saves_nothing(training: Any, repo: Repository) -> None:
    class Fails(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            raise RuntimeError

    callback = coral(repo)
    with pytest.raises(RuntimeError), callback.guard():
        training.trainer(callback, Fails()).train()
    assert repo.log() == []


def test_a_run_after_one_that_crashed_unguarded_is_a_run_of_its_own(scored: Any, repo: Repository) -> None:
    class Fails(TrainerCallback):
        fails = True

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 5 and self.fails:
                raise RuntimeError

    callback, fails = coral(repo, save_every_n_steps=4), Fails()
    trainer = scored(callback, fails, scores=lambda step, _: 0.0)
    with pytest.raises(RuntimeError):
        trainer.train()
    trainer.evaluate()  # an evaluation by hand, though the callback has seen no end
    fails.fails = False
    scored(callback, scores=lambda step, _: 0.0).train()
    assert [commit.step for commit in reversed(repo.log())] == [4, 4, 8, 12]
    assert len({commit.run for commit in repo.log()}) == 2


def test_the_callback_is_the_users_own_after_resuming() -> None:
    """ExportableState has the Trainer replace the object, and raises KeyError where it is added on resume."""
    assert not issubclass(CoralTrainerCallback, ExportableState)


def test_the_policy_is_taken_up_again_from_the_repository(scored: Any, repo: Repository) -> None:
    options = {"eval_strategy": "epoch", "num_train_epochs": 4}
    keep = {"save_every_n_epochs": 1, "save_on_best": "loss", "keep_last_n_checkpoints": 1, "save_on_train_end": False}

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 13:
                raise RuntimeError

    callback = coral(repo, include_optimizer=True, save_on_interrupt=False, **keep)
    with pytest.raises(RuntimeError), callback.guard():
        scored(callback, Stops(), scores=lambda step, _: {6: 1.0, 12: 2.0}[step], **options).train()
    assert saved(repo) == {6: ("best", "epoch"), 12: ("epoch",)}
    again = coral(repo, include_optimizer=True, **keep)
    trainer = scored(again, scores=lambda step, _: {18: 1.5, 24: 0.5}[step], **options)
    trainer.train(resume_from_checkpoint=again.resume_path())
    assert saved(repo) == {6: ("best", "epoch"), 12: ("epoch",), 18: ("epoch",), 24: ("best", "epoch")}
    assert repo.show("step:18").pruned
    assert not repo.show("step:12").pruned, "what the run resumed from stays"
    assert repo.show("step:18").resumed_from == repo.resolve("step:12")


def test_a_run_that_goes_on_from_the_trainers_own_folder_finds_its_checkpoint(
    training: Any, repo: Repository, caplog: Any
) -> None:
    training.trainer(coral(repo, save_every_n_steps=6), save_strategy="epoch").train()
    own = str(training.folder / "out" / "checkpoint-6")
    training.trainer(coral(repo, branch="on")).train(resume_from_checkpoint=own)
    assert "of which on has no checkpoint" in caplog.text
    caplog.clear()
    training.trainer(coral(repo)).train(resume_from_checkpoint=own)
    assert "has no checkpoint" not in caplog.text
    assert repo.show().resumed_from is not None
    assert repo.show(repo.show().resumed_from).step == 6


def test_a_save_that_fails_does_not_break_the_run(
    training: Any, repo: Repository, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Repository, "commit", fail)
    trainer = training.trainer(coral(repo, save_every_n_steps=2))
    trainer.train()
    assert trainer.state.global_step == 12
    assert "the disk is gone" in caplog.text
    assert repo.log() == []


def test_a_save_that_fails_as_the_run_ends_takes_no_exceptions_place(
    training: Any, repo: Repository, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    error = RuntimeError("out of luck")

    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 5:
                raise error

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Repository, "commit", fail)
    callback = coral(repo)
    with pytest.raises(RuntimeError) as raised, callback.guard():
        training.trainer(callback, Fails()).train()
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert "saving step 5 failed: the disk is gone" in caplog.text


def test_a_metric_that_never_comes_is_warned_of_with_the_names_that_did(
    scored: Any, repo: Repository, caplog: Any
) -> None:
    scored(coral(repo, save_on_best="accuracy"), scores=lambda *_: 1.0, eval_strategy="epoch").train()
    warned = [record.getMessage() for record in caplog.records if "did not come" in record.getMessage()]
    assert len(warned) == 1
    assert "'accuracy'" in warned[0]
    assert warned[0].partition("what came: ")[2].startswith("eval_loss.")


def test_a_remote_that_does_not_exist_yet_is_warned_of_once(training: Any, repo: Repository, caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    training.trainer(coral(repo, push_to="origin", save_every_n_steps=2)).train()
    assert caplog.text.count("queued until the remote exists") == 1
    assert list(saved(repo)) == [2, 4, 6, 8, 10, 12]


class Endless(torch.utils.data.IterableDataset[Any]):
    """Data that does not say how much there is of it."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_a_pass_over_data_without_a_length_is_an_epoch(training: Any, repo: Repository) -> None:
    seen = []

    class Look(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            seen.append(state.epoch)

    data = Endless(training.examples())
    callback = coral(repo, save_every_n_epochs=1, include_optimizer=True)
    training.trainer(Look(), callback, train_dataset=data, max_steps=15).train()
    assert seen[0] == 0.4, "else a whole number would do"
    assert saved(repo) == {6: ("epoch",), 12: ("epoch",), 15: ("final",)}
    assert [commit.epoch for commit in repo.log()][1:] == [1, 0]
    assert "has no length" in str(repo.show("step:12").training["why"])


class Scaled(Trainer):
    """Scales its loss as fp16 does, by so much at first that some updates overflow and are skipped."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)


@pytest.mark.parametrize("step", [1, 5])
def test_an_update_that_fp16_skips_is_a_step_all_the_same(training: Any, repo: Repository, step: int) -> None:
    options = {"kind": Scaled, "max_grad_norm": 0.0}
    trainer = training.trainer(coral(repo, save_every_n_steps=1, include_optimizer=True), **options)
    trainer.train()
    expected = training.everything(trainer)
    updates = max(int(each["step"]) for each in trainer.optimizer.state_dict()["state"].values())
    assert updates < 12, "else who counts updates would do"
    assert [*saved(repo)] == list(range(1, 13))
    assert all(commit.exact for commit in repo.log())

    again = coral(repo, branch="again", include_optimizer=True)
    other = training.trainer(again, seed=99, **options)
    other.train(resume_from_checkpoint=again.resume_path(repo.resolve(f"main@step:{step}")))
    assert training.everything(other) == expected
    assert other.accelerator.scaler.state_dict() == trainer.accelerator.scaler.state_dict()
