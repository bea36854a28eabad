"""Train a small GPT, have it killed, go on as if nothing had happened, and load the best of it.

    python docs/examples/char_gpt.py

It needs coral-torch and nothing else: the text is that of Python's own `help()` topics. Four processes train or wait:

1. one trains 6 epochs without a break, on branch `whole`;
2. one does the same on branch `killed`, and kills itself with SIGKILL in the middle of an epoch;
3. one goes on from the last checkpoint of `killed`;
4. this one compares the two branches bit by bit, prints the log, loads the best and has it write.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, everybody's name for it

from coral import Commit, Repository
from coral.integrations.pytorch import CoralTrainer, from_weight
from coral.training import CheckpointConfig

EPOCHS, STEPS, BATCH, CONTEXT = 6, 100, 32, 48
KILL_AT = 350  # the number of a step: 50 after the last checkpoint
CONFIG = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss", keep_last_n_checkpoints=4)

torch.set_num_threads(1)  # so small a model gains nothing from more

TEXT = "\n\n".join(topics[name] for name in sorted(topics))
CHARS = sorted(set(TEXT))
INDEX = {char: index for index, char in enumerate(CHARS)}
IDS = torch.tensor([INDEX[char] for char in TEXT[:400_000]])
TRAIN, HELD_OUT = IDS[:-20_000], IDS[-20_000:]


class Block(nn.Module):
    """A transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """A character model; its output layer is tied to its embedding."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(len(CHARS), width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CHARS), bias=False)
        for embedding in (self.embed, self.place):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        return cast(Tensor, self.head(self.norm(self.blocks(x))))


def loss_of(model: GPT, starts: Tensor, data: Tensor) -> Tensor:
    windows = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validate(model: GPT) -> float:
    model.eval()
    loss = loss_of(model, torch.arange(0, len(HELD_OUT) - CONTEXT - 1, 3 * CONTEXT), HELD_OUT)
    model.train()
    return loss.item()


def train(path: Path, branch: str, *, kill: bool) -> None:
    """One process: train on a branch, from its newest checkpoint if there is one."""
    torch.manual_seed(1)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=EPOCHS * STEPS, pct_start=0.15)
    repo = Repository(path, init=True)
    with CoralTrainer(model, repo, "char-gpt", CONFIG, branch=branch, resume=True) as trainer:
        trainer.set_optimizer(optimizer)
        trainer.set_scheduler(scheduler, step_on="step")
        print(f"[{branch}] epochs {trainer.start_epoch} to {EPOCHS - 1}, from step {trainer.global_step}", flush=True)
        for epoch in range(trainer.start_epoch, EPOCHS):
            for _ in range(STEPS):
                loss = loss_of(model, torch.randint(len(TRAIN) - CONTEXT, (BATCH,)), TRAIN)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                trainer.step(loss)
                if kill and trainer.global_step == KILL_AT:
                    print(f"[{branch}] SIGKILL at step {KILL_AT}", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
            trainer.epoch_end(epoch, val_loss=validate(model))
            shown = ", ".join(f"{name} {value:.4f}" for name, value in trainer.training_metrics.items())
            print(f"[{branch}] epoch {epoch}: {shown}", flush=True)


def train_in_a_process(path: Path, branch: str, *, kill: bool = False) -> int:
    command = [sys.executable, __file__, "--train", branch, "--repo", str(path)]
    return subprocess.run([*command, "--kill"] if kill else command, check=False).returncode


def table(commits: list[Commit], best: Commit) -> None:
    print(f"{'commit':14}{'step':>5}{'epoch':>7}{'loss':>9}{'val_loss':>10}{'MB':>7}")
    for commit in commits:
        values = "".join(f"{commit.metrics.get(name, math.nan):>{n}.4f}" for name, n in [("loss", 9), ("val_loss", 10)])
        marks = " <- best" if commit.id == best.id else " (pruned)" if commit.pruned else ""
        print(f"{commit.id[:12]:14}{commit.step!s:>5}{commit.epoch!s:>7}{values}{commit.nbytes / 1e6:>7.1f}{marks}")


@torch.no_grad()
def sample(model: GPT, prompt: str, length: int = 200) -> str:
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
    whole, killed = repo.load("whole"), repo.load("killed")
    equal = sum(whole[name].id == killed[name].id for name in whole)
    difference = max((from_weight(whole[name]) - from_weight(killed[name])).abs().max().item() for name in whole)
    print(f"\nnever killed against killed and resumed: {equal} of {len(whole)} tensors are equal bit by bit")
    print(f"largest difference: {difference}; diff says identical: {repo.diff('whole', 'killed').identical}\n")
    assert repo.diff("whole", "killed").identical

    best = repo.show("killed@best")
    table(repo.log("killed"), best)
    stats = repo.stats()
    print(f"{stats.commits} commits, {stats.raw_bytes / 1e6:.1f} MB kept, {stats.stored_bytes / 1e6:.1f} MB on disk\n")

    model = GPT()
    with CoralTrainer(model, repo, "char-gpt", CONFIG, branch="killed") as trainer:
        trainer.load_checkpoint(load_best=True)
    print(f"the best, of step {trainer.global_step}, validates at {validate(model):.4f} and writes:\n")
    print(sample(model, "The "))
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
