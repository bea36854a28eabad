"""CoralTrainer passes the kit that every adapter has to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from coral.integrations.pytorch import CoralTrainer
from coral.testing import AdapterTests, Leg
from coral.training import Evaluated


class Counts(nn.Module):
    """Its loss is minus the sum of its weights, which with a learning rate of 1 count the updates."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self) -> torch.Tensor:
        return -(self.weight.sum() + self.bias.sum())


class OneByOne(torch.optim.SGD):
    """SGD that tells when it has changed one of the two weights."""

    def __init__(self, model: Counts, between: Callable[[float], None]) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self.between = between

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        weight, bias = self.param_groups[0]["params"]
        before = weight[0].item()
        for parameter in (weight, bias):
            parameter -= parameter.grad
            if parameter is weight:
                self.between(before)


@pytest.mark.filterwarnings("ignore:metric 'eval_loss' is nan")
class TestCoralTrainer(AdapterTests):
    def train(self, leg: Leg) -> None:
        schedule, model = leg.schedule, Counts()
        optimizer = OneByOne(model, leg.update)
        trainer = CoralTrainer(
            model, leg.repo, leg.experiment, schedule.config, branch=leg.branch, resume=leg.resume or False
        )
        with trainer:
            trainer.set_optimizer(optimizer)
            for epoch in range(trainer.start_epoch, schedule.epochs):
                self.epoch(leg, trainer, model, optimizer, epoch)
                if trainer.global_step == schedule.last_step or trainer.should_stop:
                    break
        if schedule.load_best:
            trainer.load_checkpoint(load_best=True)

    def epoch(self, leg: Leg, trainer: CoralTrainer, model: Counts, optimizer: OneByOne, epoch: int) -> None:
        """What is left of an epoch."""
        schedule = leg.schedule
        _, done = schedule.position(trainer.global_step)
        for batch in range(done, schedule.batches):
            leg.forward(model.weight[0].item())
            (model() / schedule.accumulate).backward()
            if (batch + 1) % schedule.accumulate:
                continue
            optimizer.step()
            optimizer.zero_grad()
            self.updated(leg, trainer, model, epoch)
            if trainer.global_step == schedule.last_step or trainer.should_stop:
                break

    def updated(self, leg: Leg, trainer: CoralTrainer, model: Counts, epoch: int) -> None:
        """What comes after an update. An epoch's end is given its scores, or they come after it, as is asked for."""
        schedule, step = leg.schedule, trainer.global_step + 1
        trainer.step(model())
        scores = leg.scores(model.weight[0].item()) if schedule.scores(step) else {}
        _, left_off = schedule.position(step)
        after = left_off or (schedule.evaluations and schedule.evaluations.order == "after")
        if not left_off:
            trainer.epoch_end(epoch, **({} if after else scores))
        if after and scores:
            trainer.manager.emit(Evaluated(step, scores))
