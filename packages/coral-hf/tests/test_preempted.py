"""A SIGTERM ends a training with the update that is under way, and it goes on from there as if it had not come."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no way to send a SIGTERM")

PLATEAU = {
    "eval_strategy": "epoch",
    "metric_for_best_model": "loss",
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"factor": 0.5, "patience": 0, "threshold": 0.5},
}
WITHIN, BETWEEN = "on_pre_optimizer_step", "on_substep_end"
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "within-an-epoch": (WITHIN, 4, {}),
    "at-its-end": (WITHIN, 6, {}),
    "evaluation-by-step": (WITHIN, 4, {"eval_strategy": "steps", "eval_steps": 2}),
    "evaluation-by-epoch": (WITHIN, 8, {"eval_strategy": "epoch"}),
    "evaluation-at-its-end": (WITHIN, 6, {"eval_strategy": "epoch"}),
    "plateau-within-an-epoch": (WITHIN, 8, PLATEAU),
    "plateau-at-its-end": (WITHIN, 6, PLATEAU),
    "between-the-batches-of-an-update": (BETWEEN, 5, {"gradient_accumulation_steps": 2}),
}
"""The hook in which a SIGTERM comes, the update that is under way then, and options of TrainingArguments."""


class Noise(TrainerCallback):
    """An evaluation that draws random numbers, as those of models that sample do."""

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, dict[str, int]]:
    """What a process has left that was sent one SIGTERM in each kind of training, and the updates that each made."""
    folder = tmp_path_factory.mktemp("preempted")
    script = Path(__file__).with_name("preempted.py")
    kinds = {name: (hook, step, {"num_train_epochs": 3, **options}) for name, (hook, step, options) in KINDS.items()}
    path = os.pathsep.join([str(script.parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), json.dumps(kinds)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        steps: dict[str, int] = {}
        for line in process.stdout:
            if line == "waits\n":
                process.send_signal(signal.SIGTERM)
                process.stdin.write("sent\n")
                process.stdin.flush()
            elif line.startswith("ended "):
                steps[list(KINDS)[len(steps)]] = int(line.split()[1])
    assert process.returncode == 0
    return Repository(folder / "repo"), steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_sigterm_ends_the_training_and_resuming_is_exact(
    kind: str, ended: tuple[Repository, dict[str, int]], training: Any
) -> None:
    repo, steps = ended
    _, step, options = KINDS[kind]
    options = {"num_train_epochs": 3, **options}
    if "eval_strategy" in options:
        options["eval_dataset"] = training.examples(8)
    assert steps[kind] == step, "the update that was under way is the last"
    (commit,) = repo.log(kind)
    assert (commit.step, commit.exact) == (step, True), commit.training
    assert "preempted" in commit.reasons

    whole = training.trainer(Noise(), **options)
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    whole.train()
    expected = training.everything(whole)
    again = CoralTrainerCallback(repo, branch=kind, include_optimizer=True, background_repack=False)
    other = training.trainer(Noise(), again, seed=99, **options)
    random.seed(99), np.random.seed(99)  # noqa: NPY002
    other.train(resume_from_checkpoint=again.resume_path())
    assert training.everything(other) == expected
    assert repo.show(kind).resumed_from == commit.id


def test_in_the_first_step_nobody_knows_whether_the_data_draws_random_numbers(training: Any, repo: Repository) -> None:
    class Kills(TrainerCallback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == self.step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    for step in (1, 2):
        callback = CoralTrainerCallback(repo, include_optimizer=True, background_repack=False, handle_signals=True)
        training.trainer(callback, Kills(step)).train()
    known, unknown = repo.log()
    assert (known.step, known.exact) == (2, True)
    assert (unknown.step, unknown.exact) == (1, False)
    assert "whether its data draws is not known" in str(unknown.training["why"])
