"""The random generators that data loaders, and what they are made of, have for themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from coral.integrations.pytorch._random import Generator

__all__ = ["Own", "generators", "leaves"]


class Own(NamedTuple):
    """A generator; `followed` where a stateful data loader knows, within an epoch, how far it has come."""

    generator: Generator
    followed: bool


def generators(trainer: Any) -> dict[str, Own]:
    """Those of a trainer's loaders, samplers, data sets and collate functions, each by the place where it is."""
    found: dict[str, Own] = {}
    for kind, loaders in (("train", trainer.train_dataloader), ("val", trainer.val_dataloaders)):
        for number, loader in enumerate(leaves(loaders)):
            for part, owner in _parts(loader):
                # what stateful loaders save: the samplers of their own, and what has a state
                followed = type(owner).__module__.startswith("torchdata.") or hasattr(owner, "state_dict")
                for name, value in getattr(owner, "__dict__", {}).items():
                    if isinstance(value, Generator):
                        found[f"{kind}.{number}.{part}.{name}"] = Own(value, followed and owner is not loader)
    return found


def leaves(loaders: Any) -> Iterator[Any]:
    """The loaders of a trainer: there may be several, in lists and dicts."""
    match loaders:
        case None:
            return
        case Mapping():
            for each in loaders.values():
                yield from leaves(each)
        case list() | tuple():
            for each in loaders:
                yield from leaves(each)
        case _:
            yield loaders


def _parts(loader: Any) -> Iterator[tuple[str, Any]]:
    """A loader and what it is made of; a data set may be a part of another, or of several."""
    batches, collate = getattr(loader, "batch_sampler", None), getattr(loader, "collate_fn", None)
    yield "loader", loader
    yield "sampler", getattr(loader, "sampler", None)
    yield "batch_sampler", batches
    yield "batch_sampler.sampler", getattr(batches, "sampler", None)
    yield "collate_fn", getattr(collate, "__self__", collate)  # of a method, its object
    yield from _data_sets("dataset", getattr(loader, "dataset", None))


def _data_sets(place: str, data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    yield place, data
    held = getattr(data, "__dict__", {})
    several = held.get("datasets")  # of ConcatDataset and StackDataset
    inner = [held.get("dataset"), *(several.values() if isinstance(several, dict) else several or ())]
    for number, each in enumerate(inner):
        if not (each is None or each is data or any(each is one for one in above)):
            yield from _data_sets(f"{place}.{number}", each, (*above, data))
