"""One process of a distributed run, as torchrun would start it: `ranks.py <what> <folder>`."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Small, Training
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback, TrainerControl, TrainerState

from coral.errors import ConfigError
from coral.integrations.hf_trainer import CoralTrainerCallback

RANK = int(os.environ["RANK"])
WHAT, FOLDER = sys.argv[1], Path(sys.argv[2])


class Apart(TrainerCallback):
    """Each rank draws other random numbers, so that the state of every one of them counts."""

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if not state.global_step:
            random.seed(RANK), np.random.seed(RANK)  # noqa: NPY002


class Dies(TrainerCallback):
    """A rank that is gone after step 3, or raises."""

    def __init__(self, rank: int, *, raises: bool = False) -> None:
        self.rank, self.raises = rank, raises

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 3 and self.rank == RANK:
            if self.raises:
                raise ArithmeticError("this rank is out of luck")
            os._exit(7)


class Scores(TrainerCallback):
    """The ranks do not agree on the scores: what the main one says holds."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        metrics["eval_score"] = float(state.global_step if RANK == 0 else -state.global_step)


def trainer(*callbacks: Any, seed: int = 0, **options: Any) -> Any:
    return Training(FOLDER / f"out-{RANK}").trainer(
        Apart(), *callbacks, seed=seed, ddp_backend="gloo", ddp_timeout=120, max_steps=8, **options
    )


def coral(**options: Any) -> CoralTrainerCallback:
    return CoralTrainerCallback(
        FOLDER / "repo", **{"include_optimizer": True, "background_repack": False, "durability": "fast", **options}
    )


def exact() -> None:
    whole = trainer()
    whole.train()
    expected = Training.everything(whole)
    callback = coral(save_every_n_steps=1)
    trainer(callback).train()
    for step in (2, 3, 4):  # an epoch has 3 updates
        again = coral(branch=f"from-{step}")
        other = trainer(again, seed=99)
        other.train(resume_from_checkpoint=again.resume_path(f"main@step:{step}"))
        assert Training.everything(other) == expected, f"from step {step}"
    assert (callback.manager is not None) == (RANK == 0)


def stops() -> None:
    callback = coral(save_on_best="score", early_stopping_patience=2, include_optimizer=False)
    own = trainer(Scores(), callback, eval_dataset=Training.examples(8), eval_strategy="steps", eval_steps=1)
    own.train()
    assert own.state.global_step == 3


def dies(rank: int, *, raises: bool) -> None:
    callback = coral(save_every_n_steps=2)
    with callback.guard():
        trainer(callback, Dies(rank, raises=raises)).train()


def sharded() -> None:
    """accelerate shards nothing on a CPU: the hooks are called as a Trainer calls them, with torch's FSDP2 below."""
    arguments = Training(FOLDER / f"out-{RANK}").arguments(ddp_backend="gloo", ddp_timeout=120)
    torch.manual_seed(0)
    model = Small()
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    engine = SimpleNamespace(get_state_dict=lambda it: get_model_state_dict(it, options=options))
    handler = SimpleNamespace(callbacks=[callback := coral(save_every_n_steps=1)])
    state, control = TrainerState(is_world_process_zero=RANK == 0), TrainerControl()
    parts = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "lr_scheduler": None}
    with pytest.raises(ConfigError, match="attach"):
        callback.on_train_begin(arguments, state, control, **parts)
    callback.attach(SimpleNamespace(accelerator=engine, model_wrapped=model, callback_handler=handler))
    callback.on_train_begin(arguments, state, control, **parts)
    for state.global_step in (1, 2):
        callback.on_step_begin(arguments, state, control)
        callback.on_step_end(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"train_runtime": 1.0, "train_loss": 1.0})
    if RANK == 0:
        saved = callback.repository.load()
        assert {*saved} == {*whole}
        assert all((saved[name].data == tensor.numpy()).all() for name, tensor in whole.items())


{
    "exact": exact,
    "stops": stops,
    "the main one dies": lambda: dies(0, raises=False),
    "another dies": lambda: dies(1, raises=False),
    "another raises": lambda: dies(1, raises=True),
    "the main one raises": lambda: dies(0, raises=True),
    "sharded": sharded,
}[WHAT]()
print("done", flush=True)
