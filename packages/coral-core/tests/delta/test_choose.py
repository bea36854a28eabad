from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from coral.delta import BLOCK_ELEMENTS, Choice, DeltaConfig, GroupedDelta, PackDelta, Planes, Raw, choose, spans
from coral.delta._entropy import Deflate

CONFIG = DeltaConfig(entropy="deflate")
CODER = Deflate()


@pytest.fixture
def weights(words: Callable[..., Any]) -> Any:
    """Bits of floats of ten exponents."""
    exponents = np.uint32(110) + words(40_000, np.uint32, 1) % np.uint32(10)
    return (exponents << np.uint32(23)) | (words(40_000, np.uint32) >> np.uint32(9))


@pytest.fixture
def trained(weights: Any, words: Callable[..., Any]) -> Any:
    """The same a little later: all have moved by about as much, whatever their size."""
    return weights + (words(40_000, np.uint32, 2) >> ((weights >> np.uint32(23)) - np.uint32(90)))


def ratio(codec: Any, block: Any, base: Any) -> float:
    return len(codec.encode(block, base)) / float(block.nbytes)


def test_without_a_base_it_is_planes(weights: Any) -> None:
    assert choose([(weights, None)], CONFIG) == Choice(Planes(CODER), ratio(Planes(CODER), weights, None))
    assert isinstance(choose([(weights, weights), (weights, None)], CONFIG).codec, Planes)


def test_with_a_base_it_is_the_difference(weights: Any, trained: Any) -> None:
    assert choose([(trained, weights)], CONFIG) == Choice(PackDelta(CODER), ratio(PackDelta(CODER), trained, weights))


def test_grouping_is_for_the_aggressive(weights: Any, trained: Any) -> None:
    found = choose([(trained, weights)], CONFIG, aggressive=True)
    assert found == Choice(GroupedDelta(CODER), ratio(GroupedDelta(CODER), trained, weights))


def test_grouping_has_to_pay(weights: Any) -> None:
    found = choose([(weights + np.uint32(1), weights)], CONFIG, aggressive=True)
    assert isinstance(found.codec, PackDelta)


def test_a_base_that_is_of_no_use_is_left_alone(weights: Any, words: Callable[..., Any]) -> None:
    found = choose([(weights, words(weights.size, np.uint32, 9))], CONFIG)
    assert isinstance(found.codec, Planes)


def test_what_does_not_get_shorter_stays_raw(words: Callable[..., Any]) -> None:
    block, base = words(40_000, np.uint32), words(40_000, np.uint32, 1)
    for config in (CONFIG, DeltaConfig(codec="pack"), DeltaConfig(codec="grouped"), DeltaConfig(codec="planes")):
        assert choose([(block, base)], config, aggressive=True) == Choice(Raw(), 1.0)


@pytest.mark.parametrize(
    ("codec", "kind", "alone"),
    [("raw", Raw, Raw), ("planes", Planes, Planes), ("pack", PackDelta, Planes), ("grouped", GroupedDelta, Planes)],
)
def test_what_the_config_names(codec: Any, kind: type, alone: type, weights: Any, trained: Any) -> None:
    config = DeltaConfig(codec=codec, entropy="deflate", level=6)
    for aggressive in (False, True):
        found = choose([(trained, weights)], config, aggressive=aggressive)
        assert isinstance(found.codec, kind)
        assert isinstance(choose([(trained, None)], config, aggressive=aggressive).codec, alone)
    assert isinstance(found.codec, Raw) or found.codec.entropy == Deflate(6)


def test_what_is_equal_in_the_sample(weights: Any) -> None:
    """Elsewhere it may differ, and there a block has to be able to say so."""
    found = choose([(weights, weights.copy())], CONFIG)
    assert isinstance(found.codec, PackDelta)
    assert found.ratio < 0.001


def test_nothing_to_go_by() -> None:
    assert choose([], CONFIG) == Choice(Raw(), 1.0)
    empty = np.empty(0, np.uint16)
    assert choose([(empty, empty)], CONFIG) == Choice(Raw(), 1.0)


@pytest.mark.parametrize(
    "elements", [0, 1, 1000, 20_000, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 3 * BLOCK_ELEMENTS, 100 * BLOCK_ELEMENTS - 7]
)
def test_spans_lie_each_in_one_block_and_few_blocks_are_read(elements: int) -> None:
    found = spans(elements)
    assert all(0 <= span.start < span.stop <= elements for span in found)
    assert all(span.start // BLOCK_ELEMENTS == (span.stop - 1) // BLOCK_ELEMENTS for span in found)
    assert all(a.stop <= b.start for a, b in pairwise(found))
    assert len({span.start // BLOCK_ELEMENTS for span in found}) <= 3
    if elements:
        assert found[0].start == 0
        assert found[-1].stop == elements
    assert sum(span.stop - span.start for span in found) == elements or elements > 16_384


def test_spans_are_all_over_a_block() -> None:
    starts = [span.start for span in spans(BLOCK_ELEMENTS)]
    assert len(starts) >= 8
    assert max(np.diff(starts)) < BLOCK_ELEMENTS // 8
