"""A module's parameters and buffers to weights, and weights into a module that is in use.

Loading copies in place: parameters stay the objects that an optimizer holds and that other parameters are tied to.
Nothing is cast, reshaped or broadcast to make it fit, and nothing is touched unless all of it fits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from coral import WeightTensor
from coral.errors import WeightsMismatch
from coral.integrations.pytorch._tensors import NAMES, check, from_weight

__all__ = ["LoadReport", "load_weights", "module_parts", "tied_groups", "unwrapped"]


class LoadReport(TypedDict):
    """What came of loading: names, and for what did not fit (what the module has, what the weights are)."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[str, str]]
    matched: int


class Parts(NamedTuple):
    """A module's state_dict: its tensors, which live on in the module, and what of its extra state is no tensor."""

    tensors: dict[str, Tensor]
    extra: dict[str, Any]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel, so that names have no prefix."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def module_parts(module: nn.Module) -> Parts:
    """The module's state_dict in two. A tensor that is somebody's extra state is a weight like any other.

    UnsupportedValue names a tensor that has no plain data.
    """
    state = unwrapped(module).state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        check(tensor, name)
    return Parts(tensors, {name: value for name, value in state.items() if name not in tensors})


def tied_groups(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names that stand for one tensor: the same memory, seen the same way."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            seen = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
            groups.setdefault(seen, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def load_weights(
    module: nn.Module,
    weights: Mapping[str, WeightTensor],
    *,
    extra: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> LoadReport:
    """Copy weights into a module, in place, and its `extra` state that is no tensor.

    WeightsMismatch lists everything that is missing, unexpected, or of another dtype or shape, and leaves the module as
    it was. With `strict=False` what fits is loaded, and the rest is in the report. Of tied names one is enough.
    """
    module = unwrapped(module)
    live = module_parts(module)
    fits, report = _matched(live, weights, extra)
    if strict and (report["missing"] or report["unexpected"] or report["mismatched"]):
        raise WeightsMismatch(
            missing=report["missing"], unexpected=report["unexpected"], mismatched=report["mismatched"]
        )
    if extra is None and live.extra.keys() - fits.keys():
        left = ", ".join(live.extra.keys() - fits.keys())
        warnings.warn(f"weights alone hold no extra state; the module keeps its own: {left}", stacklevel=3)
    for name in [name for name in fits if _shared_dims(live.tensors.get(name))]:
        _load_expanded(live.tensors[name], fits.pop(name))
    # load_state_dict copies in place, and calls the hooks of modules that store something else than they hold
    module.load_state_dict({**fits, **(extra or {})}, strict=False)
    return report


def _matched(
    live: Parts, weights: Mapping[str, WeightTensor], extra: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors that fit, and what is to be said about all of them."""
    given = {*weights, *(extra or ())}
    known = {*live.tensors, *live.extra}
    missing = {*live.tensors, *(live.extra if extra is not None else ())} - given
    fits: dict[str, Tensor] = {}
    mismatched: dict[str, tuple[str, str]] = {}
    for name, weight in weights.items():
        if name not in known:
            continue
        tensor = live.tensors.get(name)
        why = None if tensor is None or _is_extra(name) else _mismatch(tensor, weight)
        if why is None:
            fits[name] = from_weight(weight)
            why = None if tensor is None else _expanded_mismatch(tensor, fits[name])
        if why is not None:
            mismatched[name] = why
            fits.pop(name, None)
    for group in tied_groups(live.tensors):
        first, *others = [name for name in group if name in fits] or [""]
        if first:
            missing.difference_update(group)
        for name in others:
            if not _equal(fits[name], fits[first]):
                mismatched[name] = (f"it tied to {first}", "differ from that")
                del fits[name]
    report = LoadReport(
        loaded=list(fits),
        missing=[name for name in (*live.tensors, *live.extra) if name in missing],
        unexpected=[name for name in (*weights, *(extra or ())) if name not in known],
        mismatched=mismatched,
        matched=len(fits),
    )
    return fits, report


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == "_extra_state"  # a module's own setter says what that may be


def _mismatch(tensor: Tensor, weight: WeightTensor) -> tuple[str, str] | None:
    dtype = NAMES[tensor.dtype]
    if (dtype, tuple(tensor.shape)) == (weight.dtype, weight.shape):
        return None
    return f"{dtype} {tuple(tensor.shape)}", f"{weight.dtype} {weight.shape}"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(_bits(one), _bits(other))  # so that NaN equals NaN


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


# Expanded tensors: many elements, one place in memory. torch refuses to copy into them.


def _shared_dims(tensor: Tensor | None) -> list[int]:
    if tensor is None or not tensor.numel():
        return []
    return [dim for dim, stride in enumerate(tensor.stride()) if stride == 0 and tensor.shape[dim] > 1]


def _distinct(tensor: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _expanded_mismatch(tensor: Tensor, value: Tensor) -> tuple[str, str] | None:
    dims = _shared_dims(tensor)
    if not dims or _equal(_distinct(value, dims).expand_as(value), value):
        return None
    return f"one element expanded along dimension {dims[0]}", "differ along it"


def _load_expanded(tensor: Tensor, value: Tensor) -> None:
    dims = _shared_dims(tensor)
    with torch.no_grad():
        _distinct(tensor, dims).copy_(_distinct(value, dims))
