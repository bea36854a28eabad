"""The elements of a block in groups of about equal exponent in the base, which the reader has as well."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coral._digest import Bytes
from coral.delta._bits import Bits, scratch

_SHARE = 16
"""A group has at least one in so many of the block's elements ..."""

_LEAST = 1024
"""... and at least so many: both by a sample."""

_SAMPLE = 1 << 14
_TILE = 1 << 16  # what is sorted at once: the places of more do not stay in the cache


def order(base: Bits) -> tuple[NDArray[np.intp], list[slice]]:
    """The places of the block's elements in the order that they are packed in, and the groups as slices of it.

    The elements of a group keep their order. Nothing but `base` decides, so that a reader finds the same groups.
    """
    keys = _keys(base)
    numbers = _numbers(keys)
    count = int(numbers[0]) + 1
    found = np.frombuffer(keys.tobytes().translate(numbers.tobytes()), np.uint8)
    parts: list[list[NDArray[np.intp]]] = [[] for _ in range(count)]
    for begin in range(0, max(1, base.size), _TILE):
        tile = found[begin : begin + _TILE]
        places = np.argsort(tile, kind="stable")
        ends = np.searchsorted(np.take(tile, places), np.arange(count, dtype=np.uint8), side="right").tolist()
        places += begin
        for part, a, b in zip(parts, [0, *ends], ends, strict=False):
            part.append(places[a:b])
    cuts = [0]
    for part in parts:
        cuts.append(cuts[-1] + sum(piece.size for piece in part))
    return np.concatenate([piece for part in parts for piece in part]), [slice(a, b) for a, b in pairwise(cuts)]


def _keys(base: Bits) -> Bytes:
    """The eight bits below the top one of each element: a float32's exponent, or a bfloat16's."""
    turned = scratch("turned", base.size, base.dtype)
    np.right_shift(base, base.dtype.type(max(0, base.dtype.itemsize * 8 - 9)), out=turned)
    keys: Bytes = scratch("keys", base.size, np.uint8)
    np.copyto(keys, turned, casting="unsafe")
    return keys


def _numbers(keys: Bytes) -> Bytes:
    """The number of the group that each of the 256 keys belongs to: 0 for the highest.

    A group takes key after key until a sample has enough elements of them; the last also takes what is left.
    """
    step = max(1, keys.size // _SAMPLE)
    sample = keys[::step]
    counts = np.bincount(sample, minlength=256).tolist()
    least = max(-(-sample.size // _SHARE), -(-_LEAST // step))
    numbers = np.zeros(256, np.uint8)
    left, number, taken = sample.size, 0, 0
    for key in range(255, -1, -1):
        numbers[key] = number
        taken += counts[key]
        left -= counts[key]
        if taken >= least and left >= least:
            number, taken = number + 1, 0
    return numbers
