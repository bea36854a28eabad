"""Files in torch's own format, for hosts that want one: torch.save and torch.load are called here alone."""

from __future__ import annotations

import os
from typing import Any

import torch

__all__ = ["load_file", "save_file"]


def save_file(value: Any, path: str | os.PathLike[str]) -> None:
    """Write nested state of tensors, arrays and plain values as torch.save does."""
    torch.save(value, path)


def load_file(path: str | os.PathLike[str]) -> Any:
    """Read what torch.save wrote, on the CPU; only tensors and plain values are taken: nothing in it can run code."""
    return torch.load(path, map_location="cpu", weights_only=True)
