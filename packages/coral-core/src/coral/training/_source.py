"""What an adapter gives the manager: a way to take a snapshot of training, and to go back to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from coral._digest import Bytes, in_shares
from coral.state import StateValue
from coral.weights import WeightTensor

_PIECE = 8 << 20  # bytes of one tensor that one thread copies at a time


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


def copy_all(pairs: Iterable[tuple[Bytes, Bytes]]) -> None:
    """Copy many (target, source) pairs of flat, contiguous bytes of one size each, by all threads."""
    pieces = [
        (target[at : at + _PIECE], source[at : at + _PIECE])
        for target, source in pairs
        for at in range(0, source.size, _PIECE)
    ]
    in_shares(_copy, pieces, [source.size for _, source in pieces])


def _copy(pieces: Sequence[tuple[Bytes, Bytes]]) -> list[None]:
    for target, source in pieces:
        np.copyto(target, source)
    return []


class Buffers:
    """Memory for snapshots, taken once and reused: copying into warm memory is the only stall of a save.

    buffers = Buffers()
    copies = buffers.copy_all({"weight": array.reshape(-1).view(np.uint8)})
    """

    def __init__(self) -> None:
        self._held: dict[str, Bytes] = {}

    def get(self, key: str, nbytes: int) -> Bytes:
        """The buffer of a key: the same memory as last time where the size is the same."""
        held = self._held.get(key)
        if held is None or held.size != nbytes:
            held = self._held[key] = np.empty(nbytes, np.uint8)
        return held

    def copy_all(self, sources: Mapping[str, Bytes]) -> dict[str, Bytes]:
        """Copy flat bytes into the buffers of their keys, by all threads; returns the buffers."""
        held = {key: self.get(key, source.size) for key, source in sources.items()}
        copy_all((held[key], source) for key, source in sources.items())
        return held
