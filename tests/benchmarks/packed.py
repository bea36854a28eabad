"""How long a commit takes to load that is stored as differences, beside safetensors and torch.load, warm and cold.

coral decodes such tensors into memory of its own and checks every byte of what it decodes from; safetensors hands out a
map of which nothing was read yet. So the moments compared are, as in `load`: tensors there, by coral; and by
`load_file`, each word touched once. That coral's are touched, too, is printed beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cases
import histories
import peers
import torch
from harness import Bench
from loads import Loads, there
from safetensors.torch import save_file

from coral import DeltaConfig, Repository
from coral.integrations.pytorch import from_weight

__all__ = ["run"]

BENCH = "repack"
TORCH = "torch.load"
SAFETENSORS = "safetensors.torch.load_file"
ONE, DEEP = 4, 11
"""Checkpoints: of fp32 weights and Adam, for a depth of 1; of bf16, with the second keyframe among them, for 2."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A way to store what is loaded, and how much longer than by safetensors that may take (None: printed only)."""

    name: str
    config: DeltaConfig
    aggressive: bool = False
    asked: float | None = None


def run(bench: Bench) -> None:
    """Time loads of a commit one difference deep, by each way to store it, and then of one two deep."""
    stored = (
        Stored("coral load, 1 deep, zstd", DeltaConfig(entropy="zstd"), asked=4.0),
        Stored("coral load, 1 deep, deflate", DeltaConfig(entropy="deflate"), asked=6.0),
        Stored("coral load, 1 deep, aggressive", DeltaConfig(entropy="zstd"), aggressive=True),
    )
    _measure(bench, cases.FULL, ONE, 1, stored, cold=True)
    first = stored[0].name
    for kind, most in (("warm", 1.0), ("cold", None)):
        name = f"{first.removeprefix('coral ')} / torch.load, {kind}"
        bench.report.ratio(BENCH, there(first, kind), there(_theirs(TORCH, cases.FULL), kind), most, name)
    deep = (Stored("coral load, 2 deep, zstd, bf16", DeltaConfig(entropy="zstd"), asked=7.0),)
    _measure(bench, cases.BF16, DEEP, 2, deep, cold=False)


def _measure(bench: Bench, case: cases.Case, count: int, depth: int, stored: tuple[Stored, ...], *, cold: bool) -> None:
    """Time one checkpoint of a case, that of this depth, in all ways; judge coral's beside safetensors'."""
    files, report = bench.folder("packed"), bench.report
    folder = case.folder(bench)
    ids = histories.build(files / "whole", (case.read(folder, k) for k in range(1, count + 1)))
    ways = {}
    for number, way in enumerate(stored):
        repo = Repository(histories.linked(files / "whole", files / f"{number}"))
        repo.repack(way.aggressive, config=way.config)
        place = histories.newest_of_depth(repo, ids, depth)
        ways[way.name] = (_coral_load(ids[place]), repo.path)
    shutil.rmtree(files / "whole")
    tensors = case.read(folder, place + 1)
    total = peers.touch(tensors.values())
    save_file(tensors, files / "a.safetensors")
    torch.save(tensors, files / "a.pt")
    size = sum(tensor.nbytes for tensor in tensors.values())
    report.note(BENCH, f"{case.name}: checkpoint {place + 1} of {count}, {size / 1e6:.0f} MB, {depth} deep")
    del tensors
    safetensors = _theirs(SAFETENSORS, case)
    ways[safetensors] = (peers.safetensors_load, files / "a.safetensors")
    ways[_theirs(TORCH, case)] = (peers.torch_load, files / "a.pt")
    loads = Loads(ways, total)
    for kind in ("warm", "cold") if cold else ("warm",):
        loads.time(bench, BENCH, [kind])
        for way in stored:
            # Cold, the disk is what takes time, and differences are fewer bytes.
            most = way.asked if kind == "warm" else 1.0 if way is stored[0] else None
            ratio = partial(report.ratio, BENCH, theirs=f"{safetensors}, {kind}")
            name = way.name.removeprefix("coral ")
            ratio(ours=there(way.name, kind), asked=most, name=f"{name} / load_file + touch, {kind}")
            ratio(ours=f"{way.name}, {kind}", name=f"{name}, touched again / load_file + touch, {kind}")
    shutil.rmtree(files)


def _theirs(name: str, case: cases.Case) -> str:
    return f"{name}, bf16" if case.rounded else name


def _coral_load(ref: str) -> Callable[[Path], peers.Loaded]:
    def load(path: Path) -> peers.Loaded:
        return peers.load(lambda: [from_weight(weight) for weight in Repository(path).load(ref).values()])

    return load
