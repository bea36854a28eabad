"""Whatever the bytes, a block is filled or CorruptObject is raised: nothing else, and in bounded memory."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from coral.delta import BLOCK_ELEMENTS, Codec, GroupedDelta, PackDelta, Planes, Raw, Same
from coral.errors import CorruptObject


def encoded(coder: Any, dtype: Any, size: int, words: Callable[..., Any]) -> Iterator[tuple[Codec, bytes, Any, Any]]:
    """A small block of every form: (codec, encoded, base, block)."""
    bits = np.dtype(dtype).itemsize * 8
    base = words(size, dtype)
    small = base + (words(size, np.uint64, 1) % np.uint64(5)).astype(dtype)
    wide = base + (words(size, dtype, 2) >> dtype(bits // 2 + 1))
    wide[::40] = words(size, dtype, 3)[::40]
    planes = base >> dtype(4)
    yield Raw(), Raw().encode(base, None), base, base
    yield Same(), Same().encode(base, base), base, base
    yield Planes(coder), Planes(coder).encode(planes, None), base, planes
    for block in (small, wide):
        yield PackDelta(coder), PackDelta(coder).encode(block, base), base, block
        yield GroupedDelta(coder), GroupedDelta(coder).encode(block, base), base, block


def refused(codec: Codec, data: bytes, base: Any) -> bool:
    out = np.empty_like(base)
    try:
        codec.decode(data, base, out)
    except CorruptObject:
        return True
    return False


def test_cut_off_at_every_byte(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    for codec, data, base, _ in encoded(coder, dtype, 200, words):
        for size in range(len(data)):
            assert refused(codec, data[:size], base), (codec, size)


def test_every_bit_flipped(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    for codec, data, base, _ in encoded(coder, dtype, 60, words):
        for at in range(len(data) * 8):
            bad = bytearray(data)
            bad[at // 8] ^= 1 << at % 8
            refused(codec, bytes(bad), base)


def test_every_head(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    for codec, data, base, _ in encoded(coder, dtype, 60, words):
        for at in range(min(4, len(data))):
            for value in range(256):
                refused(codec, data[:at] + bytes((value,)) + data[at + 1 :], base)


def test_of_another_size(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    for codec, data, _, _ in encoded(coder, dtype, 200, words):
        if data[0] == 1:
            continue  # it is as long as its base
        for size in (0, 1, 100, 2000):
            assert refused(codec, data, words(size, dtype)), (codec, size)


def test_bytes_behind_it(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    for codec, data, base, _ in encoded(coder, dtype, 200, words):
        assert not refused(codec, data, base)
        assert refused(codec, data + b"\0", base)


def test_chance(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    base = words(100, dtype)
    for seed in range(300):
        noise = words(1 + seed, np.uint8, seed).tobytes()
        for codec in (Planes(coder), PackDelta(coder), GroupedDelta(coder)):
            for form in range(5):
                refused(codec, bytes((form,)) + noise, base)


@pytest.mark.parametrize("size", [0, 1])
def test_next_to_nothing(coder: Any, dtype: Any, size: int) -> None:
    base = np.zeros(size, dtype)
    for codec in (Planes(coder), PackDelta(coder), GroupedDelta(coder)):
        for form in range(5):
            for head in (b"", b"\0\2", b"\0\4\0", b"\0\2\1", b"\0\2\0\0", b"\0\10\1\377", b"\2\0\0\0\0", b"\1" * 8):
                refused(codec, bytes((form,)) + head, base)


def test_several_groups_damaged(coder: Any, words: Callable[..., Any]) -> None:
    """Large enough for groups: each of their heads cut, and set to values that no writer gives."""
    exponents = np.uint32(110) + words(5_000, np.uint32, 1) % np.uint32(10)
    base = (exponents << np.uint32(23)) | (words(5_000, np.uint32) >> np.uint32(9))
    block = base + (words(5_000, np.uint32, 2) >> (exponents - np.uint32(90)))
    codec = GroupedDelta(coder)
    data = codec.encode(block, base)
    assert data[0] == 4
    for at in range(1, len(data), 7):
        assert refused(codec, data[:at], base)
        for value in (0, 255):
            refused(codec, data[:at] + bytes((value,)) + data[at + 1 :], base)


def bomb(coder: Any, size: int) -> bytes:
    if coder.id == 1:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(bytes(size)) + packer.flush()
    return bytes(coder.compress(bytes(size)))


def test_a_bomb_takes_no_memory(coder: Any) -> None:
    stream = bomb(coder, 1 << 28)
    head = bytes((2,)) + len(stream).to_bytes(4, "little")  # a coded stream
    base = np.zeros(BLOCK_ELEMENTS, np.uint8)
    for codec, data in ((Planes(coder), b"\2" + head + stream), (PackDelta(coder), b"\3\0\10" + head + stream)):
        tracemalloc.start()
        with pytest.raises(CorruptObject):
            codec.decode(data, base, np.empty_like(base))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 16 << 20


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_stream_ends_where_it_should(coder: Any, size: int) -> None:
    data = bytes(range(250)) * 4
    stream = coder.compress(data[:size])
    assert coder.decompress(stream, size) == data[:size]
    for wrong in (size + 1, size - 1, 0, 5000):
        if wrong >= 0 and wrong != size:
            with pytest.raises(CorruptObject):
                coder.decompress(stream, wrong)
    for bad in (stream + b"\0", stream + stream, stream[:-1], b"", b"\xff" * 9):
        with pytest.raises(CorruptObject):
            coder.decompress(bad, size)


def test_flipped_streams(coder: Any) -> None:
    stream = coder.compress(bytes(range(40)) * 3)
    for at in range(len(stream) * 8):
        bad = bytearray(stream)
        bad[at // 8] ^= 1 << at % 8
        with suppress(CorruptObject):
            assert len(coder.decompress(bytes(bad), 120)) == 120
