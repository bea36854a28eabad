"""How much disk a run takes that keeps few of its checkpoints, while it runs and after a repack."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import histories
import torch
from harness import Bench, Figure
from torch import Tensor, nn

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

__all__ = ["run"]

SAVES = 200
BEST = 70
"""The number of the epoch that is the best."""
STEPS = 2
WIDTH = 480
"""Three square layers of it, with Adam's moments, make a checkpoint of 8 MB."""
LAST, BEST_FEW = 3, 2
CONFIG = CheckpointConfig(
    save_every_n_epochs=1,
    save_on_best_metric="score",
    keep_last_n_checkpoints=LAST,
    keep_best_n_checkpoints=BEST_FEW,
)
EVERY = 0.004
"""Seconds from one look at the disk to the next."""
ASKED_RUNNING = 8.0
ASKED_AFTER = 1.15


class Highest:
    """Watches the bytes below a folder from a thread of its own while the block runs; `bytes` is their highest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._lock = threading.Lock()
        self.bytes = self.looks = 0

    def look(self) -> None:
        """Look now."""
        found = histories.disk(self._path)
        with self._lock:
            self.bytes = max(self.bytes, found)
            self.looks += 1

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


class Training:
    """A small model that learns what another one does; each `epoch` is a few updates."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self._teacher = _layers(), _layers()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def epoch(self) -> list[Tensor]:
        """Train, and return the losses."""
        return [self._step() for _ in range(STEPS)]

    def _step(self) -> Tensor:
        given = torch.randn(16, WIDTH)
        with torch.no_grad():
            wanted = self._teacher(given)
        loss = nn.functional.mse_loss(self.model(given), wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def _layers() -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))


def run(bench: Bench) -> None:
    """Train and save, watching the disk; then repack, collect, and compare with the kept ones in a fresh repository."""
    files = bench.folder("prune")
    shutil.rmtree(files / "repo", ignore_errors=True)
    repo = Repository(files / "repo", init=True)
    training, report = Training(), bench.report
    with Highest(repo.path) as disk, CoralTrainer(training.model, repo, "bench", CONFIG) as trainer:
        trainer.set_optimizer(training.optimizer)
        for epoch in range(SAVES):
            for loss in training.epoch():
                trainer.step(loss)
            # The better the nearer to one epoch: the best two are neither the last nor the first.
            trainer.epoch_end(epoch, score=abs(epoch - BEST) + 0.1 * (epoch > BEST))
            disk.look()
    log = repo.log()
    assert len(log) == SAVES, f"{SAVES} saves made {len(log)} commits"
    kept = [commit for commit in reversed(log) if not commit.pruned]
    asked = {commit.id for commit in log[:LAST]}
    asked |= {commit.id for commit in sorted(log, key=lambda commit: commit.metrics["score"])[:BEST_FEW]}
    ids = [commit.id for commit in kept if commit.id in asked]
    assert len(ids) == LAST + BEST_FEW, f"of these, only {len(ids)} were kept"
    one = max(commit.nbytes for commit in kept)
    after = histories.disk(repo.path)
    repo.repack()
    repo.gc()
    packed = histories.disk(repo.path)
    fresh = _fresh(files / "fresh", repo, ids)
    steps = ", ".join(str(commit.step) for commit in kept)
    text = f"{SAVES} checkpoints of {one / 1e6:.1f} MB, those of steps {steps} kept; {disk.looks} looks at the disk"
    report.note("prune", f"{text}; {after / 1e6:.1f} MB at the run's end, {packed / 1e6:.1f} MB after a repack")
    few = LAST + BEST_FEW
    report.figure(Figure("prune", "checkpoints that are kept", len(kept), few, "", least=few))
    running = f"most disk while it ran, keeping {LAST} + {BEST_FEW} / one checkpoint"
    report.figure(Figure("prune", running, disk.bytes / one, ASKED_RUNNING))
    name = "after a repack / the same ones alone in a fresh repository"
    report.figure(Figure("prune", name, packed / fresh, ASKED_AFTER))
    report.figure(Figure("prune", "after a repack / the same ones as they are", packed / (one * few)))
    shutil.rmtree(files)


def _fresh(path: Path, repo: Repository, ids: list[str]) -> int:
    """Commit the same weights and state to a new repository, in this order, and return what it takes once repacked."""
    shutil.rmtree(path, ignore_errors=True)
    fresh = Repository(path, init=True)
    for id in ids:
        fresh.commit(repo.load(id), "kept", state=repo.load_state(id))
    fresh.repack()
    fresh.gc()
    return histories.disk(path)
