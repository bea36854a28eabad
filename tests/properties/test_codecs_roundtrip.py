"""Any bits, against any base, by any codec, come back as they were; any bytes are read or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.delta import (
    Codec,
    Deflate,
    DeltaConfig,
    Entropy,
    GroupedDelta,
    PackDelta,
    Planes,
    Raw,
    Same,
    Zstd,
    choose,
    codec_of,
    spans,
)
from coral.delta._entropy import _zstd
from coral.errors import CorruptObject

many = settings(max_examples=max(300, settings().max_examples), deadline=None)


def coders() -> st.SearchStrategy[Entropy]:
    deflate = st.one_of(st.none(), st.integers(1, 9)).map(Deflate)
    if _zstd() is None:
        return deflate
    return st.one_of(deflate, st.one_of(st.none(), st.integers(1, 22)).map(Zstd))


@st.composite
def codecs(draw: st.DrawFn) -> Codec:
    kind: Any = draw(st.sampled_from([Raw, Same, Planes, PackDelta, GroupedDelta]))
    return kind() if kind in (Raw, Same) else kind(draw(coders()))  # type: ignore[no-any-return]


def odd_values(bits: int) -> list[int]:
    """What tends to go wrong: the ends of ranges, and a float's infinities, NaNs, denormals and zeros."""
    exponent, mantissa = {8: (4, 3), 16: (8, 7), 32: (8, 23), 64: (11, 52)}[bits]
    infinity = ((1 << exponent) - 1) << mantissa
    found = {0, 1, 2, infinity - 1, infinity, infinity + 1, (1 << mantissa) - 1, 1 << mantissa, (1 << bits - 1) - 1}
    return sorted(found | {(1 << bits) - 1 - value for value in found})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """(block, base): bits at random or odd values, the base equal, near in most places, or anything."""
    bits = draw(st.sampled_from([8, 16, 32, 64]))
    dtype = np.dtype(f"<u{bits // 8}")
    size = draw(st.one_of(st.integers(0, 70), st.sampled_from([127, 128, 129, 1000, 4096, 25_000])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def values() -> Any:
        odd = np.array(odd_values(bits), dtype)
        found = rng.integers(0, 1 << bits - 1, size, dtype=np.uint64).astype(dtype) << dtype.type(1)
        match draw(st.integers(0, 3)):
            case 0:
                return np.frombuffer(draw(st.binary(min_size=32, max_size=32)), dtype)[
                    rng.integers(0, 32 * 8 // bits, size)
                ]
            case 1:
                return rng.choice(odd, size)
            case 2:
                return np.where(rng.random(size) < 0.02, rng.choice(odd, size), found)
        return found >> dtype.type(draw(st.integers(0, bits - 1)))

    base = values()
    match draw(st.sampled_from(["equal", "near", "near but for a few", "anything"])):
        case "equal":
            return base.copy(), base
        case "anything":
            return values(), base
        case relation:
            steps = values() >> dtype.type(draw(st.integers(0, bits - 1)))
            block = base + steps if draw(st.booleans()) else base - steps
            if relation != "near":
                block = np.where(rng.random(size) < draw(st.floats(0, 0.2)), values(), block)
            return block, base


@many
@given(pairs(), codecs())
def test_blocks_come_back_as_they_were(pair: tuple[Any, Any], codec: Codec) -> None:
    block, base = pair
    kept = block.copy(), base.copy()
    data = codec.encode(block, base if codec.needs_base else None)
    assert len(data) <= block.nbytes + 1
    out = np.empty_like(block)
    codec_of(codec.code, codec.params).decode(data, base if codec.needs_base else None, out)
    assert out.tobytes() == block.tobytes()
    assert (block.tobytes(), base.tobytes()) == tuple(array.tobytes() for array in kept)


@many
@given(pairs(), codecs(), st.data())
def test_damage_is_refused_or_read(pair: tuple[Any, Any], codec: Codec, draw: st.DataObject) -> None:
    block, base = pair
    data = bytearray(codec.encode(block, base))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, min(len(data) - 1, draw.draw(st.sampled_from([8, 100, 1 << 20])))))
        data[at] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.sampled_from([0, 0, 1, 5, 1000]))
    out = np.empty_like(block)
    try:
        codec.decode(bytes(data[: len(data) - cut]), base, out)
    except CorruptObject:
        pass


@many
@given(st.binary(max_size=300), st.integers(0, 4), st.integers(0, 100), codecs())
def test_any_bytes_are_refused_or_read(data: bytes, form: int, size: int, codec: Codec) -> None:
    for width in (1, 2, 4, 8):
        base = np.arange(size, dtype=f"<u{width}")
        try:
            codec.decode(bytes((form,)) + data, base, np.empty_like(base))
        except CorruptObject:
            pass


@settings(max_examples=100, deadline=None)
@given(pairs(), st.booleans(), st.booleans(), st.sampled_from(["auto", "raw", "planes", "pack", "grouped"]))
def test_what_is_chosen_is_about_as_short_as_was_said(pair: Any, alone: bool, aggressive: bool, codec: Any) -> None:
    block, base = pair
    config = DeltaConfig(codec=codec, entropy="deflate")
    samples = [(block[span], None if alone else base[span]) for span in spans(block.size)]
    found = choose(samples, config, aggressive=aggressive)
    assert 0 <= found.ratio <= 1
    assert not (alone and found.codec.needs_base)
    if block.size and block.size <= 4096:  # the sample is all there is
        length = len(found.codec.encode(block, base))
        assert length / block.nbytes == pytest.approx(found.ratio, abs=2 / block.nbytes)
