from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from coral import WeightTensor
from coral.delta import Deflate, PackDelta, carrier
from coral.delta._symbols import marked, pack, packed_size, room, unpack
from coral.weights import DTYPES


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_a_carrier_that_its_bits_can_be_seen_as(name: str) -> None:
    dtype = carrier(name)
    assert dtype.kind == "u"
    assert dtype.itemsize in (1, 2, 4, 8)
    assert dtype.itemsize == min(8, DTYPES[name].itemsize)
    tensor = WeightTensor(np.zeros(6, DTYPES[name].carrier), dtype=name)
    assert tensor.bytes().view(dtype).nbytes == tensor.nbytes


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 63, 64, 65, 1001])
def test_symbols_are_packed_and_unpacked(width: int, count: int, words: Callable[..., Any]) -> None:
    shift = 0 if width == 8 else 8 - 2 * width if width < 4 else 4
    symbols = words(count, np.uint8)
    place = room(count, width, "test")
    place[:count] = symbols
    packed = pack(place, width, "test packed", shift=shift).copy()
    assert packed.size == packed_size(count, width)
    found = unpack(packed, width, "test found", shift=shift)[:count]
    assert np.array_equal(found, symbols & np.uint8(((1 << width) - 1) << shift))


def test_threads_do_not_share_scratch(pairs: Callable[..., Any]) -> None:
    codec = PackDelta(Deflate())

    def work(pair: tuple[str, Any, Any]) -> bool:
        _, block, base = pair
        out = np.empty_like(block)
        codec.decode(codec.encode(block, base), base, out)
        return out.tobytes() == block.tobytes()

    every = [pair for dtype in (np.uint16, np.uint32) for pair in pairs(20_000, dtype)] * 4
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, every))


@pytest.mark.parametrize("share", [0, 1, 3, 20, 500, 1000])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 5000])
def test_marks_are_found(share: int, count: int, words: Callable[..., Any]) -> None:
    marks = room(count, 1, "test")
    marks[:count] = words(count, np.uint64) % np.uint64(1000) < share
    assert np.array_equal(marked(marks, count), np.flatnonzero(marks[:count]))
