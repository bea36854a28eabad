"""Checkpoints as .ckpt files, for those that want one."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from coral import Commit, Repository
from coral.errors import ConfigError, CoralError, storage_errors
from coral.integrations.lightning._checkpoint_io import with_loaders
from coral.integrations.lightning._checkpoints import plain, read
from coral.integrations.pytorch._files import save_file

__all__ = ["on_main", "temporary", "write"]


def write(repo: Repository, commit: Commit, path: Path) -> str:
    """Write a commit as a file that a trainer goes on from; returns its path. ConfigError if it holds weights alone."""
    checkpoint = with_loaders(read(repo, commit.id))
    if "loops" not in checkpoint:
        raise ConfigError(
            f"commit {commit.id[:12]} holds weights alone: it was saved with include_optimizer=False. load_from_coral "
            "loads them"
        )
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            save_file(plain(checkpoint), unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return str(path)


def temporary(repository: Path, name: str) -> Path:
    """The path of a file beside the repository, where there is room, which is removed when the program ends."""
    with storage_errors(f"making a file beside {repository}"):
        made = tempfile.mkdtemp(prefix=f"{repository.name}.resume-", dir=repository.resolve().parent)
    file = Path(made) / name
    atexit.register(_remove, file)
    return file


def on_main(work: Callable[[], str]) -> str:
    """What it returns, or raises, on the main process, on all of them: the others wait for it."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return work()
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            told = [work()]
        except CoralError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], CoralError):
        raise told[0]
    return str(told[0])


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()
