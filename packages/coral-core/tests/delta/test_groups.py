"""What makes a group is part of the format: the reader finds it from the base alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral.delta import BLOCK_ELEMENTS
from coral.delta._groups import order


def base_of(*exponents: tuple[int, int]) -> Any:
    """(exponent, count) pairs: float32s of those exponents, each with other mantissas and signs."""
    found = np.concatenate([np.full(count, exponent, np.uint32) for exponent, count in exponents]) << np.uint32(23)
    return (
        found
        | (np.arange(found.size, dtype=np.uint32) & np.uint32(0x807FFFFF))
        | (np.arange(found.size, dtype=np.uint32) << np.uint32(31))
    )


def sizes(base: Any) -> list[int]:
    return [group.stop - group.start for group in order(base)[1]]


def test_elements_keep_their_order_in_a_group(dtype: Any, words: Callable[..., Any]) -> None:
    for size in (0, 1, 100, 5_000, 70_001, BLOCK_ELEMENTS):
        places, groups = order(words(size, dtype))
        assert np.array_equal(np.sort(places), np.arange(size))
        assert [group.start for group in groups] == [0, *(group.stop for group in groups[:-1])]
        assert groups[-1].stop == size
        for group in groups:
            assert np.all(np.diff(places[group]) > 0)


def test_the_highest_exponents_come_first() -> None:
    base = base_of((100, 2000), (120, 3000), (110, 4000))
    places, groups = order(base)
    exponents = base[places] >> np.uint32(23) & np.uint32(255)
    assert [set(exponents[group].tolist()) for group in groups] == [{120}, {110}, {100}]
    assert sizes(base) == [3000, 4000, 2000]


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ([(9, 1024), (8, 1024)], [1024, 1024]),
        ([(9, 1023), (8, 1025)], [2048]),
        ([(9, 1025), (8, 1023)], [2048]),
        ([(9, 1000), (8, 24), (7, 1024), (6, 2000)], [1024, 1024, 2000]),
        ([(9, 1250), (8, 17_500), (7, 1250)], [1250, 17_500, 1250]),  # a sixteenth of 20,000
        ([(9, 1249), (8, 17_501), (7, 1250)], [18_750, 1250]),
        ([(9, 20_000)], [20_000]),
    ],
)
def test_a_group_has_a_sixteenth_and_1024(exponents: list[tuple[int, int]], expected: list[int]) -> None:
    assert sizes(base_of(*exponents)) == expected


def test_of_a_large_block_one_element_in_so_many_is_counted() -> None:
    base = base_of((9, BLOCK_ELEMENTS))
    base[1::16] = np.uint32(8 << 23)  # 1 of 16, none of them counted
    assert sizes(base) == [BLOCK_ELEMENTS]
    base[0::16] = np.uint32(8 << 23)
    base[0:BLOCK_ELEMENTS:32] = np.uint32(9 << 23)
    assert sizes(base) == [BLOCK_ELEMENTS * 14 // 16 + BLOCK_ELEMENTS // 32, BLOCK_ELEMENTS * 3 // 32]


@pytest.mark.parametrize(("dtype", "shift"), [(np.uint8, 0), (np.uint16, 7), (np.uint32, 23), (np.uint64, 55)])
def test_the_key_is_the_top_byte_behind_the_sign(dtype: Any, shift: int) -> None:
    keys = np.repeat(np.array([5, 6, 7], np.uint64), 1500)
    base = (keys << np.uint64(shift)).astype(dtype) if shift else np.repeat(np.array([2, 3, 1], np.uint8), 1500)
    assert sizes(base) == [1500, 1500, 1500]
    assert order(base)[0][0] == (1500 if not shift else 3000)
