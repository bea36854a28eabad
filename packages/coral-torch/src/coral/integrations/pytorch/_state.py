"""Nested training state with torch tensors in it, to what a repository can hold, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from coral import WeightTensor
from coral.errors import UnsupportedValue
from coral.integrations.pytorch._modules import tied_groups
from coral.integrations.pytorch._tensors import from_weight, to_weight

__all__ = ["Keep", "decode", "encode", "fresh", "keep_all", "viewed"]

Keep = Callable[[str, Tensor], WeightTensor]
"""What makes of a tensor, and the path where it stands, the WeightTensor that is stored."""


def fresh(path: str, tensor: Tensor) -> WeightTensor:
    """Keep a tensor as a copy in new memory."""
    return to_weight(tensor, path)


def viewed(path: str, tensor: Tensor) -> WeightTensor:
    """Keep a tensor in its own memory, where that will do."""
    return to_weight(tensor, path, copy=False)


def keep_all(tensors: Mapping[str, Tensor], keep: Keep) -> tuple[dict[str, WeightTensor], list[list[str]]]:
    """Keep a model's tensors by name, tied ones once; and which are tied."""
    tied = tied_groups(tensors)
    twins = {other: first for first, *others in tied for other in others}
    kept = {name: keep(name, tensor) for name, tensor in tensors.items() if name not in twins}
    return kept | {name: kept[first] for name, first in twins.items()}, tied


def encode(value: Any, path: str, keep: Keep) -> Any:
    """The value with `keep` applied to its tensors, in new containers: later changes to the value do not show.

    UnsupportedValue names the path of what could only be stored by pickling it.
    """
    match value:
        case Tensor():
            return keep(path, value)
        case dict():
            return {key: encode(child, f"{path}.{key}", keep) for key, child in value.items()}
        case list():
            return [encode(child, f"{path}.{i}", keep) for i, child in enumerate(value)]
        case tuple():
            return tuple(encode(child, f"{path}.{i}", keep) for i, child in enumerate(value))
        case np.ndarray():
            return value.copy()
        case WeightTensor() | None | bool() | int() | float() | str() | bytes() | np.generic():
            return value
        case _:
            raise UnsupportedValue(
                f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be stored exactly "
                "without pickle; make it of numbers, text, lists, tuples, dicts and tensors",
                path=path,
            )


def decode(value: Any) -> Any:
    """What was encoded, with tensors for WeightTensors, all of it in memory of its own."""
    match value:
        case WeightTensor():
            return from_weight(value).clone()
        case Mapping():
            return {key: decode(child) for key, child in value.items()}
        case list():
            return [decode(child) for child in value]
        case tuple():
            return tuple(decode(child) for child in value)
        case np.ndarray():
            return value.copy()
        case _:
            return value
