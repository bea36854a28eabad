"""The README's callbacks for Lightning and transformers, as they are written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from coral import Repository

README = Path(__file__).parents[1] / "README.md"

pytestmark = [  # what Lightning says of small runs, and what it makes torch and Python say
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*does not have many workers", ".*lightning_fabric.*:DeprecationWarning", ".*treespec, LeafSpec.*")
]


def block(name: str) -> str:
    """The one block of code that has this name in it."""
    (found,) = [each for each in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if name in each]
    return str(found)


def twice(code: str, resume: str, **names: Any) -> Repository:
    """Run it without what it goes on from, as there is nothing yet, and then as it is."""
    assert resume in code
    exec(code.replace(resume, ""), dict(names))  # noqa: S102 - it is ours
    before = len(Repository("weights").log())
    assert before
    exec(code, dict(names))  # noqa: S102
    return Repository("weights")


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class Quiet:
    """pytorch_lightning, whose trainers keep quiet and leave no files."""

    @staticmethod
    def Trainer(**options: Any) -> pl.Trainer:  # noqa: N802 - its name
        quiet = dict.fromkeys(("enable_checkpointing", "enable_model_summary", "enable_progress_bar", "logger"), False)
        return pl.Trainer(accelerator="cpu", **quiet, **options)  # type: ignore[arg-type]


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batches = DataLoader(torch.randn(4, 2), batch_size=2)
    repo = twice(
        block("CoralCallback("),
        ', ckpt_path="coral://./weights@last"',
        pl=Quiet,
        model=Line(),
        train_dataloader=batches,
        val_dataloader=batches,
    )
    assert repo.show("last").step == 20
    assert repo.show("best").metrics["val_loss"] >= 0


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).square().mean()}


def test_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = TrainingArguments(
        "out", num_train_epochs=2, use_cpu=True, disable_tqdm=True, save_strategy="no", report_to=[],
        dataloader_pin_memory=False,
    )  # fmt: skip
    repo = twice(
        block("CoralTrainerCallback("),
        'resume_from_checkpoint=callback.resume_path("last")',
        Trainer=Trainer,
        model=Loss(),
        training_args=arguments,
        dataset=[{"x": torch.randn(2)}] * 16,
    )
    assert repo.show("last").step == 4
