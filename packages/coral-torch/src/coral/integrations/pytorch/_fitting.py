"""Which weights fit a module, told from dtypes and shapes alone: nothing is read, and the module is not touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import torch

from coral import WeightTensor
from coral.errors import WeightsMismatch
from coral.integrations.pytorch._expanded import differs_along, shared_dims
from coral.integrations.pytorch._matching import Names
from coral.integrations.pytorch._modules import Parts, tied_groups
from coral.integrations.pytorch._tensors import NAMES, from_weight

__all__ = ["Fit", "LoadReport", "fit", "is_extra", "refuse"]

_FLOATING = frozenset(name for dtype, name in NAMES.items() if dtype.is_floating_point)


class LoadReport(TypedDict):
    """What came of loading: names, and for what did not fit (what the module has, what the weights are).

    `unexpected` are names of weights, all others those of the module; `matched` counts what was loaded.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[str, str]]
    matched: int


class Fit(NamedTuple):
    """What is to be read, by the module's names: of tied ones the first alone. What ties them; and the report."""

    sources: dict[str, str]
    tied: list[list[str]]
    report: LoadReport


def fit(
    live: Parts,
    weights: Mapping[str, WeightTensor],
    names: Names,
    *,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Fit:
    """Compare weights, matched by name, with what a module holds. Of tied names one is enough.

    `extra` is state that is no tensor, by the module's names. With a `dtype`, weights and module are compared as they
    will be when their floating-point tensors are of it. Only weights for expanded tensors are read.
    """
    sources: dict[str, str] = {}
    mismatched: dict[str, tuple[str, str]] = {}
    for name, source in names.sources.items():
        why = None if is_extra(name) or name in live.extra else _mismatch(live, name, weights[source], dtype)
        if why is None:
            sources[name] = source
        else:
            mismatched[name] = why
    given = {*names.sources, *(extra or ())}
    missing = {*live.tensors, *(live.extra if extra is not None else ())} - given
    loaded, tied = list(sources), tied_groups(live.tensors)
    for group in tied:
        first, *others = [name for name in group if name in sources] or [""]
        if first:
            missing.difference_update(group)
        for name in others:
            if weights[sources[name]].id != weights[sources[first]].id:
                mismatched[name] = (f"it tied to {first}", "differ from that")
                loaded.remove(name)
            del sources[name]
    known = {*live.tensors, *live.extra}
    report = LoadReport(
        loaded=loaded,
        missing=[name for name in (*live.tensors, *live.extra) if name in missing],
        unexpected=[*names.unexpected, *(name for name in extra or () if name not in known)],
        mismatched=mismatched,
        matched=len(loaded),
    )
    return Fit(sources, tied, report)


def refuse(report: LoadReport) -> None:
    """Raise WeightsMismatch, which lists all of it, if anything did not fit."""
    if report["missing"] or report["unexpected"] or report["mismatched"]:
        raise WeightsMismatch(
            missing=report["missing"], unexpected=report["unexpected"], mismatched=report["mismatched"]
        )


def is_extra(name: str) -> bool:
    """Whether it is a module's extra state: its own setter says what that may be."""
    return name.rpartition(".")[2] == "_extra_state"


def _mismatch(live: Parts, name: str, weight: WeightTensor, dtype: torch.dtype | None) -> tuple[str, str] | None:
    tensor = live.tensors[name]
    have, got = NAMES[tensor.dtype], weight.dtype
    if dtype is not None:
        have, got = (NAMES[dtype] if each in _FLOATING else each for each in (have, got))
    if (have, tuple(tensor.shape)) != (got, weight.shape):
        return f"{have} {tuple(tensor.shape)}", f"{got} {weight.shape}"
    dims = shared_dims(tensor)
    if dims and differs_along(from_weight(weight), dims):
        return f"one element expanded along dimension {dims[0]}", "differ along it"
    return None
