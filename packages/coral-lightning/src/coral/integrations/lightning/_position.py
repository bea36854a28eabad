"""Where a trainer is in its run, taken at an event: what has moved on by the time that its weights are captured."""

from __future__ import annotations

import copy
import logging
import math
import random as python_random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from coral.integrations.lightning._generators import generators, leaves
from coral.integrations.pytorch._random import (
    generator_state,
    get_random_state,
    set_generator_state,
    set_random_state,
)

__all__ = ["Position", "begin_epoch", "fingerprint", "position", "put_back", "settled"]

_log = logging.getLogger("coral")


@dataclass(frozen=True, slots=True)
class Position:
    """Where one process is: its loops, its loaders, its random generators, and why going on from there is not exact.

    `own_generators` are those of the loaders and of what they are made of; they count at the end of an epoch, when the
    next one's iterators are about to be made. Within an epoch the `loaders` hold some of them.
    """

    loops: dict[str, Any]
    loaders: list[Any] | None
    random: dict[str, Any] | None
    own_generators: dict[str, Any]
    within_epoch: bool
    why: tuple[str, ...]


def position(trainer: Any, *, epoch_over: bool, random: bool) -> Position:
    """That of now: at the end of a batch or a validation, or with `epoch_over` at that of an epoch."""
    loops = trainer.fit_loop.state_dict()
    loaders = loops.get("state_dict", {}).pop("combined_loader", None)
    here = tuple(leaves(trainer.train_dataloader))
    return Position(
        loops=copy.deepcopy(loops),
        # an iterator that is used up is no place to go on from: the next epoch makes a new one
        loaders=None if epoch_over else copy.deepcopy(loaders),
        random=get_random_state() if random else None,
        own_generators={},
        within_epoch=not epoch_over,
        why=tuple(_of_epochs(here) if epoch_over else _of_batches(here, loaders, trainer)),
    )


def settled(place: Position, trainer: Any) -> Position:
    """The position at the boundary: at the end of an epoch users' hooks may have drawn random numbers since."""
    if place.within_epoch or place.random is None:
        return place
    own = {where: generator_state(each.generator) for where, each in generators(trainer).items()}
    return replace(place, random=get_random_state(), own_generators=own)


def put_back(trainer: Any, mine: Mapping[str, Any]) -> None:
    """Put the random generators of this process, and those that its loaders have, back to where they were."""
    if mine.get("random"):
        set_random_state(mine["random"])
    here = generators(trainer)
    for place, state in mine.get("own_generators", {}).items():
        if place in here:
            set_generator_state(here[place].generator, state)
        else:
            _log.warning("going on approximately: there is no random generator %s to be put back", place)


def begin_epoch(trainer: Any) -> None:
    """Have the trainer begin its first epoch after a resume as it begins any other, with iterators made anew.

    Those that it has were made before the hooks of the training's start and the epoch's, which may draw random numbers,
    and making them draws some.
    """
    trainer.fit_loop._resuming_from_checkpoint = False


def fingerprint() -> object:
    """What two moments have in common between which no random number was drawn."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002, the global one is in use
    assert isinstance(numpy, dict)
    key, pos = numpy["state"]["key"].tobytes(), numpy["state"]["pos"]
    return python_random.getstate(), key, pos, torch.get_rng_state().numpy().tobytes()


def _of_epochs(loaders: tuple[Any, ...]) -> Iterator[str]:
    if any(getattr(loader, "persistent_workers", False) for loader in loaders):
        yield "workers of a data loader that persist have random states of their own"
    if any(hasattr(loader, "state_dict") and hasattr(_data_of(loader), "state_dict") for loader in loaders):
        yield "a data set has a state of its own, which is not saved at the end of an epoch"


def _of_batches(loaders: tuple[Any, ...], states: list[Any] | None, trainer: Any) -> Iterator[str]:
    if not states or len(states) < len(loaders):
        yield "it was saved within an epoch, and the position in the data is not known"
        return
    if any(getattr(loader, "num_workers", 0) for loader in loaders):
        yield "it was saved within an epoch, and the random states of the data loader's workers are not known"
    if unknown := [place for place, each in generators(trainer).items() if not each.followed]:
        yield f"it was saved within an epoch, and a data loader has random generators of its own ({', '.join(unknown)})"
    if math.isinf(trainer.num_training_batches):
        yield "it was saved within an epoch, and a batch had been fetched ahead, as the data loader has no length"


def _data_of(loader: Any) -> Any:
    return getattr(loader, "dataset", None)
