"""Elements without a base: exponent, mantissa and sign apart, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from coral._digest import Bytes
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
    turned = rotated(block, scratch("rotated", block.size, block.dtype))
    return [part for plane in _split(turned) for part in _streams.write(plane, coder)]


def read(cursor: Cursor, out: Bits, coder: Entropy) -> None:
    """Fill `out` with the elements of the planes that come next."""
    width = out.dtype.itemsize
    planes = [_streams.read(cursor, out.size, coder) for _ in range(width)]
    _join(planes, out)
    kind = out.dtype.type
    sign = scratch("top", out.size, out.dtype)
    np.left_shift(out, kind(width * 8 - 1), out=sign)
    np.right_shift(out, kind(1), out=out)
    np.bitwise_or(out, sign, out=out)


def _join(planes: list[Bytes], out: Bits) -> None:
    """Fill `out` with elements whose bytes are in these planes, the lowest first: by halves, which is fastest."""
    width = out.dtype.itemsize
    if width == 1:
        out[:] = planes[0]
        return
    half = np.dtype(f"<u{width // 2}")
    parts: list[Bits] = []
    for place in (0, 1):
        if width == 2:
            parts.append(planes[place])
        else:
            part = scratch(f"half {width} {place}", out.size, half)
            _join(planes[place * width // 2 : (place + 1) * width // 2], part)
            parts.append(part)
    np.left_shift(parts[1], out.dtype.type(width * 4), out=out, dtype=out.dtype)
    np.bitwise_or(out, parts[0], out=out)


def _split(bits: Bits, at: int = 0) -> Iterator[Bytes]:
    """The byte planes of elements, the lowest first, in scratch: by halves, as `_join` has them."""
    width = bits.dtype.itemsize
    if width == 1:
        yield bits.view(np.uint8)
        return
    half = np.dtype(f"<u{width // 2}")
    for place in (0, 1):
        part = scratch(f"part {width} {at} {place}", bits.size, half)
        high = (
            np.right_shift(bits, bits.dtype.type(width * 4), out=scratch("high", bits.size, bits.dtype))
            if place
            else bits
        )
        np.copyto(part, high, casting="unsafe")
        yield from _split(part, 2 * at + place)
