"""Small numbers, several to a byte.

Everything here works on 64-bit words, eight numbers at once: numpy shifts those many times faster than bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coral._digest import Bytes
from coral.delta._bits import scratch

_ONES = 0x0101010101010101


def packed_size(count: int, width: int) -> int:
    """The bytes that `count` numbers of `width` bits (1, 2, 4 or 8) take: whole words, but for those of 8 bits."""
    return count if width == 8 else -(-count * width // 64) * 8


def room(count: int, width: int, slot: str) -> Bytes:
    """Scratch for `count` numbers of `width` bits, a byte each, with zeros behind them as `pack` wants it."""
    size = packed_size(count, width) * (8 // width)
    found: Bytes = scratch(slot, size, np.uint8)
    found[count:] = 0
    return found


def pack(symbols: Bytes, width: int, slot: str, *, shift: int = 0) -> Bytes:
    """Bits `shift` to `shift + width` of each byte of a `room`, packed into scratch.

    Byte j holds the numbers j, j + q, j + 2 q, ..., the first in the lowest bits; q is the number of bytes.
    """
    if width == 8:
        return symbols
    q = symbols.size // (8 // width)
    found: Bytes = scratch(slot, q, np.uint8)
    words, mask = found.view(np.uint64), _mask(width, shift)
    part: NDArray[np.uint64] = scratch("words", q // 8, np.dtype(np.uint64))
    for place in range(8 // width):
        into = part if place else words
        np.bitwise_and(_words(symbols[place * q : (place + 1) * q]), mask, out=into)
        _shift(into, place * width - shift)
        if place:
            np.bitwise_or(words, part, out=words)
    return found


def unpack(data: Bytes, width: int, slot: str, *, shift: int = 0) -> Bytes:
    """The `room` that `pack` was given, in scratch, each number shifted to the left by `shift`."""
    if width == 8:
        return data
    q = data.size
    aligned: Bytes = scratch("aligned", q, np.uint8)
    aligned[:] = data
    found: Bytes = scratch(slot, q * (8 // width), np.uint8)
    mask = _mask(width, shift)
    for place in range(8 // width):
        into = _words(found[place * q : (place + 1) * q])
        into[:] = _words(aligned)
        _shift(into, shift - place * width)
        np.bitwise_and(into, mask, out=into)
    return found


def _mask(width: int, shift: int) -> np.uint64:
    return np.uint64((((1 << width) - 1) << shift) * _ONES)


def _words(data: Bytes) -> NDArray[Any]:
    return data.view(np.uint64)


def _shift(words: NDArray[np.uint64], left: int) -> None:
    if left > 0:
        np.left_shift(words, np.uint64(left), out=words)
    elif left < 0:
        np.right_shift(words, np.uint64(-left), out=words)
