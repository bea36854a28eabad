"""What the batches of a Trainer come from: whether a run that goes on is given the same ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from accelerate.data_loader import (  # type: ignore[import-untyped]
    BatchSamplerShard,
    SeedableRandomSampler,
    SkipBatchSampler,
)
from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler
from transformers import trainer_pt_utils

from coral.integrations.pytorch._random import Generator

__all__ = ["orders_itself", "own_generators", "unknown_sampler"]

_REPEATABLE = (BatchSampler, BatchSamplerShard, SkipBatchSampler, SequentialSampler, SeedableRandomSampler)
"""Samplers that draw nothing, or seed themselves by the epoch, and what is around them."""

_AROUND = {"__self__", "batch_sampler", "data_collator", "dataset", "func", "sampler", "transform"}
"""The names by which a part of a data loader holds another."""

_AROUND_SEVERAL = {"datasets", "transforms"}
"""... or a list of others. A list of another name may be the data itself."""


def orders_itself(loader: Any) -> bool:
    """Whether the order of the data is the dataset's own, and no sampler's."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def unknown_sampler(loader: Any) -> str | None:
    """The kind of sampler that may give another order where the epoch is begun once more; None if none does.

    One that draws its order from the global generators does: a Trainer that goes on restores those too late for it.
    """
    if orders_itself(loader):
        return None
    samplers = _samplers(loader) or [loader]
    # inside a BatchSamplerShard a Trainer that goes on does not tell it the epoch
    if type(samplers[0]) is getattr(trainer_pt_utils, "BatchRebalanceSampler", None):
        return None
    return next((type(each).__name__ for each in samplers if type(each) not in _REPEATABLE), None)


def own_generators(loader: Any) -> list[str]:
    """Where the dataset, the samplers and the collate function hold random generators of their own."""
    parts = {name: getattr(loader, name, None) for name in ("dataset", "collate_fn", "batch_sampler", "sampler")}
    seen: set[int] = set()
    return [path for name, part in parts.items() for path in _generators(part, name, seen)]


def _samplers(loader: Any) -> list[Any]:
    """The sampler that is in use, from the outermost that is around it inwards."""
    found: list[Any] = []
    each = loader
    while each is not None:
        inner = getattr(each, "batch_sampler", None)
        each = getattr(each, "sampler", None) if inner is None else inner
        found.append(each)
    return found[:-1]


def _generators(part: Any, path: str, seen: set[int]) -> Iterator[str]:
    if id(part) in seen or type(part) is SeedableRandomSampler:
        return
    seen.add(id(part))
    for name, held in _held(part).items():
        if isinstance(held, Generator):
            yield f"{path}.{name}"
        elif name in _AROUND_SEVERAL and isinstance(held, list | tuple):
            for each in held:
                yield from _generators(each, f"{path}.{name}", seen)
        elif name in _AROUND | _AROUND_SEVERAL:
            yield from _generators(held, f"{path}.{name}", seen)


def _held(part: Any) -> Mapping[str, Any]:
    match part:
        case partial():
            return {**part.keywords, "func": part.func}
        case MethodType():
            return {"__self__": part.__self__}
        case FunctionType():
            return _used(part)
        case _:
            return getattr(part, "__dict__", {})


def _used(function: FunctionType) -> Mapping[str, Any]:
    try:
        used = inspect.getclosurevars(function)
    except ValueError:  # a variable around it has no value yet
        return {}
    return {**used.globals, **used.nonlocals}
