"""Elements without a base: exponent, mantissa and sign apart, byte by byte.

An element is cut into parts of 16 bits. The top one is rotated to the left by one, so that a float's exponent fills its
high byte, and its sign is last. Parts that are all noise are stored as they are, which is fastest to read.
"""

from __future__ import annotations

import numpy as np

from coral._digest import Bytes
from coral.delta import _streams
from coral.delta._bits import Bits, scratch
from coral.delta._cursor import Cursor
from coral.delta._entropy import Data, Entropy
from coral.delta._layout import coded, entropy, strided
from coral.errors import CorruptObject

_WHOLE, _BYTES = 1, 2
_PART = np.dtype("<u2")


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
    """The parts of the planes, the lowest first; some may be in scratch that the next block uses."""
    width = block.dtype.itemsize
    if width == 1:
        return _streams.write(block, coder)
    found: list[Data] = []
    for place in range(width // 2):
        part = scratch(f"part {place}", block.size, _PART)
        np.copyto(part, _above(block, 16 * place), casting="unsafe")
        if 2 * place + 2 == width:
            part = rotated(part, scratch("turned", part.size, _PART))
        low, high = (scratch(f"{which} {place}", part.size, np.uint8) for which in ("low", "high"))
        np.copyto(low, part, casting="unsafe")
        np.copyto(high, _above(part, 8), casting="unsafe")
        if _streams.is_noise(low) and _streams.is_noise(high):
            found += [bytes((_WHOLE,)), part]
        else:
            found += [bytes((_BYTES,)), *_streams.write(low, coder), *_streams.write(high, coder)]
    return found


def read(cursor: Cursor, out: Bits, coder: Entropy) -> None:
    """Fill `out` with the elements of the planes that come next."""
    width = out.dtype.itemsize
    if width == 1:
        out[:] = _streams.read(cursor, out.size, coder)
        return
    parts = [_read_part(cursor, out.size, coder, place) for place in range(width // 2)]
    top = _turned_back(parts.pop())
    if width == 2:
        out[:] = top
        return
    np.left_shift(top, out.dtype.type(width * 8 - 16), out=out, dtype=out.dtype)
    for place, part in enumerate(parts):
        if place:
            part = np.left_shift(
                part, out.dtype.type(16 * place), out=scratch("wide", out.size, out.dtype), dtype=out.dtype
            )
        np.bitwise_or(out, part, out=out)


def _read_part(cursor: Cursor, size: int, coder: Entropy, place: int) -> Bits:
    kind = cursor.byte()
    if kind == _WHOLE:
        return np.frombuffer(cursor.take(2 * size), _PART)
    if kind != _BYTES:
        raise CorruptObject(f"{kind} is no way to store a part of elements")
    low, high = (_streams.read(cursor, size, coder) for _ in range(2))
    part: Bits = scratch(f"part {place}", size, _PART)
    np.left_shift(high, _PART.type(8), out=part, dtype=_PART)
    return np.bitwise_or(part, low, out=part)


def _turned_back(part: Bits) -> Bits:
    """A part rotated to the right by one."""
    sign: Bits = scratch("top", part.size, _PART)
    found: Bits = scratch("turned", part.size, _PART)
    np.left_shift(part, _PART.type(15), out=sign)
    np.right_shift(part, _PART.type(1), out=found)
    np.bitwise_or(found, sign, out=found)
    return found


def _above(bits: Bits | Bytes, by: int) -> Bits:
    if not by:
        return bits
    found: Bits = scratch("above", bits.size, bits.dtype)
    return np.right_shift(bits, bits.dtype.type(by), out=found)
