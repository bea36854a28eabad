"""Buffers that training moves, such as the running statistics of a BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["Buffers"]

_SMALL = 1 << 16


class Buffers:
    """The persistent buffers of a model as they are now, to tell later which have moved.

    Of one with more than 65,536 elements no copy is kept: it counts as moved once it was written to, or replaced.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: _Before(buffer) for name, buffer in _persistent(model)}

    def moved(self) -> dict[str, Tensor]:
        """Those that are others by now, by name."""
        now = _persistent(self._model)
        return {name: each for name, each in now if name not in self._before or self._before[name].differs(each)}


class _Before:
    def __init__(self, buffer: Tensor) -> None:
        self._version = _version(buffer)
        self._small = buffer.numel() <= _SMALL
        self._tensor = buffer.detach().clone() if self._small else buffer

    def differs(self, now: Tensor) -> bool:
        was = self._tensor
        if self._small:  # a BatchNorm writes to its statistics without a new version, and DDP writes what is there
            same = (was.dtype, was.shape, was.device) == (now.dtype, now.shape, now.device)
            return not (same and torch.equal(was, now))
        return now is not was or _version(now) != self._version


def _persistent(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
