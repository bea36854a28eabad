"""How a model differs from weights, to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from coral import WeightTensor
from coral.integrations.pytorch._loading import as_weight
from coral.integrations.pytorch._matching import match_names
from coral.integrations.pytorch._modules import module_parts, tied_groups
from coral.integrations.pytorch._tensors import from_weight, to_weight

__all__ = ["Comparison", "compare_model_weights"]

_PIECE = 1 << 20  # elements that are compared at a time: they are widened to float64
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)  # two numbers in each element; older versions of torch lack it


class Comparison(TypedDict):
    """Names of the model, and of weights that it has none for; `similarity` holds the cosine where shapes are equal."""

    identical: list[str]
    modified: list[str]
    model_only: list[str]
    coral_only: list[str]
    similarity: dict[str, float]
    is_identical: bool


def compare_model_weights(
    model: nn.Module, weights: Mapping[str, WeightTensor | np.ndarray[Any, Any] | Tensor]
) -> Comparison:
    """Compare a model with weights: identical are those of the same dtype, shape and bits.

    Names are matched as by `load_into_model`. The cosine is that of all elements, in float64: 1.0 for what is
    identical, and 0.0 where one side is all zeros; not a number where an element is none.
    """
    live = module_parts(model).tensors
    names = match_names(weights, live)
    sources = dict(names.sources)
    for group in tied_groups(live):
        have = [sources[name] for name in group if name in sources]
        sources.update({name: sources.get(name, have[0]) for name in group if have})
    found = Comparison(
        identical=[],
        modified=[],
        model_only=[name for name in live if name not in sources],
        coral_only=names.unexpected,
        similarity={},
        is_identical=False,
    )
    for name in live:
        if name in sources:
            weight = as_weight(name, weights[sources[name]])
            _compare(found, name, to_weight(live[name], name, copy=False), weight)
    found["is_identical"] = not (found["modified"] or found["model_only"] or found["coral_only"])
    return found


def _compare(found: Comparison, name: str, have: WeightTensor, weight: WeightTensor) -> None:
    same = have.dtype == weight.dtype and have.shape == weight.shape and np.array_equal(have.bytes(), weight.bytes())
    found["identical" if same else "modified"].append(name)
    if same:
        found["similarity"][name] = 1.0
    elif have.shape == weight.shape:
        cosine = _cosine(from_weight(have), from_weight(weight))
        if cosine is not None:
            found["similarity"][name] = cosine


def _cosine(one: Tensor, other: Tensor) -> float | None:
    """The cosine of two tensors of one shape as vectors; None for a dtype that torch cannot compute with."""
    if _PACKED in (one.dtype, other.dtype):
        return None
    # scaled, so that no square leaves the range of float64
    largest, its_largest = _largest(one), _largest(other)
    if 0.0 in (largest, its_largest):
        return 1.0 if largest == its_largest else 0.0
    dot = square = its_square = 0.0
    for mine, its in zip(_pieces(one), _pieces(other), strict=True):
        mine /= largest
        its /= its_largest
        dot += torch.dot(mine, its).item()
        square += torch.dot(mine, mine).item()
        its_square += torch.dot(its, its).item()
    cosine = dot / math.sqrt(square * its_square)
    return cosine if math.isnan(cosine) else min(1.0, max(-1.0, cosine))


def _largest(tensor: Tensor) -> float:
    return max((piece.abs().max().item() for piece in _pieces(tensor)), default=0.0)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    for at in range(0, flat.numel(), _PIECE):
        yield flat[at : at + _PIECE].to(torch.float64, copy=True)
