"""What is committed comes back, bit by bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral.errors import WeightsMismatch
from coral.weights import DTYPES

Bits = Callable[[Any, Any], None]
Weights = Callable[..., dict[str, np.ndarray]]


def random_bits(dtype: str, count: int = 64) -> np.ndarray:
    """Every bit at random: NaN payloads, infinities and denormals among them."""
    kind = np.dtype(DTYPES[dtype].carrier)
    raw = np.random.default_rng(DTYPES[dtype].code).integers(0, 256, count * kind.itemsize, np.uint8)
    return raw.view(kind) if dtype != "bool" else (raw & 1).view(kind)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(64,), (4, 2, 8), (1,), (), (0,), (3, 0)], ids=str)
def test_every_dtype_in_every_shape(repo: Repository, assert_bits: Bits, dtype: str, shape: tuple[int, ...]) -> None:
    data = random_bits(dtype)[: int(np.prod(shape))].reshape(shape)
    repo.commit({"t": WeightTensor(data, dtype=dtype)})
    found = repo.load()["t"]
    assert (found.dtype, found.shape, found.nbytes) == (dtype, shape, data.nbytes)
    assert_bits(found, data)
    assert found.id == WeightTensor(data, dtype=dtype).id


def test_signed_zeros_and_nan_payloads(repo: Repository, assert_bits: Bits) -> None:
    bits = np.array([0x7F800001, 0x7FC12345, 0xFFFFFFFF, 0x80000000, 0, 0x7F800000], np.uint32)
    first = repo.commit({"a": bits.view(np.float32)})
    second = repo.commit({"a": (bits ^ np.uint32(1)).view(np.float32)})
    assert_bits(repo.load(first)["a"], bits.view(np.float32))
    assert_bits(repo.load(second)["a"], (bits ^ np.uint32(1)).view(np.float32))
    assert repo.diff(first, second).modified == ["a"]


def test_a_zero_that_changes_its_sign_is_a_change(repo: Repository) -> None:
    first = repo.commit({"a": np.zeros(3)})
    second = repo.commit({"a": -np.zeros(3)})
    assert repo.diff(first, second).modified == ["a"]
    assert np.signbit(repo.load(second)["a"].data).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [6, 600])  # the larger one is more than a block
def test_input_in_any_layout(repo: Repository, assert_bits: Bits, rows: int) -> None:
    base = np.random.default_rng(0).standard_normal((rows, 1000)).astype(np.float32)
    given = {
        "transposed": base.T,
        "sliced": base[1::2, ::3],
        "reversed": base[::-1],
        "fortran": np.asfortranarray(base),
        "big_endian": base.astype(">f4"),
        "broadcast": np.broadcast_to(base[0], (rows, 1000)),
        "read_only": np.frombuffer(base.tobytes(), np.float32).reshape(base.shape),
    }
    repo.commit(given)
    for name, tensor in repo.load().items():
        assert_bits(tensor, np.ascontiguousarray(given[name].astype("<f4")))
        assert tensor.data.flags.writeable


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 4, (1 << 20) - 4, 5 << 20, (3 << 20) + 100])
def test_sizes_about_a_block(repo: Repository, assert_bits: Bits, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    repo.commit({"a": data, "b": data[:100]})
    assert_bits(repo.load()["a"], data)
    data[size - 1] ^= 1
    repo.commit({"a": data, "b": data[:100]})
    assert_bits(repo.load()["a"], data)


@pytest.mark.parametrize("size", [100, 1 << 20, (1 << 20) + 4096, (1 << 20) + 100, (3 << 20) - 8])
def test_what_is_done_to_a_loaded_tensor_shows_nowhere_else(repo: Repository, size: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    repo.commit({"a": data, "b": data.copy()})
    loaded = repo.load()
    one, two, three = loaded["a"].data, loaded["a"].data, loaded["b"].data
    other = repo.load()["a"].data
    one[:] = 0
    for view in (two, three, other, repo.load()["a"].data, Repository(repo.path).load()["a"].data):
        assert np.array_equal(view, data)
    del one, two, three, other, view
    gc.collect()
    assert np.array_equal(loaded["a"].data, data)
    assert repo.fsck().ok


def test_a_loaded_tensor_can_be_changed_and_committed(repo: Repository, assert_bits: Bits, weights: Weights) -> None:
    repo.commit(weights(big=True))
    loaded = {name: tensor for name, tensor in repo.load().items()}  # noqa: C416  # each is read once, and kept
    loaded["big"].data[5] += 1
    loaded["layer.bias"].data[0] = -1
    second = repo.commit(loaded)
    assert repo.diff("HEAD~1").modified == ["big", "layer.bias"]
    expected = weights(big=True)
    expected["big"][5] += 1
    expected["layer.bias"][0] = -1
    assert_bits(repo.load(second), expected)


def test_two_names_of_one_tensor(repo: Repository, assert_bits: Bits) -> None:
    shared = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    repo.commit({"embed": shared, "head": shared})
    assert repo.stats().stored_bytes < 1.1 * shared.nbytes
    loaded = repo.load()
    one, two = loaded["embed"].data, loaded["head"].data
    assert loaded["embed"].id == loaded["head"].id
    one[0] = 99
    assert_bits(two, shared)


def test_only_what_changed_is_stored(repo: Repository, assert_bits: Bits) -> None:
    frozen = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    for number in range(5):
        repo.commit({"frozen": frozen.copy(), "head": np.full(10, number)})
    assert repo.stats().stored_bytes < 1.1 * frozen.nbytes
    assert repo.stats().raw_bytes == 5 * (frozen.nbytes + 80)
    for number in range(5):
        assert_bits(repo.load(f"HEAD~{number}"), {"frozen": frozen, "head": np.full(10, 4 - number)})


def test_a_tensor_under_another_name_is_not_stored_again(repo: Repository, assert_bits: Bits) -> None:
    data = np.random.default_rng(0).standard_normal(200_000)
    repo.commit({"old": data})
    size = repo.stats().stored_bytes
    repo.commit({"new": data})
    Repository(repo.path, durability="fast").commit({"x": np.ones(1)}, branch="other")
    Repository(repo.path, durability="fast").commit({"newest": data}, branch="other")
    assert repo.stats().stored_bytes < size + 100_000
    assert_bits(repo.load("other"), {"newest": data})


def test_a_tensor_that_changes_dtype_or_shape(repo: Repository, assert_bits: Bits) -> None:
    bits = np.arange(12, dtype=np.float32)
    every = [bits, bits.reshape(3, 4), bits.view(np.int32), bits.reshape(4, 3), bits[:6], bits.astype(np.float64)]
    ids = [repo.commit({"a": data}) for data in every]
    for id, data in zip(ids, every, strict=True):
        assert_bits(repo.load(id)["a"], data)
    assert len({repo.load(id)["a"].id for id in ids}) == len(every)


def test_loading_some_names(repo: Repository, assert_bits: Bits, weights: Weights) -> None:
    given = weights()
    repo.commit(given)
    found = repo.load(names=["steps", "layer.bias", "steps"])
    assert list(found) == ["steps", "layer.bias"]
    assert len(found) == 2
    assert found.entry("steps").nbytes == 8
    with pytest.raises(KeyError):
        found["layer.weight"]
    with pytest.raises(WeightsMismatch) as caught:
        repo.load(names=["steps", "nope", "gone"])
    assert caught.value.missing == ["nope", "gone"]


def test_names_keep_their_spelling(repo: Repository, weights: Weights) -> None:
    names = [
        "a/b",
        "a.b",
        "..",
        "/abs",
        "x" * 1024,
        "π",
        "weights/a",
        "state/a",
        "$tuple",
        "e\u0301",
        "é",
        "a\nb",
        "\x7f",
    ]
    repo.commit({name: np.array(n) for n, name in enumerate(names)}, state={"a": np.array(99)})
    assert {name: int(t.data) for name, t in repo.load().items()} == {name: n for n, name in enumerate(names)}


def test_loading_reads_nothing_until_asked(repo: Repository, folder: Any, flip: Callable[..., None]) -> None:
    repo.commit({"a": np.ones(100_000), "b": np.ones(3)})
    path = next((folder / "packs").iterdir())
    flip(path, 1000)
    assert repo.load()["a"].shape == (100_000,)
    assert repo.load()["b"].data.tolist() == [1, 1, 1]


def test_a_commit_takes_a_loaded_mapping(repo: Repository, assert_bits: Bits, weights: Weights, tmp_path: Any) -> None:
    given = weights(big=True)
    repo.commit(given)
    other = Repository(tmp_path / "other", init=True, durability="fast")
    other.commit(repo.load())
    assert_bits(other.load(), given)
