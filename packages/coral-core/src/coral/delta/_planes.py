"""Elements without a base: byte by byte, as a float's exponent compresses, and its mantissa and sign do not.

An element is cut into parts of 16 bits, and those into bytes: the top one so that a float's exponent fills one of them.
Parts that are all noise are stored as they are, which is fastest to read.
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


def estimate(block: Bits) -> float:
    """About how many bits an element takes."""
    if not block.size:
        return 0.0
    sample = np.ascontiguousarray(strided(block))
    width = sample.dtype.itemsize
    planes = list(sample.view(np.uint8).reshape(-1, width).T)
    if width > 1:
        planes[-2:] = _cut(np.ascontiguousarray(sample.view(_PART)[width // 2 - 1 :: width // 2]), 0, top=True)
    return sum(coded(entropy(np.bincount(plane, minlength=256), sample.size)) for plane in planes)


def write(block: Bits, coder: Entropy) -> list[Data]:
    """The parts of the planes, the lowest first; some may be in scratch that the next block uses."""
    width = block.dtype.itemsize
    if width == 1:
        return _streams.write(block, coder)
    found: list[Data] = []
    for place in range(width // 2):
        part = scratch(f"part {place}", block.size, _PART)
        np.copyto(part, _above(block, 16 * place), casting="unsafe")
        low, high = _cut(part, place, top=2 * place + 2 == width)
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
    if width == 2:
        part = _read_part(cursor, out, coder, top=True)
        if part is not out:
            out[:] = part
        return
    parts = []
    for place in range(width // 2):
        room = scratch(f"part {place}", out.size, _PART)
        parts.append(_read_part(cursor, room, coder, top=2 * place + 2 == width))
    np.left_shift(parts.pop(), out.dtype.type(width * 8 - 16), out=out, dtype=out.dtype)
    for place, part in enumerate(parts):
        if place:
            part = np.left_shift(
                part, out.dtype.type(16 * place), out=scratch("wide", out.size, out.dtype), dtype=out.dtype
            )
        np.bitwise_or(out, part, out=out)


def _read_part(cursor: Cursor, out: Bits, coder: Entropy, *, top: bool) -> Bits:
    """The part that comes next: in `out`, unless it can be had without copying it."""
    kind = cursor.byte()
    if kind == _WHOLE:
        return np.frombuffer(cursor.take(2 * out.size), _PART)
    if kind != _BYTES:
        raise CorruptObject(f"{kind} is no way to store a part of elements")
    low, high = (_streams.read(cursor, out.size, coder) for _ in range(2))
    return _joined(low, high, out, top=top)


def _cut(part: Bits, place: int, *, top: bool) -> tuple[Bytes, Bytes]:
    """The low and the high byte of a part, in scratch that the next block uses.

    Of the `top` one: the sign and seven bits of the mantissa, as a bfloat16 has them, and the exponent.
    """
    low, high, rest = (scratch(f"{which} {place}", part.size, np.uint8) for which in ("low", "high", "rest"))
    np.copyto(low, part, casting="unsafe")
    np.copyto(high, _above(part, 8), casting="unsafe")
    if top:
        np.bitwise_and(low, np.uint8(0x7F), out=low)
        np.bitwise_or(low, np.bitwise_and(high, np.uint8(0x80), out=rest), out=low)
        np.copyto(high, _above(part, 7), casting="unsafe")
    return low, high


def _joined(low: Bytes, high: Bytes, out: Bits, *, top: bool) -> Bits:
    """The part that `_cut` made these of, in `out`."""
    if not top:
        np.left_shift(high, _PART.type(8), out=out, dtype=_PART)
        return np.bitwise_or(out, low, out=out)
    np.copyto(out.view("<i2"), low.view(np.int8))  # the sign spreads over the byte above
    np.bitwise_and(out, _PART.type(0x807F), out=out)
    exponents: Bits = scratch("exponents", out.size, _PART)
    np.left_shift(high, _PART.type(7), out=exponents, dtype=_PART)
    return np.bitwise_or(out, exponents, out=out)


def _above(bits: Bits | Bytes, by: int) -> Bits:
    if not by:
        return bits
    found: Bits = scratch("above", bits.size, bits.dtype)
    return np.right_shift(bits, bits.dtype.type(by), out=found)
