"""Checkpoints as folders of files: one that a Trainer resumes from, and one that `from_pretrained` opens."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from coral import Commit, Repository, WeightTensor
from coral.errors import ConfigError, StorageError, storage_errors
from coral.integrations.hf_trainer._pretrained import unpack
from coral.integrations.hf_trainer._random import rng_state
from coral.integrations.pytorch._files import save_file
from coral.integrations.pytorch._optimizers import decoded_scheduler
from coral.integrations.pytorch._state import decode
from coral.integrations.pytorch._tensors import from_weight
from coral.training import TrainingState

__all__ = ["write_export", "write_resume"]

_log = logging.getLogger("coral")


def write_resume(repo: Repository, commit: Commit, folder: Path) -> None:
    """Write all that a Trainer resumes from. ConfigError where that was not saved.

    The weights have the names of the model itself, whatever `save_pretrained` would make of them: the Trainer loads
    them with load_state_dict.
    """
    state = _state(repo, commit)
    trainer = state.get("trainer")
    if trainer is None:
        raise ConfigError(
            f"commit {commit.id[:12]} holds weights and no state of a Trainer: it was saved with "
            "include_optimizer=False. load_from_coral loads its weights"
        )
    if not commit.exact:
        found = TrainingState.of(commit)
        _log.warning("%s resumes approximately: %s", commit.id[:12], found.why if found else "no run has saved it")
    with _made(folder) as made:
        unpack(state.get("files", {}), made)
        _write_weights(repo.load(commit.id), made, adapter="adapter" in state)
        (made / "trainer_state.json").write_text(trainer["state"], encoding="utf-8")
        for name in ("optimizer", "scheduler", "scaler"):
            if name in trainer:
                made_of = decoded_scheduler if name == "scheduler" else decode
                save_file(made_of(trainer[name]), made / f"{name}.pt")
        randoms = trainer.get("random", [])
        for rank, random in enumerate(randoms):
            device = trainer.get("cuda_device") if len(randoms) == 1 else None
            name = "rng_state.pth" if len(randoms) == 1 else f"rng_state_{rank}.pth"
            save_file(rng_state(random, device), made / name)


def write_export(repo: Repository, commit: Commit, folder: Path) -> Path:
    """Write what `from_pretrained` opens; returns the folder. ConfigError where the model had no config.

    Of a model with an adapter in it, it is the adapter alone, as `save_pretrained` would have it.
    """
    state = _state(repo, commit)
    files = state.get("files", {})
    if "config.json" not in files and "adapter_config.json" not in files:
        raise ConfigError(
            f"commit {commit.id[:12]} has no config.json, and no single adapter: from_pretrained opens models of "
            "transformers and PEFT alone, and one adapter at a time. load_from_coral, or Repository.load, loads its "
            "weights"
        )
    weights = repo.load(commit.id)
    injected, implied = state.get("injected"), {*state.get("implied", ())}
    if injected is None:
        named = {name: weight for name, weight in weights.items() if name not in implied}
    else:
        named = {name: weights[inside] for name, inside in injected.items()}
    with _made(folder) as made:
        unpack(files, made)
        _write_weights(named, made, adapter="adapter" in state or injected is not None)
    return folder


def _state(repo: Repository, commit: Commit) -> Mapping[str, Any]:
    state = repo.load_state(commit.id)
    return state if isinstance(state, dict) else {}


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder to write to that becomes `folder` when all is written; that may be there, if it is empty."""
    with storage_errors(f"writing {folder}"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder} is there already, and not empty: give a folder that can be made")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield made
            made.chmod(0o777 & ~_umask())  # mkdtemp's are the owner's alone
            os.replace(made, folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_weights(weights: Mapping[str, WeightTensor], folder: Path, *, adapter: bool) -> None:
    stem = "adapter_model" if adapter else "model"
    save_safetensors(_apart(weights), folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _apart(weights: Mapping[str, WeightTensor]) -> dict[str, Tensor]:
    """Tensors of which no two share their memory, as safetensors wants it: tied ones are written once for each name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in weights.items():
        tensor = from_weight(weight)
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return tensors
