"""The metrics of an epoch: means of what the steps gave, taken without waiting for a device at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from coral.errors import UnsupportedValue

__all__ = ["MeanMetrics", "not_finite", "numbers_of", "to_floats"]


class MeanMetrics:
    """Running sums: of tensors on their device, of numbers here."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._numbers: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Count in one value of each of these: a number, or a tensor of one element on any device; all or none."""
        for name, value in metrics.items():
            _check_scalar(name, value) if isinstance(value, Tensor) else _number(name, value)
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                self._add_tensor(name, value.detach())
            else:
                self._numbers[name] = self._numbers.get(name, 0.0) + _number(name, value)
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each metric over the values it was given; the only place where a device is waited for."""
        sums = to_floats(self._tensors)
        return {
            name: (self._numbers.get(name, 0.0) + sums.get(name, 0.0)) / count for name, count in self._counts.items()
        }

    def clear(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, as tensors and numbers."""
        return {"counts": dict(self._counts), "numbers": dict(self._numbers), "tensors": dict(self._tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sums so far."""
        self._counts, self._numbers = dict(state["counts"]), dict(state["numbers"])
        self._tensors = {name: tensor.clone() for name, tensor in state["tensors"].items()}

    def _add_tensor(self, name: str, value: Tensor) -> None:
        _check_scalar(name, value)
        value = value.reshape(())
        so_far = self._tensors.get(name)
        if so_far is None:
            self._tensors[name] = value.to(_sum_dtype(value.device), copy=True)
        else:
            # a sum that was restored is on the CPU: it goes to where the values are, not they to it at each step
            self._tensors[name] = so_far.to(value.device, _sum_dtype(value.device)).add_(value)


def to_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers and one-element tensors as floats; each device is waited for once, however many tensors it has."""
    floats: dict[str, float] = {}
    waiting: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            _check_scalar(name, value)
            waiting.setdefault(value.device, {})[name] = value.detach().reshape(())
        else:
            floats[name] = _number(name, value)
    for device, tensors in waiting.items():
        stacked = torch.stack([tensor.to(_sum_dtype(device)) for tensor in tensors.values()])
        floats.update(zip(tensors, stacked.tolist(), strict=True))
    return {name: floats[name] for name in metrics}


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those metrics that are numbers already; a tensor's value would have to be waited for."""
    return {name: _number(name, value) for name, value in metrics.items() if not isinstance(value, Tensor)}


def not_finite(metrics: Mapping[str, float]) -> Iterator[str]:
    """The names of the metrics that are NaN or infinite."""
    return (name for name, value in metrics.items() if not math.isfinite(value))


def _sum_dtype(device: torch.device) -> torch.dtype:
    # many float32 (or bfloat16) values would lose digits in a sum of their own type; MPS has no float64
    return torch.float32 if device.type == "mps" else torch.float64


def _check_scalar(name: str, value: Tensor) -> None:
    if value.numel() != 1 or value.is_complex():
        raise UnsupportedValue(
            f"metric {name!r} is a {value.dtype} tensor of shape {tuple(value.shape)}; give one real number", path=name
        )


def _number(name: str, value: Any) -> float:
    if isinstance(value, Real):  # numpy's numbers too
        return float(value)
    if getattr(value, "ndim", None) == 0:  # an array that holds a number
        return float(value)
    raise UnsupportedValue(f"metric {name!r} is a {type(value).__name__}; give a number or a tensor", path=name)
