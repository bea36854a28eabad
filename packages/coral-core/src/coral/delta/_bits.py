"""Tensors as the codecs see them: flat arrays of unsigned integers, cut into blocks."""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coral._digest import Bytes
from coral.weights import DTYPES

BLOCK_ELEMENTS = 1 << 18
"""Elements in a codec block; the last block of a tensor may have fewer."""

Bits: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""A flat, contiguous array of uint8, uint16, uint32 or uint64, little-endian: the bits of some elements."""


def carrier(dtype: str) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned integers that a coral dtype's bits are seen as.

    They are as wide as an element; complex128 is seen as twice as many uint64.
    """
    return np.dtype(f"<u{min(8, DTYPES[dtype].itemsize)}")


class Scratch(threading.local):
    """Memory that the codecs of one thread use again for each block, so that the system need not find it each time."""

    def __init__(self) -> None:
        self._slots: dict[str, Bytes] = {}

    def __call__(self, slot: str, size: int, dtype: np.dtype[Any] | type[np.uint8]) -> Any:
        """An array of `size` elements with anything in it; it is another's once the slot is asked for again."""
        dtype = np.dtype(dtype)
        nbytes = size * dtype.itemsize
        held = self._slots.get(slot)
        if held is None or held.size < nbytes:
            held = self._slots[slot] = np.empty(nbytes, np.uint8)
        return held[:nbytes].view(dtype)


scratch = Scratch()
