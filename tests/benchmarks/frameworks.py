"""The fine-tuning of `series`, driven by Lightning and by transformers, saved in the ways that are compared."""

from __future__ import annotations

import itertools
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytorch_lightning as pl
import series
import torch
from harness import timed
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.integrations.lightning import CoralCallback
from coral.training import CheckpointConfig, CheckpointManager

__all__ = ["EVERY", "FRAMEWORKS", "Inside", "Run", "Way", "saves"]

EVERY = 10
"""Steps from one save to the next."""
LR = 2e-5
CLIP = 1.0

Way = Literal["no saving", "coral", "coral, repack beside it", "its own", "its own, fsynced"]
Batch = list[tuple[str, str]]

for _name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()  # Lightning has imported it before `series` could say so
warnings.filterwarnings("ignore", module="pytorch_lightning")


@dataclass(slots=True)
class Inside:
    """The seconds that the training thread spends in the calls that are watched, and in some of them, in `end`."""

    seconds: float = 0.0
    end: float = 0.0
    _deep: bool = False

    def watch(self, owner: object, names: Iterable[str]) -> None:
        """Time these methods of an object from now on; one that another of them calls is in the time of that."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._deep:
                return method(*args, **kwargs)
            self._deep, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._deep = False
                self.seconds += time.perf_counter() - start

        return call

    @contextmanager
    def watch_end(self) -> Iterator[None]:
        """Within the block, what closing a run takes is added to `end`: the wait for what is still being saved."""
        close = CheckpointManager.close

        def call(manager: CheckpointManager) -> None:
            start = time.perf_counter()
            try:
                close(manager)
            finally:
                self.end += time.perf_counter() - start

        with patch.object(CheckpointManager, "close", call):
            yield


@dataclass(frozen=True, slots=True)
class Run:
    """What a training of so many steps took, and what of it inside the calls that save."""

    seconds: float
    inside: Inside = field(default_factory=Inside)


def _hooks(callback: object) -> list[str]:
    return [name for name in dir(callback) if name in ("setup", "teardown") or name.startswith("on_")]


def _options(way: Way) -> CheckpointConfig:
    return CheckpointConfig(
        save_every_n_steps=EVERY, durability="full", background_repack=way == "coral, repack beside it"
    )


def saves(folder: Path) -> int:
    """Return how many checkpoints a run has left in its folder."""
    own = [*folder.glob("*.ckpt"), *folder.glob("checkpoint-*")]
    return len(own) or len(Repository(folder).log())


def _fsync(path: Path) -> None:
    """Make files and the folders that they are in durable."""
    for each in (path, *(path.rglob("*") if path.is_dir() else ()), path.parent):
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


# Lightning


class Module(pl.LightningModule):
    """The fine-tuning as a LightningModule."""

    def __init__(self, tuning: series.FineTuning) -> None:
        super().__init__()
        self.model = tuning.model
        self.loss = tuning.loss

    def training_step(self, batch: Batch) -> torch.Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.01)


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's own, with the fsync that it does not do."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        _fsync(Path(path))


def lightning(way: Way, steps: int, folder: Path) -> Run:
    """Fit for so many steps, saving into `folder`."""
    tuning, inside = series.FineTuning(series.Plan()), Inside()
    callback: pl.Callback | None = None
    if way.startswith("coral"):
        callback = CoralCallback(folder, include_optimizer=True, config=_options(way))
    elif way != "no saving":
        callback = ModelCheckpoint(folder, every_n_train_steps=EVERY, save_top_k=-1)
    if callback is not None:
        inside.watch(callback, _hooks(callback))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=CLIP,
        callbacks=callback,
        plugins=DurableCheckpointIO() if way == "its own, fsynced" else None,
        enable_checkpointing=isinstance(callback, ModelCheckpoint),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(list(itertools.islice(tuning.batches, steps)), batch_size=None)
    module = Module(tuning)
    with inside.watch_end(), timed() as watch:
        trainer.fit(module, loader)
    return Run(watch.seconds, inside)


# transformers


class FineTuner(Trainer):
    """The fine-tuning as a Trainer; an item of its data is a whole batch."""

    def __init__(self, tuning: series.FineTuning, args: TrainingArguments, data: list[Batch]) -> None:
        super().__init__(
            tuning.model,
            args,
            data_collator=lambda items: {"pairs": items[0]},
            train_dataset=data,
            processing_class=tuning.tokenizer,
        )
        self._loss = tuning.loss
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Batch], *_: Any, **__: Any) -> torch.Tensor:
        return self._loss(inputs["pairs"])


class DurableFineTuner(FineTuner):
    """With the fsync that a Trainer does not do."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        _fsync(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


def transformers(way: Way, steps: int, folder: Path) -> Run:
    """Train for so many steps, saving into `folder`."""
    tuning, inside = series.FineTuning(series.Plan()), Inside()
    own = way.startswith("its own")
    args = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=CLIP,
        save_strategy="steps" if own else "no",
        save_steps=EVERY,
        save_total_limit=None,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    trainer = (DurableFineTuner if way == "its own, fsynced" else FineTuner)(
        tuning, args, list(itertools.islice(tuning.batches, steps))
    )
    if own:
        inside.watch(trainer, ["_save_checkpoint"])
    elif way != "no saving":
        callback = CoralTrainerCallback(folder, include_optimizer=True, config=_options(way))
        inside.watch(callback, _hooks(callback))
        trainer.add_callback(callback)
    with inside.watch_end(), timed() as watch:
        trainer.train()
    return Run(watch.seconds, inside)


FRAMEWORKS: dict[str, Callable[[Way, int, Path], Run]] = {"Lightning": lightning, "transformers": transformers}
"""By name: what trains with it. Every call is a run of its own, from the same weights, on the same batches."""
