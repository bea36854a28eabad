"""What the tests of coral.delta share: blocks to encode, made by integers alone, and the coders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from coral.delta import Deflate, Zstd
from coral.delta._entropy import _zstd

WITHOUT_ZSTD = pytest.mark.skipif(_zstd() is None, reason="zstd is not installed: pip install 'coral-core[zstd]'")

CODERS = [
    pytest.param(Deflate(), id="deflate"),
    pytest.param(Deflate(9), id="deflate-9"),
    pytest.param(Zstd(), id="zstd", marks=WITHOUT_ZSTD),
    pytest.param(Zstd(19), id="zstd-19", marks=WITHOUT_ZSTD),
]


@pytest.fixture(params=CODERS)
def coder(request: pytest.FixtureRequest) -> Any:
    """Each entropy coder, at its fast setting and at a level."""
    return request.param


@pytest.fixture(params=[np.uint8, np.uint16, np.uint32, np.uint64])
def dtype(request: pytest.FixtureRequest) -> Any:
    """The carriers of each width."""
    return request.param


@pytest.fixture(scope="session")
def words() -> Callable[..., Any]:
    """Makes `size` integers that look like chance, the same wherever and whenever this runs (splitmix64)."""

    def make(size: int, dtype: Any, seed: int = 0) -> Any:
        z = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 32)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(dtype)

    return make


@pytest.fixture(scope="session")
def pairs(words: Callable[..., Any]) -> Callable[[int, Any], Iterator[tuple[str, Any, Any]]]:
    """Yields (name, block, base) of one size and dtype: all that may go wrong with bits."""

    def make(size: int, dtype: Any) -> Iterator[tuple[str, Any, Any]]:
        most = np.iinfo(dtype).max
        base, other = words(size, dtype), words(size, dtype, 1)
        steps = words(size, np.uint64, 2)
        yield "chance", other, base
        yield "equal", base.copy(), base
        yield "up a little", base + (steps % np.uint64(11)).astype(dtype), base
        yield "down a little", base - (steps % np.uint64(300)).astype(dtype), base
        yield "a few changed", np.where(steps % np.uint64(50) == 0, other, base), base
        yield "one changed", np.where(np.arange(size) == size - 1, base + dtype(1), base), base
        yield "extremes in turn", in_turn(size, [0, most], dtype), in_turn(size, [most, 0], dtype)
        yield "halves", in_turn(size, [most // 2, most // 2 + 1], dtype), in_turn(size, [most, 0, 1], dtype)
        yield "zeros on chance", np.zeros(size, dtype), base
        yield "chance on zeros", base, np.zeros(size, dtype)
        yield "a constant", np.full(size, most - 1, dtype), np.full(size, 3, dtype)
        yield "all sizes", base + (dtype(1) << (steps % np.uint64(np.dtype(dtype).itemsize * 8)).astype(dtype)), base
        yield from floats(base, steps)

    def in_turn(size: int, values: list[int], dtype: Any) -> Any:
        return np.array(values, dtype)[np.arange(size) % len(values)]

    def floats(base: Any, steps: Any) -> Iterator[tuple[str, Any, Any]]:
        bits = base.dtype.itemsize * 8
        exponent = {8: 0x78, 16: 0x7F80, 32: 0x7F800000, 64: 0x7FF0000000000000}[bits]
        kind = base.dtype.type
        yield "NaN payloads", base | kind(exponent), base[::-1].copy() | kind(exponent)
        yield "denormals", base & kind(~exponent & np.iinfo(kind).max), base[::-1].copy() & kind(exponent)
        signs = (steps & np.uint64(1)).astype(kind) << kind(bits - 1)
        yield "zeros of either sign", signs, np.zeros_like(base)
        weights = kind(exponent // 2) + (base >> kind(3))
        yield "weights", weights + (steps % np.uint64(97)).astype(kind) - kind(48), weights

    return make
