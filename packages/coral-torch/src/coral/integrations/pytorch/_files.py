"""Files for hosts that want one, in torch's own format: torch.save and torch.load are called here alone."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from coral.errors import storage_errors

__all__ = ["load_file", "save_file", "temporary"]


def save_file(value: Any, path: str | os.PathLike[str]) -> None:
    """Write nested state of tensors, arrays and plain values as torch.save does."""
    torch.save(value, path)


def load_file(path: str | os.PathLike[str]) -> Any:
    """Read what torch.save wrote, on the CPU; only tensors and plain values are taken: nothing in it can run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def temporary(repository: Path) -> Path:
    """A new folder beside a repository, where there is room, which is removed when the program ends."""
    with storage_errors(f"making a folder beside {repository}"):
        made = tempfile.mkdtemp(prefix=f"{repository.name}.resume-", dir=repository.resolve().parent)
    atexit.register(shutil.rmtree, made, True)
    return Path(made)
