"""One process of a distributed run, as torchrun would start it: `ranks.py <what> <folder>`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import Small, Training
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback, TrainerControl, TrainerState

from coral import Repository
from coral.errors import ConfigError
from coral.filesystem import LocalFileSystem
from coral.integrations.hf_trainer import CoralTrainerCallback, _source
from coral.training._pushing import Pushing

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
        Apart(), *callbacks, seed=seed, **{"ddp_backend": "gloo", "ddp_timeout": 120, "max_steps": 8, **options}
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


def killed(rank: int, *, linked: bool | None = None) -> None:
    """A rank is killed in the second save: as it gives its random numbers, or the main one around its commit's link."""
    own_random_state, own_link = _source.get_random_state, LocalFileSystem.link
    step, moves = 0, 0

    class At(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            nonlocal step
            step = state.global_step

    def give() -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return own_random_state()

    def link(self: Any, source: str, target: str) -> None:
        nonlocal moves
        moves += target.startswith("refs/heads/main")
        if moves == 2 and not linked:
            os.kill(os.getpid(), signal.SIGKILL)
        own_link(self, source, target)
        if moves == 2 and linked:
            os.kill(os.getpid(), signal.SIGKILL)

    if rank == RANK:
        if linked is None:
            _source.get_random_state = give
        else:
            LocalFileSystem.link = link
    callback = coral(save_every_n_steps=2, durability="full")
    with callback.guard():
        # those that are left may have to wait so long for one that has gone as well: torch knows no other way
        trainer(callback, At(), ddp_timeout=45).train()


class Exits(TrainerCallback):
    """The program ends in step 5, on all ranks, while step 4 is being saved."""

    ended = False

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 5:
            self.ended = True
            sys.exit(3)


def exits() -> None:
    """Nobody guards it."""
    own_commit, end = Repository.commit, Exits()

    def slow(*args: Any, **options: Any) -> str:
        for _ in range(1200):  # it is done when the program ends
            if end.ended:
                (FOLDER / "ended").touch()
                break
            time.sleep(0.05)
        return own_commit(*args, **options)

    Repository.commit = slow
    trainer(coral(save_every_n_steps=4, durability="full"), end).train()


class Preempted(TrainerCallback):
    """The launcher signals all processes in step 3, as torchrun does."""

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def preempted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    own = trainer(Preempted(), coral(handle_signals=True))
    own.train()
    assert own.state.global_step == 3
    assert signal.getsignal(signal.SIGTERM) == before


def pushes() -> None:
    """The last push takes until the other process is through with its training."""
    own_close, through = Pushing.close, FOLDER / "through"

    def close(self: Any, *args: Any) -> None:
        for _ in range(600):
            if through.exists():
                break
            time.sleep(0.05)
        else:
            pytest.fail("the other process waits for this push")
        own_close(self, *args)

    Pushing.close = close
    trainer(coral(save_every_n_steps=4, push_to=FOLDER / "there")).train()
    if RANK:
        through.touch()


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
    over = FOLDER / "over"

    def go_on() -> None:
        state.global_step = 2
        callback.on_train_begin(arguments, state, control, **parts)
        for state.global_step in (3, 4):
            callback.on_step_begin(arguments, state, control)
            callback.on_step_end(arguments, state, control)
        while RANK and not over.exists():  # it is not there to bring its parts
            time.sleep(0.05)
        raise ArithmeticError("out of luck")

    with pytest.raises(ArithmeticError), callback.guard():
        go_on()
    over.touch()
    if RANK == 0:
        assert callback.repository.show().step == 3
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
    "another is killed as it gives its part": lambda: killed(2),
    "the main one is killed before its commit is there": lambda: killed(0, linked=False),
    "the main one is killed when its commit is there": lambda: killed(0, linked=True),
    "exits": exits,
    "preempted": preempted,
    "pushes": pushes,
    "sharded": sharded,
}[WHAT]()
if dist.is_initialized():  # else gloo's threads may be running still as the process exits, which aborts it
    dist.destroy_process_group()
print("done", flush=True)
