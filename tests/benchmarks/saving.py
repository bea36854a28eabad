"""How long a durable commit takes, beside torch.save and safetensors with the fsyncs that make them durable too."""

from __future__ import annotations

import shutil
from pathlib import Path

import memory
import numpy as np
import peers
import series
from checkpoints import arrays, checkpoints
from harness import Bench, in_turn, timed

from coral import Repository

__all__ = ["run"]

TORCH = "torch.save + fsync of file and folder"
SAFETENSORS = "safetensors save_file + fsync of file and folder"
CHANGED = "coral commit, everything changed"
FROZEN = "coral commit, frozen backbone"
UNCHANGED = "coral commit, unchanged"


class Commits:
    """Commits to a branch whose tip is the checkpoint before: all changed, then frozen, then the same once more."""

    def __init__(self, path: Path, found: list[series.Tensors]) -> None:
        self.path = path
        self.weights = [arrays(tensors) for tensors in found]
        self.checked = False

    def __call__(self) -> dict[str, float]:
        shutil.rmtree(self.path, ignore_errors=True)
        repo = Repository(self.path, init=True, durability="full")
        first, second, third = self.weights
        repo.commit(first, "before")
        seconds = {}
        for name, weights in ((CHANGED, second), (FROZEN, third), (UNCHANGED, third)):
            with timed() as watch:
                repo.commit(weights, name)
            seconds[name] = watch.seconds
        if not self.checked:  # once is enough: the figure of a commit that is wrong means nothing
            for ref, weights in (("HEAD~2", second), ("HEAD", third)):
                loaded = repo.load(ref)
                assert sorted(loaded) == sorted(weights)
                assert all(np.array_equal(loaded[n].data.view("u1"), w.view("u1")) for n, w in weights.items())
            self.checked = True
        return seconds


def run(bench: Bench) -> None:
    """Time the commits and the peers in turn, then a commit's peak memory."""
    _, found = checkpoints(bench)
    files = bench.folder("save")
    contenders = [
        Commits(files / "repo", found),
        lambda: {TORCH: peers.torch_save(found[1], files / "a.pt")},
        lambda: {SAFETENSORS: peers.safetensors_save(found[1], files / "a.safetensors")},
    ]
    report = bench.report
    times = in_turn(contenders, bench.rounds)
    report.time("save", {name: times[name] for name in (TORCH, SAFETENSORS, CHANGED, FROZEN, UNCHANGED)})
    report.ratio("save", CHANGED, TORCH, 1.0, "durable commit / torch.save")
    report.ratio("save", CHANGED, SAFETENSORS, 1.35, "durable commit / safetensors")
    report.ratio("save", FROZEN, SAFETENSORS, 0.5, "commit, 84 % unchanged / safetensors of the whole")
    report.ratio("save", UNCHANGED, SAFETENSORS, 0.25, "commit, unchanged / safetensors of the whole")
    shutil.rmtree(files)
    memory.commit_peaks(bench)
