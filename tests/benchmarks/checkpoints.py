"""The three checkpoints that saving, loading and memory are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import series
import torch
from harness import Bench

__all__ = ["PLAN", "arrays", "checkpoints"]

PLAN = series.Plan(checkpoints=3, freeze_after=2)


def checkpoints(bench: Bench) -> tuple[Path, list[series.Tensors]]:
    """Return the series' folder and its checkpoints 1 to 3: all of 2 differs from 1, most of 3 is as it was in 2."""
    folder = series.make(bench.folder("series"), PLAN)
    found = [series.read(folder, k) for k in (1, 2, 3)]
    if bench.first("describe the series"):
        for k, what in ((1, "everything changed"), (2, "backbone frozen")):
            bench.report.note("series", f"checkpoint {k} to {k + 1}, {what}: {series.compare(found[k - 1], found[k])}")
    return folder, found


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the tensors as numpy views of the same memory."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}
