"""CoralCallback passes the kit that every adapter has to pass."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from coral.integrations.lightning import CoralCallback
from coral.testing import AdapterTests, Leg

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


class OneByOne(torch.optim.SGD):
    """SGD that tells when it has changed one of the two weights."""

    def __init__(self, model: Counts) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self.leg = model.leg

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        weight, bias = self.param_groups[0]["params"]
        before = weight[0].item()
        for parameter in (weight, bias):
            parameter -= parameter.grad
            if parameter is weight:
                self.leg.update(before)
        return loss


class Counts(pl.LightningModule):
    """Its loss is minus the sum of its weights, which with a learning rate of 1 count the updates."""

    def __init__(self, leg: Leg) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.bias = nn.Parameter(torch.zeros(1))
        self.leg = leg
        self.fits = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.leg.forward(self.weight[0].item())
        return -(self.weight.sum() + self.bias.sum())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        within = self.fits and not self.trainer.sanity_checking
        found = self.leg.scores(self.weight[0].item()) if within else self.leg.outside_scores()
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()})

    def configure_optimizers(self) -> Any:
        return OneByOne(self)


class TestCoralCallback(AdapterTests):
    def train(self, leg: Leg) -> None:
        schedule, model = leg.schedule, Counts(leg)
        callback = CoralCallback(
            leg.repo.path,
            branch=leg.branch,
            experiment=leg.experiment,
            config=schedule.config,
            include_optimizer=True,
        )
        trainer = pl.Trainer(
            callbacks=[callback],
            max_epochs=schedule.epochs,
            max_steps=schedule.max_steps or -1,
            accumulate_grad_batches=schedule.accumulate,
            num_sanity_val_steps=2 if schedule.outside else 0,
            **self.evaluations(leg),
            **QUIET,
        )
        batches, evaluation = (DataLoader([0.0] * n) for n in (schedule.batches, 1))
        if schedule.outside:
            trainer.validate(model, evaluation, verbose=False)
        model.fits = True
        ckpt_path = f"coral://{leg.repo.path}@{leg.resume}" if leg.resume else None
        trainer.fit(model, batches, evaluation, ckpt_path=ckpt_path)
        model.fits = False
        if schedule.outside:
            trainer.validate(model, evaluation, verbose=False)
        if schedule.load_best:
            callback.load_from_coral(model, "best")

    def evaluations(self, leg: Leg) -> dict[str, Any]:
        """When the trainer is to evaluate. In Lightning an evaluation always precedes the end of its epoch."""
        evaluations = leg.schedule.evaluations
        if evaluations is None:
            return {"limit_val_batches": 0}
        if evaluations.every_n_steps:
            every = evaluations.every_n_steps * leg.schedule.accumulate
            return {"val_check_interval": every, "check_val_every_n_epoch": None}
        return {"check_val_every_n_epoch": evaluations.every_n_epochs}
