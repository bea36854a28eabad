"""A module that holds tensors by the names they were saved under, without the code of the model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["skeleton"]


def skeleton(parameters: Iterable[tuple[str, tuple[int, ...]]], device: str = "meta") -> nn.Module:
    """Return a module with fp32 parameters of these names and shapes; what has memory is filled with ones."""
    root = nn.Module()
    for name, shape in parameters:
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(torch.ones(shape, device=device), requires_grad=False))
    return root
