"""The series that `size` and `repack` measure on, what is asked of their sizes, and their tensors as bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import series
import torch
from harness import Bench

from coral import WeightTensor
from coral.delta import Bits, carrier
from coral.integrations.pytorch import to_weight

__all__ = ["BF16", "CASES", "FULL", "KINDS", "Case", "Part", "bits", "part_of", "weights"]

CHECKPOINTS = 24
FEW = 12
"""Checkpoints of the series whose repositories are not judged."""
EVERY = 30
"""Steps from one checkpoint to the next."""

KINDS = ("weights", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Case:
    """A series, as it is or `rounded` to bf16, and the most that is asked of it (None: printed for comparison only).

    `pair`, `grouped`: coral, and coral with aggressive, as a part of BitX's way on the same pairs of checkpoints.
    `bound`: aggressive as a part of the entropy bound. `stored`: the repository as a part of the raw bytes.
    """

    name: str
    mode: str
    lr: float
    rounded: bool = False
    checkpoints: int = CHECKPOINTS
    pair: float | None = None
    grouped: float | None = None
    bound: float | None = None
    stored: float | None = None

    def folder(self, bench: Bench) -> Path:
        """Return the folder of the series, made if it is not there."""
        plan = series.Plan(mode=self.mode, lr=self.lr, checkpoints=self.checkpoints, every=EVERY)
        return series.make(bench.folder("series"), plan)

    def read(self, folder: Path, k: int) -> series.Tensors:
        """Return checkpoint k's tensors by name."""
        return series.rounded(series.read(folder, k, ("model",))) if self.rounded else series.read(folder, k)


FULL = Case("fp32 weights + Adam, lr 2e-5", "full", 2e-5, pair=0.93, stored=0.43)
BF16 = Case("bf16, rounded, lr 2e-5", "full", 2e-5, rounded=True, pair=0.75, grouped=0.65, bound=1.08, stored=0.15)
CASES = (
    FULL,
    Case("fp32 weights + Adam, lr 1e-4", "full", 1e-4, pair=0.93, stored=0.46),
    BF16,
    Case("bf16, rounded, lr 1e-4", "full", 1e-4, rounded=True),
    Case("bf16 trained as bf16, lr 2e-5", "pure-bf16", 2e-5, checkpoints=FEW, pair=0.9),
    Case("frozen backbone, lr 2e-5", "frozen", 2e-5, stored=0.27),
    Case("from scratch, lr 2e-5", "scratch", 2e-5, checkpoints=FEW),
)
"""Those that are not rounded have Adam's moments of what trains; what is trained as bf16 has none."""


class Part(NamedTuple):
    """What is counted apart: one kind of tensors, of word embeddings or of everything else."""

    kind: str
    embeddings: bool


def part_of(name: str) -> Part:
    """Return which part the tensor of this name belongs to."""
    head = name.partition(".")[0]
    return Part(head if head in KINDS else KINDS[0], "word_embeddings" in name)


def weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, WeightTensor]:
    """Return tensors as coral commits them, in the same memory."""
    return {name: to_weight(tensor, name, copy=False) for name, tensor in tensors.items()}


def bits(tensors: Mapping[str, torch.Tensor]) -> dict[str, Bits]:
    """Return tensors as the codecs see them, in the same memory."""
    return {name: w.data.reshape(-1).view(carrier(w.dtype)) for name, w in weights(tensors).items()}
