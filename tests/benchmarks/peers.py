"""What coral is measured against, each done as well as its own documentation says how."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
    "Loaded",
    "WarmCopy",
    "close",
    "load",
    "safetensors_load",
    "safetensors_save",
    "torch_load",
    "torch_save",
    "touch",
]

Tensors = Mapping[str, torch.Tensor]
PIECE = 4 << 20
"""Bytes in a piece: each goes to the next thread in turn."""


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Read every 8-byte word once, on all processors, and return the words' sum modulo 2**64.

    Not with torch's own sum: where another program takes a processor, its threads spin for each other in every tensor.
    """
    shares: list[list[np.ndarray]] = [[] for _ in range(os.cpu_count() or 1)]
    dealt = 0
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        whole = flat.size // 8 * 8
        for at in range(0, whole, PIECE):
            shares[dealt % len(shares)].append(flat[at : min(at + PIECE, whole)].view(np.uint64))
            dealt += 1
        if whole < flat.size:
            shares[0].append(flat[whole:])
    with ThreadPoolExecutor(len(shares)) as threads:
        return sum(threads.map(_total, shares)) % 2**64


def _total(words: list[np.ndarray]) -> int:
    return sum(int(np.add.reduce(each, dtype=np.uint64)) for each in words)


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


@dataclass(frozen=True, slots=True)
class Loaded:
    """The seconds until the tensors were there and until all of them were touched, and their words' sum."""

    there: float
    touched: float
    total: int


def load(read: Callable[[], Iterable[torch.Tensor]]) -> Loaded:
    """Time reading tensors and touching them."""
    with timed() as watch:
        start = time.perf_counter()
        tensors = list(read())
        there = time.perf_counter() - start
        total = touch(tensors)
    return Loaded(there, watch.seconds, total)


def safetensors_load(path: Path) -> Loaded:
    """Load with load_file, which maps the file: its pages come in as they are touched."""
    return load(lambda: load_file(path).values())


def torch_load(path: Path) -> Loaded:
    """Load with torch.load."""
    return load(lambda: torch.load(path, weights_only=True).values())


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
