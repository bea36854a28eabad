"""Whether there is memory for a second copy of what is to be saved."""

from __future__ import annotations

from pathlib import Path

from coral.state import flatten
from coral.training._source import Snapshot
from coral.weights import WeightTensor

_MARGIN = 1.2


def short_of_memory(nbytes: int) -> bool:
    """Whether a copy of `nbytes` bytes might not fit. False where the system does not say what is free."""
    available = _available()
    return available is not None and nbytes * _MARGIN > available


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def nbytes_of(snapshot: Snapshot) -> int:
    """The bytes of all tensors of a snapshot, those of its state included."""
    tensors: dict[str, WeightTensor] = {}
    flatten(snapshot.state, tensors)
    return sum(tensor.nbytes for part in (snapshot.weights, tensors) for tensor in part.values())
