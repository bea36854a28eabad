"""Each codec gives back the bits it was given, whatever they are, and never makes a block longer than it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral.delta import (
    BLOCK_ELEMENTS,
    Codec,
    Deflate,
    GroupedDelta,
    PackDelta,
    Planes,
    Raw,
    Same,
    codec_of,
)
from coral.errors import CorruptObject, NewerFormat

SMALL = [0, 1, 7, 8, 9, 63, 64, 65, 1000, 4097]
LARGE = [BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS]


def codecs(coder: Any) -> list[Codec]:
    return [Raw(), Same(), Planes(coder), PackDelta(coder), GroupedDelta(coder)]


def round_trip(codec: Codec, block: Any, base: Any) -> bytes:
    for array in (block, base):
        array.setflags(write=False)
    data = codec.encode(block, base if codec.needs_base else None)
    assert len(data) <= block.nbytes + 1
    out = np.full(block.nbytes, 0xA5, np.uint8).view(block.dtype)
    codec_of(codec.code, codec.params).decode(data, base if codec.needs_base else None, out)
    assert out.tobytes() == block.tobytes()
    return data


@pytest.mark.parametrize("size", SMALL)
def test_round_trip(coder: Any, dtype: Any, size: int, pairs: Callable[..., Any]) -> None:
    for _, block, base in pairs(size, dtype):
        for codec in codecs(coder):
            round_trip(codec, block, base)


@pytest.mark.parametrize("size", LARGE)
def test_round_trip_of_whole_blocks(dtype: Any, size: int, pairs: Callable[..., Any]) -> None:
    for _, block, base in pairs(size, dtype):
        for codec in codecs(Deflate()):
            round_trip(codec, block, base)


def test_one_codec_after_another_on_one_thread(coder: Any, pairs: Callable[..., Any]) -> None:
    """The scratch of one block leaves nothing in the next, whatever their sizes and widths."""
    every = [
        (block, base) for size in (300, 4097, 5) for t in (np.uint32, np.uint8) for _, block, base in pairs(size, t)
    ]
    fresh = {}
    for codec in codecs(coder):
        for number, (block, base) in enumerate(every):
            fresh[codec, number] = round_trip(codec, block, base)
    for number, (block, base) in reversed(list(enumerate(every))):
        for codec in codecs(coder):
            assert round_trip(codec, block, base) == fresh[codec, number]


def test_chance_grows_by_a_byte_at_most(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    block, base = words(50_000, dtype), words(50_000, dtype, 1)
    for codec in codecs(coder):
        assert len(codec.encode(block, base)) <= block.nbytes + 1


def test_what_is_equal_takes_a_byte(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    block = words(5_000, dtype)
    for codec in (Same(), PackDelta(coder), GroupedDelta(coder)):
        assert len(codec.encode(block, block.copy())) == 1


def test_small_differences_take_few_bits(coder: Any, dtype: Any, words: Callable[..., Any]) -> None:
    base = words(100_000, dtype)
    block = base + (words(100_000, np.uint64, 1) % np.uint64(4)).astype(dtype)
    for codec in (PackDelta(coder), GroupedDelta(coder)):
        assert len(codec.encode(block, base)) * 8 < 2.3 * block.size


def test_pack_stores_by_planes_what_is_not_like_its_base(coder: Any, words: Callable[..., Any]) -> None:
    block = np.uint32(0x3C000000) + (words(50_000, np.uint32) >> np.uint32(9))
    base = words(50_000, np.uint32, 1)
    for codec in (PackDelta(coder), GroupedDelta(coder)):
        assert len(codec.encode(block, base)) < len(Planes(coder).encode(block, None)) * 1.01
        assert len(codec.encode(block, base)) < 0.8 * block.nbytes


def test_grouping_pays_where_the_exponents_differ(coder: Any, words: Callable[..., Any]) -> None:
    exponents = np.uint32(110) + words(100_000, np.uint32, 1) % np.uint32(10)
    base = (exponents << np.uint32(23)) | (words(100_000, np.uint32) >> np.uint32(9))
    noise = words(100_000, np.uint32, 2) >> (exponents - np.uint32(90))  # the larger the value the smaller, in its bits
    assert len(GroupedDelta(coder).encode(base + noise, base)) < 0.95 * len(PackDelta(coder).encode(base + noise, base))


@pytest.mark.parametrize(("code", "codec"), list(enumerate(codecs(Deflate()))))
def test_a_codec_is_rebuilt_from_its_code(code: int, codec: Codec) -> None:
    assert codec.code == code
    assert codec_of(codec.code, codec.params) == codec


@pytest.mark.parametrize(
    ("code", "params"),
    [(0, 1), (1, 1), (2, 0), (3, 0), (4, 3), (2, 0x101), (3, 1 << 31), (5, 0), (5, 1), (255, 1), (3, -1)],
)
def test_an_unknown_codec_is_of_a_newer_coral(code: int, params: int) -> None:
    with pytest.raises(NewerFormat, match="newer"):
        codec_of(code, params)


@pytest.mark.parametrize("codec", [Same(), PackDelta(Deflate()), GroupedDelta(Deflate())])
def test_a_difference_needs_a_base_of_the_same_form(codec: Codec) -> None:
    block = np.zeros(8, np.uint32)
    for base in (None, np.zeros(9, np.uint32), np.zeros(8, np.uint16)):
        with pytest.raises(ValueError, match="base"):
            codec.encode(block, base)
        with pytest.raises(ValueError, match="base"):
            codec.decode(b"\1", base, block)


def test_a_codec_reads_its_own_form_and_simpler_ones(words: Callable[..., Any]) -> None:
    coder = Deflate()
    exponents = np.uint32(110) + words(50_000, np.uint32, 1) % np.uint32(10)
    base = (exponents << np.uint32(23)) | (words(50_000, np.uint32) >> np.uint32(9))
    block = base + (words(50_000, np.uint32, 2) >> (exponents - np.uint32(90)))
    forms = [codec.encode(block, base) for codec in (Raw(), Planes(coder), PackDelta(coder), GroupedDelta(coder))]
    forms.insert(1, b"\1")
    assert [data[0] for data in forms] == [0, 1, 2, 3, 4]
    reads = [{0}, {0, 1}, {0, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}]
    for codec, allowed in zip(codecs(coder), reads, strict=True):
        for data in forms:
            out = np.empty_like(block)
            if data[0] in allowed:
                codec.decode(data, base, out)
                assert np.array_equal(out, base if data == b"\1" else block)
            else:
                with pytest.raises(CorruptObject, match="form"):
                    codec.decode(data, base, out)
