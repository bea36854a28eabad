"""What coral is measured against, each done as well as its own documentation says how."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from harness import timed
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

__all__ = [
    "AsyncSave",
    "WarmCopy",
    "close",
    "safetensors_load",
    "safetensors_save",
    "torch_load",
    "torch_save",
    "touch",
]

Tensors = Mapping[str, torch.Tensor]


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Read every 8-byte word once, as cheaply as memory allows, and return the words' sum modulo 2**64."""
    total = 0
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8)
        whole = flat.numel() // 8 * 8
        total += int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())
    return total % 2**64


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _durably(write: Callable[[Path], None], path: Path) -> float:
    """Time `write` to a fresh file with the fsync of it and of its folder, without which it may be gone tomorrow."""
    path.unlink(missing_ok=True)
    with timed() as watch:
        write(path)
        _sync(path)
        _sync(path.parent)
    path.unlink()
    return watch.seconds


def torch_save(tensors: Tensors, path: Path) -> float:
    """Return the seconds of a durable torch.save."""
    return _durably(lambda at: torch.save(tensors, at), path)


def safetensors_save(tensors: Tensors, path: Path) -> float:
    """Return the seconds of a durable safetensors save_file."""
    return _durably(lambda at: save_file(dict(tensors), at), path)


def safetensors_load(path: Path) -> tuple[float, int]:
    """Return the seconds of load_file and of touching all of it, and the words' sum."""
    with timed() as watch:
        total = touch(load_file(path).values())
    return watch.seconds, total


def torch_load(path: Path) -> tuple[float, int]:
    """Return the seconds of torch.load and of touching all of it, and the words' sum."""
    with timed() as watch:
        total = touch(torch.load(path, weights_only=True).values())
    return watch.seconds, total


class WarmCopy:
    """Copies tensors with single-threaded np.copyto into buffers whose pages are there already."""

    def __init__(self, tensors: Tensors) -> None:
        self.sources = [tensor.detach().numpy() for tensor in tensors.values()]
        self.targets = [source.copy() for source in self.sources]

    def run(self) -> None:
        for target, source in zip(self.targets, self.sources, strict=True):
            np.copyto(target, source)


class AsyncSave:
    """torch.distributed.checkpoint.async_save in a group of one process, to a fresh folder each time."""

    def __init__(self, folder: Path, keep_buffers: bool) -> None:
        warnings.simplefilter("ignore")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.folder = folder
        # By default each save stages into new memory; a stager that is kept reuses its own where it can.
        self.stager = DefaultStager(StagingOptions(False, False, False, False)) if keep_buffers else None
        self.pending: Future[object] | None = None

    def start(self, tensors: Tensors) -> None:
        """Begin a save; what this call takes is what the training loop waits for."""
        self.pending = dcp.async_save(dict(tensors), checkpoint_id=self.folder, async_stager=self.stager)

    def finish(self) -> None:
        """Wait for the save, and remove what it wrote."""
        if self.pending is not None:
            self.pending.result()
        shutil.rmtree(self.folder)


def close() -> None:
    """Leave the process group that AsyncSave made."""
    if dist.is_initialized():
        dist.destroy_process_group()
