"""What an adapter gives the manager: a way to take a snapshot of training, and to go back to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coral.state import StateValue
from coral.weights import WeightTensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The weights and the training state of one moment.

    `state` is what its source needs to go on: any nested state (`coral.state`). Where going on from it cannot repeat
    the run to the bit, `exact` is False and `why` says so in half a sentence. `metadata` is for the reader of the
    log.
    """

    weights: Mapping[str, WeightTensor]
    state: Mapping[str, StateValue] | None = None
    exact: bool = True
    why: str = ""
    metadata: Mapping[str, StateValue] = field(default_factory=dict)


class StateSource(Protocol):
    """The adapter's side of a checkpoint: called by the thread that trains, never while a save reads a snapshot."""

    def capture(self, *, copy: bool = True) -> Snapshot:
        """The present moment: in memory of its own, so that training may go on; with `copy` False views will do."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Put the weights, and the state if there is one, back."""
        ...


class Buffers:
    """Memory for snapshots, taken once and reused: copying into warm memory is the only stall of a save."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def get(self, key: str, nbytes: int) -> NDArray[np.uint8]:
        """The buffer of a key: the same memory as last time where the size is the same."""
        held = self._held.get(key)
        if held is None or held.size != nbytes:
            held = self._held[key] = np.empty(nbytes, np.uint8)
        return held

    def copy(self, key: str, source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Copy flat bytes into the buffer of a key, and return it."""
        held = self.get(key, source.size)
        np.copyto(held, source)
        return held
