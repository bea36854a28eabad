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
    """Scratch for `count` numbers of `width` bits, a byte each; behind them zeros up to what fills whole words."""
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
        if place * width != shift:
            _shift(into, place * width - shift, into)
        if place:
            np.bitwise_or(words, part, out=words)
    return found


def unpack(data: Bytes, width: int, slot: str, *, shift: int = 0) -> Bytes:
    """The `room` that `pack` was given, in scratch, each number shifted to the left by `shift`."""
    if width == 8:
        return data
    q = data.size
    words = _words(data)
    if not words.flags.aligned:
        words = words.copy()
    found: Bytes = scratch(slot, q * (8 // width), np.uint8)
    mask = _mask(width, shift)
    for place in range(8 // width):
        into = _words(found[place * q : (place + 1) * q])
        _shift(words, shift - place * width, into)
        np.bitwise_and(into, mask, out=into)
    return found


def marked(marks: Bytes, count: int) -> NDArray[np.intp]:
    """The places of the ones among the first `count` bytes of a `room(count, 1, ...)` of zeros and ones.

    Words without any are passed over at once: half the time of np.flatnonzero, unless there are many.
    """
    words = _words(marks)
    hits = np.flatnonzero(words != 0)
    if hits.size > 0.7 * words.size:
        return np.flatnonzero(marks[:count].view(np.bool_))
    found = np.flatnonzero(np.take(words, hits).view(np.bool_))
    places = np.take(hits, found >> 3)
    places <<= 3
    found &= 7
    places += found
    return places


def _mask(width: int, shift: int) -> np.uint64:
    return np.uint64((((1 << width) - 1) << shift) * _ONES)


def _words(data: Bytes) -> NDArray[Any]:
    return data.view(np.uint64)


def _shift(words: NDArray[np.uint64], left: int, out: NDArray[np.uint64]) -> None:
    if left >= 0:
        np.left_shift(words, np.uint64(left), out=out)
    else:
        np.right_shift(words, np.uint64(-left), out=out)
