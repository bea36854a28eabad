"""How long a training loop stands still for an asynchronous save, beside a plain copy of the same bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import peers
import series
import torch
from harness import Bench, Contender, in_turn

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

__all__ = ["run"]

STRETCH = 1.5
"""Seconds of training between two saves, so that the one before has ended."""
CORAL = "CoralTrainer.step that saves"
COPY = "np.copyto into warm buffers, 1 thread"
ASYNC = "torch.distributed.checkpoint.async_save"
STAGED = "the same with a stager that is kept"


class Loop:
    """A training loop whose state is saved, one way or another, after stretches of real training."""

    def __init__(self) -> None:
        self.tuning = series.FineTuning(series.Plan())
        self.loss = self.tuning.step()  # which gives Adam its moments

    def tensors(self) -> series.Tensors:
        """Return what a save has to hold: the live model and optimizer tensors."""
        moments = self.tuning.optimizer.state_dict()["state"]
        state = {f"{k}.{key}": value for k, slot in moments.items() for key, value in slot.items()}
        return self.tuning.model.state_dict() | {n: v for n, v in state.items() if isinstance(v, torch.Tensor)}

    def train(self) -> None:
        """Train for a stretch."""
        end = time.perf_counter() + STRETCH
        while time.perf_counter() < end:
            self.loss = self.tuning.step()


def seconds_of(work: Callable[..., object], *args: object) -> float:
    """Time one call, with nothing done to the machine before it: the loop would not either."""
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def run(bench: Bench) -> None:
    """Time the saves as the loop sees them, the plain copy and async_save, in turn within one training run."""
    files = bench.folder("stall")
    loop = Loop()
    repo = Repository(files / "repo", init=True, durability="full")
    trainer = CoralTrainer(loop.tuning.model, repo, "bench", CheckpointConfig(save_every_n_steps=1))
    trainer.set_optimizer(loop.tuning.optimizer)
    copy = peers.WarmCopy(loop.tensors())
    saves = 0

    def coral() -> dict[str, float]:
        nonlocal saves
        saves += 1
        took = seconds_of(trainer.step, loop.loss)
        loop.train()
        return {CORAL: took}

    def plain() -> dict[str, float]:
        return {COPY: seconds_of(copy.run)}

    def dcp(name: str, keep_buffers: bool) -> Contender:
        other = peers.AsyncSave(files / "dcp", keep_buffers)

        def save() -> dict[str, float]:
            took = seconds_of(other.start, loop.tensors())
            loop.train()
            other.finish()
            return {name: took}

        return save

    report = bench.report
    size = sum(tensor.nbytes for tensor in loop.tensors().values())
    report.note("stall", f"{size / 1e6:.0f} MB of model and optimizer, {STRETCH} s of training after each save")
    times = in_turn([coral, plain, dcp(ASYNC, False), dcp(STAGED, True)], bench.rounds)
    trainer.wait()
    assert len(repo.log()) == saves, f"{saves} saves made {len(repo.log())} commits"
    trainer.close()
    peers.close()
    report.time("stall", times)
    report.ratio("stall", CORAL, COPY, 1.15, "stall of an asynchronous save / np.copyto")
    report.ratio("stall", ASYNC, COPY, None, "stall of torch's async_save / np.copyto")
    report.ratio("stall", STAGED, COPY, None, "stall of torch's async_save, kept stager / np.copyto")
    shutil.rmtree(files)
