"""A small training run, with everything in it that has state."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coral import Repository
from coral.integrations.pytorch import CoralTrainer


@dataclass
class Run:
    """A model with dropout and batch norm, shuffled data, and noise from Python's and numpy's generators."""

    make_optimizer: Callable[[Any], Any] = field(default=lambda p: torch.optim.AdamW(p, lr=0.01))
    make_scheduler: Callable[[Any], Any] | None = None
    seed: int = 0
    scaler: Any = None

    def __post_init__(self) -> None:
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002, it is what training scripts use
        torch.manual_seed(self.seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = self.make_optimizer(self.model.parameters())
        self.scheduler = self.make_scheduler(self.optimizer) if self.make_scheduler else None
        x = torch.linspace(-1, 1, 48).reshape(12, 4)
        self.loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4, shuffle=True)

    def attach(self, trainer: CoralTrainer, **how: Any) -> None:
        trainer.set_optimizer(self.optimizer)
        if self.scheduler is not None:
            trainer.set_scheduler(self.scheduler, **how)
        if self.scaler is not None:
            trainer.set_scaler(self.scaler)

    def step(self, batch: Any) -> torch.Tensor:
        x, y = batch
        x = x + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = (self.model(x) - y).square().mean()
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            return loss

        if self.scaler is not None:
            loss = closure()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss = self.optimizer.step(closure)
        return loss

    def train(self, trainer: CoralTrainer, epochs: int) -> None:
        for epoch in range(trainer.start_epoch, epochs):
            for batch in self.loader:
                trainer.step(self.step(batch))
            trainer.epoch_end(epoch)

    def everything(self) -> dict[str, Any]:
        """All that must be equal if two runs are one, as plain values."""
        parts = [self.model.state_dict(), self.optimizer.state_dict()]
        parts += [part.state_dict() for part in [self.scheduler, self.scaler] if part is not None]
        drawn = [random.random(), np.random.rand(), torch.rand(2)]  # noqa: NPY002
        return plain([*parts, drawn])


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


@pytest.fixture
def make_run() -> type[Run]:
    return Run


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True, durability="fast")
