"""How long the newest commit takes to load and be checked, beside safetensors and torch.load, warm and cold.

coral's check reads every byte of every tensor; safetensors hands out a map of which nothing was read yet. So what is
compared is the moment at which each byte has been read once: by the check, or by the touch after `load_file`. That both
are touched once more is printed beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import memory
import peers
import torch
from checkpoints import arrays, checkpoints
from harness import Bench
from loads import Loads, there
from safetensors.torch import save_file

from coral import Repository

__all__ = ["run"]

CORAL = "coral load of the newest commit, checked"
SAFETENSORS = "safetensors.torch.load_file"
TORCH = "torch.load"


def coral_load(path: Path) -> peers.Loaded:
    """Open the repository and load its newest commit into torch tensors, which checks every byte."""
    return peers.load(lambda: [torch.from_numpy(weight.data) for weight in Repository(path).load().values()])


def run(bench: Bench) -> None:
    """Time the loads in turn, warm and then cold, then a streamed load's peak memory."""
    _, (before, newest, _) = checkpoints(bench)
    files = bench.folder("load")
    repo = Repository(files / "repo", init=True)
    repo.commit(arrays(before), "before")
    repo.commit(arrays(newest), "newest")
    save_file(newest, files / "a.safetensors")
    torch.save(newest, files / "a.pt")
    total = peers.touch(newest.values())
    report = bench.report
    del repo, before, newest
    loads = Loads(
        {
            CORAL: (coral_load, files / "repo"),
            SAFETENSORS: (peers.safetensors_load, files / "a.safetensors"),
            TORCH: (peers.torch_load, files / "a.pt"),
        },
        total,
    )
    for kind in ("warm", "cold"):
        loads.time(bench, "load", [kind])
        ours, theirs = f"{CORAL}, {kind}", f"{SAFETENSORS}, {kind}"
        checked = f"load, each byte read by its check / safetensors load_file + touch, {kind}"
        report.ratio("load", there(CORAL, kind), theirs, 1.0, checked)
        report.ratio("load", ours, theirs, None, f"load, checked, and touched again / load_file + touch, {kind}")
        report.ratio(
            "load", ours, f"{TORCH}, {kind}", None, f"load, checked, and touched again / torch.load + touch, {kind}"
        )
    shutil.rmtree(files)
    memory.load_peak(bench)
