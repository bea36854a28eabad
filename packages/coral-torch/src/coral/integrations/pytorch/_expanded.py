"""Expanded tensors: many elements, one place in memory. torch refuses to copy into them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["differs_along", "load_expanded", "shared_dims"]


def shared_dims(tensor: Tensor) -> list[int]:
    """The dimensions along which all elements are one; none for what has no memory, where that does not matter."""
    if tensor.is_meta or not tensor.numel():
        return []
    return [dim for dim, stride in enumerate(tensor.stride()) if stride == 0 and tensor.shape[dim] > 1]


def differs_along(value: Tensor, dims: list[int]) -> bool:
    """Whether elements that would have to be one are not, to the bit."""
    one = _distinct(value, dims).expand_as(value)
    return not torch.equal(_bits(one), _bits(value))  # of bits, so that NaN equals NaN


def load_expanded(tensor: Tensor, value: Tensor) -> None:
    """Copy a value that does not differ along the shared dimensions into an expanded tensor."""
    dims = shared_dims(tensor)
    with torch.no_grad():
        _distinct(tensor, dims).copy_(_distinct(value, dims))


def _distinct(tensor: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _bits(tensor: Tensor) -> Tensor:
    # bytes can be seen only in memory of its own: of an expanded tensor, or of one element at some stride, they cannot
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
