"""Elements without a base: exponent, mantissa and sign apart, byte by byte."""

from __future__ import annotations

import numpy as np

from coral.delta import _streams
from coral.delta._bits import Bits, scratch
from coral.delta._cursor import Cursor
from coral.delta._entropy import Data, Entropy
from coral.delta._layout import coded, entropy, strided


def rotated(bits: Bits, out: Bits) -> Bits:
    """`bits` rotated to the left by one, into `out`: a float's exponent then begins the top byte, its sign is last."""
    kind = bits.dtype.type
    top = scratch("top", bits.size, bits.dtype)
    np.right_shift(bits, kind(bits.dtype.itemsize * 8 - 1), out=top)
    np.left_shift(bits, kind(1), out=out)
    np.bitwise_or(out, top, out=out)
    return out


def estimate(block: Bits) -> float:
    """About how many bits an element takes."""
    if not block.size:
        return 0.0
    sample = np.ascontiguousarray(strided(block))
    width = sample.dtype.itemsize
    rows = rotated(sample, np.empty_like(sample)).view(np.uint8).reshape(-1, width)
    return sum(coded(entropy(np.bincount(plane, minlength=256), sample.size)) for plane in rows.T)


def write(block: Bits, coder: Entropy) -> list[Data]:
    """The parts of the planes, the lowest byte first."""
    width = block.dtype.itemsize
    rows = rotated(block, scratch("rotated", block.size, block.dtype)).view(np.uint8).reshape(-1, width)
    parts: list[Data] = []
    for place in range(width):
        parts += _streams.write(np.ascontiguousarray(rows[:, place]), coder)
    return parts


def read(cursor: Cursor, out: Bits, coder: Entropy) -> None:
    """Fill `out` with the elements of the planes that come next."""
    width = out.dtype.itemsize
    rows = out.view(np.uint8).reshape(-1, width)
    for place in range(width):
        rows[:, place] = _streams.read(cursor, out.size, coder)
    kind = out.dtype.type
    sign = scratch("top", out.size, out.dtype)
    np.left_shift(out, kind(width * 8 - 1), out=sign)
    np.right_shift(out, kind(1), out=out)
    np.bitwise_or(out, sign, out=out)
