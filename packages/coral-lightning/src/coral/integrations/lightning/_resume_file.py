"""Checkpoints as .ckpt files, for those that want one."""

from __future__ import annotations

import os
from pathlib import Path

from coral import Commit, Repository
from coral.errors import ConfigError, storage_errors
from coral.integrations.lightning._checkpoint_io import with_loaders
from coral.integrations.lightning._checkpoints import plain, read
from coral.integrations.pytorch._files import save_file

__all__ = ["write"]


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
