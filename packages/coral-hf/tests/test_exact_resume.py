"""A resumed Trainer is the one that was never interrupted: to the bit, at every kind of moment."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as lrs
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import EarlyStoppingCallback, TrainerCallback, default_data_collator

from coral import Repository
from coral.errors import ConfigError
from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.integrations.pytorch._files import load_file


def coral(repo: Repository, **options: Any) -> CoralTrainerCallback:
    return CoralTrainerCallback(repo, include_optimizer=True, background_repack=False, **options)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
PLATEAU = {
    "eval_strategy": "epoch",
    "metric_for_best_model": "loss",
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"factor": 0.5, "patience": 0, "threshold": 0.5},
}
KINDS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation with a remainder": {"gradient_accumulation_steps": 4},
    "evaluation by step": EVALUATED,
    "evaluation by epoch": {"eval_strategy": "epoch"},
    "accumulation and evaluation": {"gradient_accumulation_steps": 2, **EVALUATED},
    "plateau": PLATEAU,
    "warm-up and cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "SGD": {"optim": "sgd"},
}


class Noise(TrainerCallback):
    """An evaluation that draws random numbers, as those of models that sample do."""

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002


def uninterrupted(training: Any, kind: dict[str, Any]) -> Any:
    trainer = training.trainer(Noise(), **kind)
    trainer.train()
    return training.everything(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_from_any_step_is_exact(kind: str, training: Any, repo: Repository) -> None:
    options = {"num_train_epochs": 3, **KINDS[kind]}
    if "eval_strategy" in options:
        options["eval_dataset"] = training.examples(8)
    expected = uninterrupted(training, options)

    callback = coral(repo, save_every_n_steps=1, save_every_n_epochs=1)
    trainer = training.trainer(Noise(), callback, **options)
    trainer.train()
    assert training.everything(trainer) == expected, "the callback changes the run that it saves"
    steps = [commit.step for commit in reversed(repo.log())]
    assert steps == list(range(1, trainer.state.global_step + 1))
    assert all(commit.exact for commit in repo.log())

    per_epoch = len(steps) // 3
    for step in {per_epoch - 1, per_epoch + 1, 2 * per_epoch} - {0}:
        again = coral(repo, branch=f"from-{step}", save_on_train_end=False)
        other = training.trainer(Noise(), again, seed=99, **options)
        random.seed(99), np.random.seed(99)  # noqa: NPY002
        other.train(resume_from_checkpoint=again.resume_path(repo.resolve(f"main@step:{step}")))
        assert training.everything(other) == expected, f"from step {step}"


@pytest.mark.parametrize("kind", ["evaluation by epoch", "plateau"])
def test_the_naive_moment_is_not_exact(kind: str, training: Any, repo: Repository, monkeypatch: Any) -> None:
    """What is told at the end of an epoch, before its evaluation, goes on with other random numbers or another rate."""
    options = {"num_train_epochs": 3, "eval_dataset": training.examples(8), **KINDS[kind]}
    expected = uninterrupted(training, options)
    at_once = CoralTrainerCallback.on_epoch_end

    def on_epoch_end(self: Any, *args: Any, **kwargs: Any) -> None:
        at_once(self, *args, **kwargs)
        self._run.epoch_begins()

    monkeypatch.setattr(CoralTrainerCallback, "on_epoch_end", on_epoch_end)
    callback = coral(repo, save_every_n_epochs=1)
    training.trainer(Noise(), callback, **options).train()
    other = training.trainer(Noise(), seed=99, **options)
    other.train(resume_from_checkpoint=callback.resume_path("step:6"))
    assert training.everything(other) != expected


def test_data_that_draws_random_numbers_is_exact_at_epochs_and_said_not_to_be_within(
    training: Any, repo: Repository, caplog: Any
) -> None:
    def masked(rows: Any) -> Any:
        batch = default_data_collator(rows)
        batch["x"] = batch["x"] * torch.bernoulli(torch.full_like(batch["x"], 0.8))
        return batch

    expected = uninterrupted(training, {"data_collator": masked})
    callback = coral(repo, save_every_n_steps=2, save_every_n_epochs=1)
    training.trainer(Noise(), callback, data_collator=masked).train()
    assert {commit.step for commit in repo.log() if commit.exact} == {6, 12}
    assert "the data draws random numbers" in str(repo.show("step:4").training["why"])

    other = training.trainer(Noise(), callback, seed=99, data_collator=masked)
    other.train(resume_from_checkpoint=callback.resume_path("step:6"))
    assert training.everything(other) == expected
    callback.resume_path(repo.resolve("HEAD~4"))
    assert "resumes approximately" in caplog.text


def test_a_run_that_skips_no_data_is_said_to_resume_approximately_within_an_epoch(
    training: Any, repo: Repository
) -> None:
    training.trainer(coral(repo, save_every_n_steps=3), ignore_data_skip=True).train()
    assert {commit.step: commit.exact for commit in repo.log()} == {3: False, 6: True, 9: False, 12: True}


def test_the_state_of_other_callbacks_goes_along_where_the_trainer_is_attached(training: Any, repo: Repository) -> None:
    options = {
        "eval_dataset": training.examples(8),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "best",
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "restore_callback_states_from_checkpoint": True,
    }
    callback = coral(repo, save_every_n_steps=2)
    training.trainer(EarlyStoppingCallback(20, 10.0), callback, **options).train()
    assert "EarlyStoppingCallback" in str(repo.show().training["why"])

    trainer = training.trainer(EarlyStoppingCallback(20, 10.0), **options)
    callback = coral(repo, save_every_n_steps=2).attach(trainer)
    assert callback in trainer.callback_handler.callbacks
    trainer.train()
    assert repo.show("step:4").exact
    other = training.trainer(EarlyStoppingCallback(20, 10.0), callback, **options)
    callback.attach(other)
    assert [type(each) for each in other.callback_handler.callbacks].count(CoralTrainerCallback) == 1
    counts = []

    class Look(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            early = next(each for each in other.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback))
            counts.append(early.early_stopping_patience_counter)

    other.add_callback(Look())
    other.train(resume_from_checkpoint=callback.resume_path("step:4"))
    assert counts == [3]  # of four evaluations, none is better than the first by 10
    assert callback in other.callback_handler.callbacks, "the user's callback object was replaced"


def test_what_is_left_out_of_the_state_is_said(training: Any, repo: Repository) -> None:
    training.trainer(CoralTrainerCallback(repo)).train()
    commit = repo.show()
    assert not commit.exact
    assert "include_optimizer=False" in str(commit.training["why"])
    with pytest.raises(ConfigError, match="include_optimizer=False"):
        CoralTrainerCallback(repo).resume_path()


def test_another_process_resumes_exactly(training: Any, repo: Repository, tmp_path: Path) -> None:
    expected = uninterrupted(training, {})
    callback = coral(repo, save_every_n_steps=4)
    training.trainer(callback).train()
    callback.resume_path("step:4", tmp_path / "resume")
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
from pathlib import Path
from conftest import Training
import torch
training = Training(Path({str(tmp_path / "process")!r}))
trainer = training.trainer(seed=99)
trainer.train(resume_from_checkpoint={str(tmp_path / "resume")!r})
print(training.everything(trainer) == {expected!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip().endswith("True"), done.stderr


def test_a_plateau_is_really_reached(training: Any) -> None:
    trainer = training.trainer(num_train_epochs=3, eval_dataset=training.examples(8), **PLATEAU)
    trainer.train()
    assert isinstance(trainer.lr_scheduler, ReduceLROnPlateau)
    assert trainer.lr_scheduler.get_last_lr() < [0.01], "else the test of plateaus proves nothing"


def test_the_files_can_be_read_without_running_code(training: Any, repo: Repository, tmp_path: Path) -> None:
    callback = coral(repo)
    training.trainer(callback).train()
    folder = tmp_path / "resume"
    assert callback.resume_path(folder=folder) == str(folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json",
    }  # fmt: skip
    for name in ("optimizer.pt", "scheduler.pt"):
        load_file(folder / name)


def test_a_folder_of_its_own_goes_when_the_program_ends(
    training: Any, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *end: ends.append(end))
    callback = coral(repo)
    training.trainer(callback).train()
    first, second = callback.resume_path(), callback.resume_path()
    assert first != second
    assert Path(first).is_dir()
    for remove, *how in [end for end in ends if first in end or second in end]:
        remove(*how)
    assert not Path(first).exists()
    assert not Path(second).exists()


def test_a_warm_up_before_milestones_goes_on(training: Any, repo: Repository) -> None:
    def optimizers(model: Any) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        parts = [lrs.LinearLR(optimizer), lrs.MultiStepLR(optimizer, [1, 2])]
        return optimizer, lrs.SequentialLR(optimizer, parts, [4])

    states = []
    callback = coral(repo, save_every_n_steps=3)
    for resume in (False, True):
        model = training.trainer().model
        trainer = training.trainer(callback, model=model, optimizers=optimizers(model))
        trainer.train(resume_from_checkpoint=callback.resume_path("step:3") if resume else None)
        assert trainer.lr_scheduler is not None
        states.append(trainer.lr_scheduler.state_dict())
    assert states[0] == states[1]
