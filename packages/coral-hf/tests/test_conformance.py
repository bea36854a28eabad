"""CoralTrainerCallback passes the kit that every adapter has to pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.testing import AdapterTests, Leg


class Counts(nn.Module):
    """Its loss is minus the sum of its weights, which with a learning rate of 1 count the updates."""

    def __init__(self, leg: Leg) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.bias = nn.Parameter(torch.zeros(1))
        self.leg = leg

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.leg.forward(self.weight[0].item())
        return {"loss": -(self.weight.sum() + self.bias.sum())}


class OneByOne(torch.optim.SGD):
    """SGD that tells when it has changed one of the two weights."""

    def __init__(self, model: Counts, between: Callable[[float], None]) -> None:
        super().__init__([model.weight, model.bias], lr=1.0)
        self.between = between

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        weight, bias = self.param_groups[0]["params"]
        before = weight[0].item()
        for parameter in (weight, bias):
            parameter -= parameter.grad.sign()
            if parameter is weight:
                self.between(before)


class Flow(TrainerCallback):
    """Asks for an evaluation where the schedule has one: after the end of the epoch, or before it."""

    def __init__(self, leg: Leg) -> None:
        self.schedule = leg.schedule
        evaluations = leg.schedule.evaluations
        self.after = evaluations is not None and evaluations.order == "after"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = self.schedule.position(state.global_step)[1] == 0
        if self.schedule.scores(state.global_step) and not (self.after and last):
            control.should_evaluate = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = bool(self.after and self.schedule.scores(state.global_step))


class Scored(Trainer):
    """Evaluates with the leg's scores, one evaluation set after another."""

    def __init__(self, leg: Leg, **kwargs: Any) -> None:
        names = sorted(leg.schedule.metrics)
        sets = [name.removeprefix("eval_").rpartition("_")[0] for name in names]
        data = [{"x": torch.zeros(1)}]
        super().__init__(eval_dataset=dict.fromkeys(sets, data) if len(sets) > 1 else data, **kwargs)
        self.leg, self.outside = leg, False

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        weight = self.model.weight[0].item()
        scores = self.leg.outside_scores() if self.outside else self.leg.scores(weight)
        mine = {name: value for name, value in scores.items() if name.startswith(metric_key_prefix)}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=mine, num_samples=1)

    def evaluate_outside(self) -> None:
        self.outside = True
        self.evaluate()
        self.outside = False


class TestCoralTrainerCallback(AdapterTests):
    def train(self, leg: Leg) -> None:
        schedule, model = leg.schedule, Counts(leg)
        callback = CoralTrainerCallback(
            leg.repo, branch=leg.branch, experiment=leg.experiment, include_optimizer=True, config=schedule.config
        )
        optimizer = OneByOne(model, leg.update)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Scored(
                leg,
                model=model,
                args=self.arguments(leg, folder),
                train_dataset=[{"x": torch.zeros(1)}] * schedule.batches,
                optimizers=(optimizer, constant),
                callbacks=[Flow(leg), callback],
            )
            if schedule.outside:
                trainer.evaluate_outside()
            with callback.guard():
                trainer.train(resume_from_checkpoint=callback.resume_path(leg.resume) if leg.resume else None)
            if schedule.outside:
                trainer.evaluate_outside()

    def arguments(self, leg: Leg, folder: str) -> TrainingArguments:
        schedule = leg.schedule
        best = {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
        }
        return TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=schedule.accumulate,
            num_train_epochs=schedule.epochs,
            max_steps=schedule.max_steps or -1,
            max_grad_norm=0.0,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            report_to=[],
            **(best if schedule.load_best else {"save_strategy": "no"}),
        )
