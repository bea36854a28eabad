"""A process that is asked to end while it trains: `preempted.py <folder> <what>`, where `what` is JSON.

For each name of it: options of TrainingArguments, and the update within which it says so and waits for a line, by when
its SIGTERM has come.
"""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Training
from transformers import TrainerCallback

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback


class Noise(TrainerCallback):
    """An evaluation that draws random numbers."""

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002


class Waits(TrainerCallback):
    """Stops in a hook, before the update `step` is complete, until its SIGTERM has come."""

    def __init__(self, hook: str, step: int) -> None:
        def wait(args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == step - 1:
                print("waits", flush=True)
                assert sys.stdin.readline() == "sent\n"

        setattr(self, hook, wait)


for branch, (hook, step, options) in json.loads(sys.argv[2]).items():
    training = Training(Path(sys.argv[1]) / branch)
    if "eval_strategy" in options:
        options["eval_dataset"] = training.examples(8)
    repo = Repository(Path(sys.argv[1]) / "repo", init=True, durability="fast")
    coral = CoralTrainerCallback(
        repo, branch=branch, include_optimizer=True, background_repack=False, handle_signals=True
    )
    before = signal.getsignal(signal.SIGTERM)
    trainer = training.trainer(Noise(), coral, Waits(hook, step), **options)
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before
    print(f"ended {trainer.state.global_step}", flush=True)
