"""Train a small language model with Lightning, have it killed, go on as if nothing had happened, and load the best.

    python docs/examples/lightning_text.py

It needs coral-lightning and nothing else: the text is that of Python's own `help()` topics. Three processes train:

1. one trains 4 epochs without a break, on branch `whole`;
2. one does the same on branch `killed`, and kills itself with SIGKILL in the middle of an epoch;
3. one goes on from the last checkpoint of `killed`: `trainer.fit(ckpt_path="coral://path@killed")`.

Then the two branches are compared bit by bit, and the best is loaded and has to write.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, everybody's name for it
from torch.utils.data import DataLoader, Dataset

from coral import Repository
from coral.integrations.lightning import CoralCallback

EPOCHS, STEPS, BATCH, CONTEXT, WIDTH = 4, 80, 32, 48, 64
KILL_AT = 200  # the number of a step: 40 after the last checkpoint

torch.set_num_threads(1)  # so small a model gains nothing from more

TEXT = "\n\n".join(topics[name] for name in sorted(topics))[:400_000]
CHARS = sorted(set(TEXT))
INDEX = {char: index for index, char in enumerate(CHARS)}
IDS = torch.tensor([INDEX[char] for char in TEXT])


class Windows(Dataset[Tensor]):
    """Pieces of text, each with the character that follows it."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return (len(self.ids) - 1) // CONTEXT

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[index * CONTEXT : (index + 1) * CONTEXT + 1]


class TextModel(pl.LightningModule):
    """A small transformer that predicts characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(len(CHARS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(CHARS))

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.embed(ids) + self.place(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.layers(x, mask=mask, is_causal=True))
        return logits

    def loss(self, windows: Tensor) -> Tensor:
        return F.cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        steps = EPOCHS * STEPS
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps, pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Kill(pl.Callback):
    """Ends the process at once, as a machine would that lost its power."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == KILL_AT:
            print(f"SIGKILL at step {KILL_AT}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


class Say(pl.Callback):
    """Prints how it goes."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        print(f"epoch {trainer.current_epoch}: {shown}", flush=True)


def coral(path: Path, branch: str) -> CoralCallback:
    return CoralCallback(
        path,
        branch=branch,
        save_every_n_epochs=1,
        save_on_best="val_loss",
        include_optimizer=True,
        keep_last_n_checkpoints=3,
    )


def train(path: Path, branch: str, *, kill: bool) -> None:
    """One process: train on a branch, from its newest checkpoint if there is one."""
    warnings.simplefilter("ignore")  # of data loaders without workers
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(1)
    model = TextModel()
    loaders = DataLoader(Windows(IDS[:-20_000]), BATCH, shuffle=True), DataLoader(Windows(IDS[-20_000:]), 4 * BATCH)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_train_batches=STEPS,
        callbacks=[coral(path, branch), Say(), *([Kill()] if kill else [])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    begun = path.exists() and branch in Repository(path).branches()
    print(f"[{branch}] goes on from its last checkpoint" if begun else f"[{branch}] begins", flush=True)
    trainer.fit(model, *loaders, ckpt_path=f"coral://{path}@{branch}" if begun else None)


def train_in_a_process(path: Path, branch: str, *, kill: bool = False) -> int:
    command = [sys.executable, __file__, "--train", branch, "--repo", str(path)]
    return subprocess.run([*command, "--kill"] if kill else command, check=False).returncode


@torch.no_grad()
def sample(model: TextModel, prompt: str, length: int = 200) -> str:
    model.eval()
    torch.manual_seed(0)
    ids = [INDEX[char] for char in prompt]
    for _ in range(length):
        logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        ids.append(int(torch.multinomial(F.softmax(logits / 0.7, dim=0), 1)))
    return "".join(CHARS[i] for i in ids)


def demo(path: Path) -> None:
    begun = time.monotonic()
    assert train_in_a_process(path, "whole") == 0
    assert train_in_a_process(path, "killed", kill=True) == -signal.SIGKILL
    assert train_in_a_process(path, "killed") == 0

    repo = Repository(path)
    diff = repo.diff("whole", "killed")
    print(f"\nnever killed against killed and resumed: {len(diff.unchanged)} tensors are equal bit by bit, ", end="")
    print(f"{len(diff.modified)} are not\n")
    assert diff.identical

    best = repo.show("killed@best")
    for commit in repo.log("killed"):
        mark = " <- best" if commit.id == best.id else " (pruned)" if commit.pruned else ""
        why = ", ".join(commit.reasons)
        print(f"{commit.id[:12]}  step {commit.step:>3}  val_loss {commit.metrics['val_loss']:.4f}  {why}{mark}")
    stats = repo.stats()
    print(f"{stats.commits} commits, {stats.raw_bytes / 1e6:.1f} MB kept, {stats.stored_bytes / 1e6:.1f} MB on disk\n")

    model = TextModel()
    coral(path, "killed").load_from_coral(model, "best")
    print(f"the best, of step {best.step}, writes:\n\n{sample(model, 'The ')}")
    print(f"\n{time.monotonic() - begun:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, help="where to keep the repository (default: a temporary folder)")
    parser.add_argument("--train", metavar="BRANCH", help=argparse.SUPPRESS)  # the child processes
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.repo, options.train, kill=options.kill)
    elif options.repo:
        demo(options.repo)
    else:
        with tempfile.TemporaryDirectory() as folder:
            demo(Path(folder) / "repo")


if __name__ == "__main__":
    main()
