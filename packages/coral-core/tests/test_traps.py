"""The traps that an earlier system fell into, one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral.errors import CoralError, CorruptObject, UnsafeInput

Bits = Callable[[Any, Any], None]
Python = Callable[..., Any]


@pytest.mark.parametrize("size", [100, 500_000])
def test_trap_a_checkpoint_is_no_view_of_live_parameters(repo: Repository, assert_bits: Bits, size: int) -> None:
    live = np.zeros(size, np.float32)
    state = {"momentum": np.zeros(size, np.float32)}
    ids = []
    for step in range(11):
        live += 1
        state["momentum"] += 2
        ids.append(repo.commit({"w": WeightTensor(live) if step % 2 else live}, state=state))
    for step, id in enumerate(ids, 1):
        assert_bits(repo.load(id)["w"], np.full(size, step, np.float32))
        assert_bits(repo.load_state(id)["momentum"], np.full(size, 2 * step, np.float32))


def test_trap_a_tensor_whose_id_was_asked_for_and_that_then_changed(repo: Repository, assert_bits: Bits) -> None:
    tensor = WeightTensor(np.zeros(10))
    first = repo.commit({"w": tensor})
    assert tensor.id == repo.load(first)["w"].id
    tensor.data[:] = 1
    second = repo.commit({"w": tensor})
    assert_bits(repo.load(second)["w"], np.ones(10))
    assert_bits(repo.load(first)["w"], np.zeros(10))
    assert repo.diff(first, second).modified == ["w"]


def test_trap_a_stale_delta_similar_then_unrelated(repo: Repository, assert_bits: Bits) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(300_000).astype(np.float32)
    b = a + np.float32(1e-6)
    c = rng.standard_normal(300_000).astype(np.float32)
    ids = [repo.commit({"w": data}) for data in (a, b, c)]
    for id, data in zip(ids, (a, b, c), strict=True):
        assert_bits(Repository(repo.path).load(id)["w"], data)


@pytest.mark.parametrize("size", [50, 300_000])
def test_trap_a_b_a_the_third_is_the_first(repo: Repository, assert_bits: Bits, size: int) -> None:
    a, b = np.zeros(size), np.zeros(size)
    b[-1] = 1
    for data in (a, b, a, b, b, a):
        id = repo.commit({"w": data})
        assert_bits(repo.load(id)["w"], data)
        assert_bits(Repository(repo.path).load()["w"], data)


def test_trap_a_small_change_shows_in_diff(repo: Repository) -> None:
    base = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    changed = base.copy()
    changed.view(np.uint32)[399_999] ^= 1
    first, second = repo.commit({"w": base}), repo.commit({"w": changed})
    assert repo.diff(first, second).modified == ["w"]
    assert repo.load(first)["w"].id != repo.load(second)["w"].id == WeightTensor(changed).id


@pytest.mark.parametrize("dtype", ["float64", "int64", "float32", "float16", "complex128"])
def test_trap_lossless_is_lossless_after_many_checkpoints(repo: Repository, assert_bits: Bits, dtype: str) -> None:
    rng = np.random.default_rng(0)
    given = []
    for _ in range(5):
        given.append(rng.integers(0, 256, 20_000 * np.dtype(dtype).itemsize, np.uint8).view(dtype))
        repo.commit({"w": given[-1]})
    for number, data in enumerate(reversed(given)):
        assert_bits(repo.load(f"HEAD~{number}")["w"], data)


def test_trap_opening_again_after_a_checkpoint(repo: Repository, folder: Path, python: Python) -> None:
    repo.commit({"w": np.arange(3)})
    found = python(
        "import sys, json; from coral import Repository\n"
        "print(json.dumps(Repository(sys.argv[1]).load()['w'].data.tolist()))",
        folder,
    )
    assert found == [0, 1, 2]


def test_trap_a_second_run_with_init(folder: Path) -> None:
    for number in range(3):
        Repository(folder, init=True, durability="fast").commit({"w": np.full(2, number)})
    assert len(Repository(folder, init=True).log()) == 3


def test_trap_optimizer_state_survives(repo: Repository) -> None:
    moments = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    state = {
        "state": {0: {"exp_avg": moments, "step": 5}, 1: {}},
        "param_groups": [{"params": [0, 1], "betas": (0.9, 0.99)}],
    }
    repo.commit({"w": np.ones(1)}, state=state)
    found = repo.load_state()
    assert list(found["state"]) == [0, 1]
    assert found["state"][0]["exp_avg"].dtype == np.float32
    assert found["state"][0]["exp_avg"].tobytes() == moments.tobytes()
    assert found["param_groups"] == state["param_groups"]
    assert type(found["param_groups"][0]["betas"]) is tuple
    assert repo.stats().stored_bytes < 1.2 * moments.nbytes


def test_trap_random_states_survive(repo: Repository) -> None:
    import random

    python, legacy, new = random.Random(3), np.random.RandomState(3), np.random.default_rng(3)
    repo.commit(
        {"w": np.ones(1)},
        state={"python": python.getstate(), "legacy": legacy.get_state(), "new": new.bit_generator.state},
    )
    expected = (python.random(), legacy.rand(), new.random())
    found = repo.load_state()
    python.setstate(found["python"])
    legacy.set_state(found["legacy"])
    new.bit_generator.state = found["new"]
    assert (python.random(), legacy.rand(), new.random()) == expected


def test_trap_bf16_and_0d_buffers(repo: Repository, assert_bits: Bits) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    repo.commit({"bf16": WeightTensor(bits, dtype="bfloat16"), "num_batches_tracked": np.array(17)})
    found = repo.load()
    assert (found["bf16"].dtype, found["num_batches_tracked"].shape) == ("bfloat16", ())
    assert_bits(found["bf16"], bits)
    assert int(found["num_batches_tracked"].data) == 17


def test_trap_branch_does_something(repo: Repository) -> None:
    main = repo.commit({"w": np.zeros(1)})
    other = repo.commit({"w": np.ones(1)}, branch="other")
    assert repo.branches() == {"main": main, "other": other}


def test_trap_metadata_and_metrics_are_kept(repo: Repository) -> None:
    repo.commit({"w": np.zeros(1)}, metadata={"k": 1}, metrics={"loss": 0.5}, reasons=["best"])
    commit = Repository(repo.path).show()
    assert (commit.metadata, commit.metrics, commit.reasons) == ({"k": 1}, {"loss": 0.5}, ("best",))


def test_trap_short_ids_and_branch_names_resolve(repo: Repository) -> None:
    id = repo.commit({"w": np.zeros(1)})
    for opened in (repo, Repository(repo.path)):
        for ref in (id, id[:6], id[:8], "main", "HEAD"):
            assert opened.resolve(ref) == opened.load(ref)._commit == id


def test_trap_tags_are_there_in_a_new_repository_object(repo: Repository) -> None:
    id = repo.commit({"w": np.zeros(1)})
    repo.tag("v1")
    assert Repository(repo.path).tags() == {"v1": id}
    assert Repository(repo.path).resolve("v1") == id


@pytest.mark.parametrize("name", ["../../../pwned", "..", "/tmp/pwned", "a/../../pwned", "refs/../../pwned"])
def test_trap_a_ref_writes_nothing_outside(repo: Repository, tmp_path: Path, name: str) -> None:
    repo.commit({"w": np.zeros(1)})
    for attempt in (repo.branch, repo.tag, lambda name: repo.commit({"w": np.ones(1)}, branch=name)):
        with pytest.raises(UnsafeInput):
            attempt(name)
    with pytest.raises(CoralError):
        repo.load(name)
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    assert not list(tmp_path.rglob("*pwned*"))


@pytest.mark.parametrize("size", [0, 1, 10, 60])
def test_trap_a_truncated_ref_is_a_corrupt_object(repo: Repository, folder: Path, size: int) -> None:
    repo.commit({"w": np.zeros(1)})
    path = folder / "refs/heads/main/0000000001"
    path.write_bytes(path.read_bytes()[:size])
    for read in (repo.log, repo.load, repo.branches, lambda: Repository(folder).resolve("main")):
        with pytest.raises(CorruptObject):
            read()


def test_trap_a_truncated_pack_is_a_corrupt_object(repo: Repository, folder: Path) -> None:
    repo.commit({"w": np.zeros(100)})
    (pack,) = (folder / "packs").iterdir()
    data = pack.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        pack.write_bytes(data[:size])
        for read in (Repository(folder).log, Repository(folder).load):
            with pytest.raises(CorruptObject):
                read()


def test_trap_a_damaged_tensor_is_never_handed_out(repo: Repository, folder: Path, flip: Callable[..., None]) -> None:
    id = repo.commit({"good": np.ones(5), "bad": np.full(1000, 7.0)})
    (pack,) = (folder / "packs").iterdir()
    flip(pack, pack.read_bytes().index(np.full(1000, 7.0).tobytes()) + 555)
    loaded = Repository(folder).load()
    assert loaded["good"].data.tolist() == [1] * 5
    for _ in range(2):
        with pytest.raises(CorruptObject, match=r"'bad'.*fsck") as caught:
            loaded["bad"].data  # noqa: B018
    assert (caught.value.tensor, caught.value.commits) == ("bad", [id])
    assert caught.value.path == f"packs/{pack.name}"
