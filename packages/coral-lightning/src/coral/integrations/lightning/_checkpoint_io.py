"""CoralCheckpointIO: commits where a trainer wants checkpoints, as `coral://path@ref`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from coral import Repository
from coral.integrations.lightning._checkpoints import OURS, encoded, origin_of, read, versions
from coral.integrations.lightning._hosts import CheckpointIO
from coral.integrations.lightning._links import is_link, parse
from coral.integrations.pytorch._state import decode, encode, keep_all, viewed

__all__ = ["CoralCheckpointIO"]


class CoralCheckpointIO(CheckpointIO):
    """Reads and writes checkpoints in repositories: a plugin for a trainer. Other paths are the inner plugin's.

        trainer = Trainer(plugins=[CoralCheckpointIO()])
        trainer.fit(model, ckpt_path="coral://./weights@experiment")
        trainer.test(model, ckpt_path="coral://./weights@experiment@best")

    A trainer that has a CoralCallback needs no plugin. Strategies that load sharded files themselves (FSDP,
    ModelParallelStrategy) do not ask a plugin: `CoralCallback.resume_path` writes a file for them.
    """

    def __init__(self, inner: Any = None) -> None:
        self.inner: Any = TorchCheckpointIO() if inner is None else inner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint: `coral://path@branch` commits it, and makes the repository if there is none."""
        if not is_link(path):
            self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
            return
        link = parse(path)
        repo = Repository(link.path, init=True)
        tensors = {name: each for name, each in checkpoint["state_dict"].items() if isinstance(each, Tensor)}
        extra = {name: each for name, each in checkpoint["state_dict"].items() if name not in tensors}
        loop, left = encoded({name: each for name, each in checkpoint.items() if name != OURS}, viewed)
        why = ["a trainer's own checkpoint has no states of random generators"]
        why += [f"what is not saved: {', '.join(left)}"] if left else []
        repo.commit(
            keep_all(tensors, viewed)[0],
            f"save_checkpoint: step {checkpoint['global_step']}",
            branch=repo.head if link.ref == "HEAD" else link.ref,
            state={
                "lightning": loop,
                "extra": encode(extra, "extra state", viewed),
                "versions": versions(checkpoint["state_dict"], viewed),
                "within_epoch": _within_epoch(checkpoint),
            },
            training={
                "step": checkpoint["global_step"],
                "epoch": checkpoint["epoch"],
                "exact": False,
                "why": "; ".join(why),
            },
        )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: that of a commit for `coral://path@ref`, with what is this process's own."""
        if not is_link(path):
            given = {"map_location": map_location, "weights_only": weights_only}  # older plugins know neither
            given = {name: value for name, value in given.items() if value is not None}
            loaded: dict[str, Any] = self.inner.load_checkpoint(path, **given)
            return loaded
        link = parse(path)
        return with_loaders(read(Repository(link.path), link.ref))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint: `coral://path@ref` drops the commit's tensors and keeps its record."""
        if is_link(path):
            link = parse(path)
            Repository(link.path).prune(link.ref)
        else:
            self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """The trainer is done with it."""
        self.inner.teardown()


def with_loaders(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the position in the data of this process, in the place where a trainer looks for it."""
    origin, loops = origin_of(checkpoint), checkpoint.get("loops")
    if origin is None or not isinstance(loops, Mapping):
        return checkpoint
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    if not (loaders := origin.of_rank(rank).get("loaders")):
        return checkpoint
    fit = dict(loops["fit_loop"])
    fit["state_dict"] = {**fit.get("state_dict", {}), "combined_loader": decode(loaders)}
    return {**checkpoint, "loops": {**loops, "fit_loop": fit}}


def _within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    progress = checkpoint["loops"]["fit_loop"].get("epoch_progress", {}).get("current", {})
    return bool(progress.get("processed", 0) < progress.get("started", 0))
