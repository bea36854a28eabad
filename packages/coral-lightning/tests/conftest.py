"""Small trainers, and models for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coral import Repository

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


def pytest_configure(config: pytest.Config) -> None:
    # what Lightning says of small runs, and what its own code makes torch and Python say
    for line in (
        "ignore:.*does not have many workers",
        "ignore:.*found .* module.s. in eval mode",
        "ignore:.*lightning_fabric.*:DeprecationWarning",
        "ignore:Please use `torch.*` instead of `torch.*`",
        "ignore:.*isinstance.treespec, LeafSpec.*",
        "ignore:'set_vital' is deprecated",  # torchdata says it of torch's own data loader
        "ignore:.*resuming from a checkpoint that ended before the epoch ended",
    ):
        config.addinivalue_line("filterwarnings", line)


class Net(pl.LightningModule):
    """A regression with dropout, batch norm and noise from every generator; it logs losses by step and by epoch."""

    def __init__(self, plateau: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.plateau = plateau
        self.seen: list[tuple[int, float]] = []

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        self.seen.append((self.global_step, x.sum().item()))
        noise = 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002, it is what training scripts use
        loss = self.loss((x + noise, y))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if not self.plateau:
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Scored(pl.LightningModule):
    """Its evaluations give what they are told, by the step; its one weight counts the updates."""

    def __init__(self, scores: Callable[[int], float] = float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scores = scores

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train_loss", float(self.global_step))
        return -self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(float(self.scores(self.global_step))))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def dataset() -> TensorDataset:
    x = torch.linspace(-1, 1, 48).reshape(12, 4)
    return TensorDataset(x, x.sum(1, keepdim=True))


def seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


def loaders(make: Callable[..., Any] = DataLoader) -> tuple[Any, Any]:
    """One for training, shuffled, of 3 batches; one for validation."""
    return make(dataset(), batch_size=4, shuffle=True), DataLoader(dataset(), batch_size=6)


def trainer(*callbacks: Any, package: Any = pl, **options: Any) -> Any:
    return package.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 3, **options})


def everything(trainer: Any) -> dict[str, Any]:
    """All that must be equal if two runs are one, as plain values."""
    module = trainer.lightning_module
    parts = [module.state_dict(), *(each.state_dict() for each in trainer.optimizers)]
    parts += [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs]
    drawn = [random.random(), np.random.rand(), torch.rand(2)]  # noqa: NPY002
    return plain([*parts, drawn, trainer.global_step, trainer.current_epoch])


def plain(value: Any) -> Any:
    """Nested state with the exact bits of its tensors, to be compared with ==."""
    match value:
        case torch.Tensor():
            bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()
            return (str(value.dtype), tuple(value.shape), bits)
        case dict():
            return {key: plain(child) for key, child in value.items()}
        case list() | tuple():
            return [plain(child) for child in value]
        case _:
            return value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a repository is to be."""
    return tmp_path / "weights"


@pytest.fixture
def saved(path: Path) -> Callable[..., dict[int | None, tuple[str, ...]]]:
    """The steps of a branch's checkpoints and why each was saved, oldest first."""

    def look(branch: str = "main") -> dict[int | None, tuple[str, ...]]:
        return {commit.step: commit.reasons for commit in reversed(Repository(path).log(branch))}

    return look


@pytest.fixture
def lab() -> SimpleNamespace:
    """What is here, for the tests: they cannot import it."""
    names = (Net, Scored, dataset, everything, loaders, plain, seeded, trainer)
    return SimpleNamespace(**{each.__name__: each for each in names})
