"""Streaming a model of 1 GB into one on the meta device, beside safetensors; and the memory that takes.

The model is MiniLM's trained weights as often as it takes, each copy turned by one element more, so that no two tensors
are equal. What is compared is, as in `load`, the moment at which each byte has been read once: by coral's check, or by
the touch that follows `load_file` and `load_state_dict(assign=True)`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import cases
import histories
import memory
import peers
import series
import torch
from harness import Bench
from loads import Loads, there
from safetensors.torch import load_file, save_file
from skeleton import skeleton
from torch import nn

from coral import DeltaConfig, Repository
from coral.integrations.pytorch import stream_load_model

__all__ = ["run"]

BENCH = "stream"
PLAN = series.Plan(checkpoints=3, every=cases.EVERY)
WHOLE = "coral stream, stored whole"
PACKED = "coral stream, 1 difference deep"
SAFETENSORS = "safetensors load_file + load_state_dict(assign=True)"


def run(bench: Bench) -> None:
    """Time the loads in turn, warm, and then measure how far each raises memory."""
    files, folder = bench.folder("stream"), series.make(bench.folder("series"), PLAN)
    ids = histories.build(files / "whole", (_grown(bench, folder, k) for k in (1, 2, 3)))
    packed = Repository(histories.linked(files / "whole", files / "packed"))
    packed.repack(config=DeltaConfig(entropy="zstd"))
    place = histories.newest_of_depth(packed, ids, 1)
    _time(bench, files, ids[place], _grown(bench, folder, place + 1))
    for stored, name in (("whole", "stored whole"), ("packed", "1 difference deep")):
        memory.stream_peaks(bench, files / stored, ids[place], name)
    shutil.rmtree(files)


def _time(bench: Bench, files: Path, ref: str, tensors: series.Tensors) -> None:
    save_file(tensors, files / "a.safetensors")
    total = peers.touch(tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    bench.report.note(BENCH, f"{len(tensors)} tensors, {size / 1e6:.0f} MB")
    shapes = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    del tensors

    def way(fill: Callable[[nn.Module, Path], object]) -> Callable[[Path], peers.Loaded]:
        def load(path: Path) -> peers.Loaded:
            model = skeleton(shapes)
            return peers.load(lambda: fill(model, path) and list(model.parameters()))

        return load

    coral = way(lambda model, path: stream_load_model(model, path, ref))
    theirs = way(lambda model, path: model.load_state_dict(load_file(path), assign=True))
    loads = Loads(
        {
            WHOLE: (coral, files / "whole"),
            PACKED: (coral, files / "packed"),
            SAFETENSORS: (theirs, files / "a.safetensors"),
        },
        total,
    )
    loads.time(bench, BENCH, ["warm"])
    for ours, asked in ((WHOLE, 1.3), (PACKED, 4.5)):
        name = f"{ours.removeprefix('coral ')} / load_file + assign + touch"
        ratio = bench.report.ratio
        ratio(BENCH, there(ours, "warm"), f"{SAFETENSORS}, warm", asked, name)
        ratio(BENCH, f"{ours}, warm", f"{SAFETENSORS}, warm", None, f"{name}, touched again")


def _grown(bench: Bench, folder: Path, k: int) -> series.Tensors:
    """Return the weights of checkpoint k in as many copies as come to the size that is asked for."""
    one = series.read(folder, k, ("model",))
    grown: series.Tensors = {}
    size = 0
    for copy in count():
        for name, tensor in one.items():
            grown[f"{copy}.{name}"] = torch.roll(tensor.reshape(-1), copy).reshape(tensor.shape)
            size += tensor.nbytes
        if size >= bench.megabytes * 1e6:
            return grown
    raise AssertionError
