"""Small models, and Trainers for them. Nothing is downloaded: models are made from configs of a few numbers."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from coral import Repository


class Small(nn.Module):
    """Dropout and noise from Python's and numpy's generators: what a resumed run does depends on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002, it is what training scripts use
        logits = self.head(self.body(x + noise))
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def examples(count: int = 24) -> list[dict[str, torch.Tensor]]:
    x = torch.linspace(-1, 1, count * 4).reshape(count, 4)
    return [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]


def plain(value: Any) -> Any:
    """Nested state with the exact bits of its tensors, to be compared with ==."""
    match value:
        case torch.Tensor():
            bits = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
            return (str(value.dtype), tuple(value.shape), bits)
        case dict():
            return {key: plain(child) for key, child in value.items()}
        case list() | tuple():
            return [plain(child) for child in value]
        case _:
            return value


class Training:
    """Makes Trainers of one kind in a folder: 24 examples, 4 a batch, 6 batches an epoch."""

    examples = staticmethod(examples)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trainer(
        self,
        *callbacks: Any,
        model: nn.Module | None = None,
        seed: int = 0,
        kind: type[Trainer] = Trainer,
        **options: Any,
    ) -> Trainer:
        """A Trainer whose model begins with weights of the seed; options of Trainer, and of TrainingArguments."""
        of_trainer = {
            name: options.pop(name)
            for name in ("optimizers", "eval_dataset", "data_collator", "processing_class", "train_dataset")
            if name in options
        }
        torch.manual_seed(seed)
        arguments = self.arguments(**options)
        given = {"train_dataset": examples(), **of_trainer}
        return kind(model=Small() if model is None else model, args=arguments, callbacks=list(callbacks), **given)

    def arguments(self, **options: Any) -> TrainingArguments:
        return TrainingArguments(
            str(self.folder / "out"),
            **{
                "per_device_train_batch_size": 4,
                "num_train_epochs": 2,
                "learning_rate": 0.01,
                "use_cpu": True,
                "disable_tqdm": True,
                "save_strategy": "no",
                "report_to": [],
                "dataloader_pin_memory": False,
                **options,
            },
        )

    @staticmethod
    def everything(trainer: Trainer) -> Any:
        """All that must be equal if two runs are one, as plain values."""
        assert trainer.optimizer is not None
        assert trainer.lr_scheduler is not None
        parts = [each.state_dict() for each in (trainer.model, trainer.optimizer, trainer.lr_scheduler)]
        drawn = [random.random(), np.random.rand(), torch.rand(2)]  # noqa: NPY002
        return plain([*parts, trainer.state.global_step, trainer.state.epoch, drawn])


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True, durability="fast")
