"""Any tensors, committed in any order of changes, are loaded as they were; ids tell them apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coral import Repository, WeightTensor
from coral._digest import fold
from coral.weights import DTYPES

commits = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tensors(draw: st.DrawFn) -> WeightTensor:
    """Bits at random in any dtype, shape, byte order and layout."""
    name = draw(st.sampled_from(list(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    carrier = np.dtype(DTYPES[name].carrier)
    size = int(np.prod(shape, dtype=int)) * carrier.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    data: Any = (raw & 1 if name == "bool" else raw).view(carrier).reshape(shape)
    match draw(st.integers(0, 3)):
        case 1 if data.ndim:
            data = np.asfortranarray(data)
        case 2 if data.ndim:
            data = np.repeat(data, 2, axis=0)[::2]
        case 3:
            data = data.byteswap().view(carrier.newbyteorder(">")) if carrier.itemsize > 1 and data.size else data
    return WeightTensor(data, dtype=name)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
WEIGHTS = st.dictionaries(NAMES, tensors(), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def repo() -> Iterator[Repository]:
    with tempfile.TemporaryDirectory() as folder:
        yield Repository(Path(folder) / "repo", init=True, durability="fast")


def facts(weights: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (t.dtype, t.shape, t.bytes().tobytes()) for name, t in weights.items()}


@commits
@given(WEIGHTS)
def test_weights_come_back_as_they_were(repo: Repository, weights: dict[str, WeightTensor]) -> None:
    id = repo.commit(weights)
    assert facts(repo.load(id)) == facts(weights)
    assert facts(Repository(repo.path).load(id)) == facts(weights)
    assert {name: entry.id for name, entry in repo.tree(id).items()} == {name: t.id for name, t in weights.items()}


@commits
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), min_size=1), min_size=2, max_size=5))
def test_a_series_of_changes(repo: Repository, series: list[dict[str, int]]) -> None:
    made = [{name: WeightTensor(np.full(3, value)) for name, value in names.items()} for names in series]
    ids = [repo.commit(weights) for weights in made]
    for id, weights in zip(ids, made, strict=True):
        assert facts(repo.load(id)) == facts(weights)
    for one, old in zip(ids, series, strict=True):
        for two, new in zip(ids, series, strict=True):
            diff = repo.diff(one, two)
            assert diff.added == sorted(new.keys() - old.keys())
            assert diff.removed == sorted(old.keys() - new.keys())
            assert diff.modified == sorted(n for n in old.keys() & new.keys() if old[n] != new[n])
            assert diff.identical == (old == new)


def test_what_was_committed_above_is_whole(repo: Repository) -> None:
    assert repo.fsck().ok


@settings(max_examples=200, deadline=None)
@given(tensors(), tensors())
def test_ids_are_equal_only_where_everything_is(one: WeightTensor, two: WeightTensor) -> None:
    equal = (one.dtype, one.shape, one.bytes().tobytes()) == (two.dtype, two.shape, two.bytes().tobytes())
    assert (one.id == two.id) == equal


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=20_000), st.data())
def test_a_change_within_a_word_shows_in_the_folded_sum(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    change = draw.draw(st.integers(1, 255))
    bad = bytearray(data)
    bad[at] ^= change
    assert fold(np.frombuffer(bytes(bad), np.uint8)) != fold(np.frombuffer(data, np.uint8))
