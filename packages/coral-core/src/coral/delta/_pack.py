"""Runs of differences: the high bits as symbols for the entropy coder, the low ones, which are noise, as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from coral._digest import Bytes
from coral.delta import _streams
from coral.delta._bits import Bits, scratch
from coral.delta._cursor import Cursor
from coral.delta._entropy import Data, Entropy
from coral.delta._layout import WIDTHS, Layout
from coral.delta._symbols import marked, pack, packed_size, room, unpack
from coral.errors import CorruptObject

_FEW = 64


def write(differences: Bits, layout: Layout, entropy: Entropy) -> list[Data]:
    """The parts of a packed run, some of them in scratch that the next run uses. `differences` is overwritten."""
    dtype, size = differences.dtype, differences.size
    kind = dtype.type
    shift, width = layout
    differences += _bias(layout, dtype)
    high = _shifted(differences, shift)
    symbols = room(size, width, "symbols")
    np.copyto(symbols[:size], high, casting="unsafe")
    marks = room(size, 1, "marks")
    np.greater_equal(high, kind(layout.cap), out=marks[:size].view(np.bool_))
    escaped = marked(marks, size)
    symbols[escaped] = layout.cap
    return [
        bytes(layout),
        escaped.size.to_bytes(4, "little"),
        *_streams.write(pack(symbols, width, "packed"), entropy),
        *_write_escapes(np.take(high, escaped), layout, entropy),
        *_write_low(differences, shift),
    ]


def read(cursor: Cursor, out: Bits, entropy: Entropy) -> None:
    """Fill `out` with the differences of the packed run that comes next."""
    dtype, size = out.dtype, out.size
    layout = Layout(cursor.byte(), cursor.byte())
    shift, width = layout
    if width not in WIDTHS or shift >= dtype.itemsize * 8:
        raise CorruptObject(f"symbols of {width} bits above {shift} bits are no layout for {dtype.name}")
    escapes = cursor.u32()
    packed = _streams.read(cursor, packed_size(size, width), entropy)
    symbols = unpack(packed, width, "symbols")[:size]
    high = scratch("unbiased", size, np.uint8)
    np.subtract(symbols, np.uint8(layout.bias), out=high)
    signed = out.view(f"<i{dtype.itemsize}")
    signed[:] = high.view(np.int8)
    if shift:
        np.left_shift(out, dtype.type(shift), out=out)
    if escapes:
        marks = room(size, 1, "marks")
        np.equal(symbols, np.uint8(layout.cap), out=marks[:size].view(np.bool_))
        escaped = marked(marks, size)
        if escaped.size != escapes:
            raise CorruptObject(f"{escaped.size} symbols stand for differences beyond them, not {escapes}")
        out[escaped] = _read_escapes(cursor, escapes, entropy, dtype) << dtype.type(shift)
    _read_low(cursor, out, shift)


def _bias(layout: Layout, dtype: np.dtype[Any]) -> Any:
    return dtype.type(layout.bias << layout.shift & int(np.iinfo(dtype).max))


def _write_escapes(high: Bits, layout: Layout, entropy: Entropy) -> list[Data]:
    """The high parts that are no symbols: their distances from 0 in zigzag, in byte planes, the lowest first.

    A few are stored as they are.
    """
    dtype = high.dtype
    width = dtype.itemsize
    high <<= dtype.type(layout.shift)
    high -= _bias(layout, dtype)
    signed = high.view(f"<i{width}")
    signed >>= layout.shift
    zigzag = (signed << 1) ^ (signed >> (width * 8 - 1))
    if high.size <= _FEW:
        return [zigzag]
    rows = zigzag.view(np.uint8).reshape(-1, width)
    parts: list[Data] = []
    for place in range(width):
        parts += _streams.write(np.ascontiguousarray(rows[:, place]), entropy)
    return parts


def _read_escapes(cursor: Cursor, size: int, entropy: Entropy, dtype: np.dtype[Any]) -> Bits:
    zigzag: Bits = np.empty(size, dtype)
    rows = zigzag.view(np.uint8).reshape(-1, dtype.itemsize)
    if size <= _FEW:
        zigzag[:] = np.frombuffer(cursor.take(zigzag.nbytes), dtype)
    else:
        for place in range(dtype.itemsize):
            rows[:, place] = _streams.read(cursor, size, entropy)
    one = dtype.type(1)
    sign = np.negative((zigzag & one).view(f"<i{dtype.itemsize}")).view(dtype)
    zigzag >>= one
    zigzag ^= sign
    return zigzag


def _write_low(values: Bits, bits: int) -> list[Data]:
    """The low `bits` bits: pieces of 32, 16 and 8 bits, whichever there are, from the lowest up, then of 4, 2 and 1."""
    parts: list[Data] = []
    at = 0
    for piece in (32, 16, 8):
        if bits & piece:
            low = scratch(f"piece {piece}", values.size, np.dtype(f"<u{piece // 8}"))
            np.copyto(low, _shifted(values, at), casting="unsafe")
            parts.append(low)
            at += piece
    if bits & 7:
        rest = room(values.size, 1, "rest")
        np.copyto(rest[: values.size], _shifted(values, at), casting="unsafe")
        at = 0
        for piece in (4, 2, 1):
            if bits & piece:
                whole = rest[: packed_size(values.size, piece) * (8 // piece)]
                parts.append(pack(whole, piece, f"piece {piece}", shift=at))
                at += piece
    return parts


def _shifted(values: Bits, by: int) -> Bits:
    if not by:
        return values
    found: Bits = scratch("shifted", values.size, values.dtype)
    return np.right_shift(values, values.dtype.type(by), out=found)


def _read_low(cursor: Cursor, out: Bits, bits: int) -> None:
    """Put the pieces that `_write_low` wrote below what is in `out`."""
    low: Bits | None = None
    at = 0
    for piece in (32, 16, 8):
        if bits & piece:
            low = _above(low, np.frombuffer(cursor.take(out.size * piece // 8), f"<u{piece // 8}"), at)
            at += piece
    if bits & 7:
        low = _above(low, _read_rest(cursor, out.size, bits & 7), at)
    if low is not None:
        np.bitwise_or(out, low, out=out)


def _above(low: Bits | None, more: Bits, at: int) -> Bits:
    """`more` shifted to the left by `at`, and `low` below it, in the narrowest integers that hold them."""
    if low is None:
        return more
    dtype = np.dtype("<u2" if at == 8 else "<u4" if at < 32 else "<u8")
    found: Bits = scratch(f"above {at}", low.size, dtype)
    np.left_shift(more, dtype.type(at), out=found, dtype=dtype)
    np.bitwise_or(found, low, out=found)
    return found


def _read_rest(cursor: Cursor, size: int, bits: int) -> Bytes:
    """The last, less than 8, of the low bits: a byte for each element."""
    rest: Bytes | None = None
    at = 0
    for piece in (4, 2, 1):
        if bits & piece:
            packed = np.frombuffer(cursor.take(packed_size(size, piece)), np.uint8)
            found = unpack(packed, piece, f"piece {piece}", shift=at)[: -(-size // 8) * 8]
            if rest is None:
                rest = found
            else:
                words = rest.view(np.uint64)
                np.bitwise_or(words, found.view(np.uint64), out=words)
            at += piece
    assert rest is not None
    return rest[:size]
