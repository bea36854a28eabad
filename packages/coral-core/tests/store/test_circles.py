"""Two tensors, each of which is stored as a difference from the other, too: what repacks that were killed can leave."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral._digest import fold, sha256
from coral.delta import Deflate, PackDelta
from coral.errors import CorruptObject
from coral.store import intent
from coral.store._chain import encoded
from coral.store._pack import Entry
from coral.store._pack_writer import PackWriter

CODEC = PackDelta(Deflate())
ARRAYS = {name: np.arange(3000, dtype=np.uint8) + np.uint8(7 * number) for number, name in enumerate("xyzv")}
IDS = {name: WeightTensor(array).id for name, array in ARRAYS.items()}


def put(repo: Repository, *pairs: tuple[str, str]) -> None:
    """Write a pack with tensors, each as a difference from another one."""

    def fill(writer: PackWriter) -> None:
        for name, base in pairs:
            array = ARRAYS[name]
            entry = Entry(
                IDS[name], "tensor", CODEC.code, CODEC.params, IDS[base], "uint8", array.shape, 0, 0, array.nbytes,
                sha256(array), [],
            )  # fmt: skip
            writer.add_stored(entry, encoded([(bytes(CODEC.encode(array, ARRAYS[base])), fold(array))]))

    with intent(repo.store.fs, "repack", []) as operation:
        repo.store.write_pack(fill, operation)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True)


@pytest.mark.parametrize("order", [*permutations([("y", "x"), ("x", "y"), ("y", "z")])], ids=str)
def test_each_copy_is_read_by_the_way_that_there_is(repo: Repository, order: tuple[tuple[str, str], ...]) -> None:
    repo.commit({"w": ARRAYS["z"]})
    for name, base in order:
        put(repo, (name, base))
    found = Repository(repo.path)
    assert found.fsck().problems == []
    for name in ("x", "y"):
        with found.store.copies() as copies:
            chain = copies.get(IDS[name], name, "0" * 64)
            chain.verify()
            out = np.empty(3000, np.uint8)
            chain.read(0, out)
            assert np.array_equal(out, ARRAYS[name])


def test_a_circle_that_nothing_leads_out_of_is_damage(repo: Repository) -> None:
    put(repo, ("y", "x"))
    put(repo, ("x", "y"))
    found = Repository(repo.path)
    assert len(found.fsck().problems) == 2
    with found.store.copies() as copies, pytest.raises(CorruptObject, match="leads back to itself"):
        copies.get(IDS["x"], "x", "0" * 64)


@pytest.mark.parametrize("names", [*permutations("vxy")], ids="".join)
@pytest.mark.parametrize("last", [True, False])
def test_what_such_a_copy_stands_for_is_collected(repo: Repository, names: tuple[str, ...], *, last: bool) -> None:
    """The base of `y` leads to it by one of its copies, and not by the other."""
    ids = {name: repo.commit({"w": ARRAYS[name]}) for name in names}
    repo.commit({"w": ARRAYS["z"]})
    put(repo, ("x", "z"))
    repo.gc()
    packs: list[tuple[tuple[str, str], ...]] = [(("x", "y"),), (("y", "x"), ("v", "z"))]
    for pairs in packs if last else packs[::-1]:
        put(repo, *pairs)
    Repository(repo.path).gc()
    found = Repository(repo.path)
    assert found.stats().reclaimable_bytes == 0
    assert found.fsck().problems == []
    for name, id in ids.items():
        assert np.array_equal(found.load(id)["w"].data, ARRAYS[name])


def test_what_a_copy_is_read_by_is_not_let_go(tmp_path: Path) -> None:
    """`x` is a difference from `y`, whose better copy is damaged; the other one is from what nothing else needs."""
    repo = Repository(tmp_path / "repo", init=True)
    noise = np.random.default_rng(0).integers(0, 256, 3000, np.uint8)
    kept = {f"kept {n}": np.random.default_rng(n).integers(0, 256, 30_000, np.uint8) for n in range(1, 5)}
    id = repo.commit({"w": ARRAYS["x"]})
    repo.commit({"w": ARRAYS["z"]})

    def raw(writer: PackWriter, *arrays: np.ndarray) -> None:
        for array in arrays:
            writer.add_tensor(WeightTensor(array).id, "uint8", array.shape, array, sha256(array), [fold(array)])

    def other(writer: PackWriter) -> None:
        raw(writer, *kept.values())
        entry = Entry(
            IDS["y"], "tensor", CODEC.code, CODEC.params, WeightTensor(noise).id, "uint8", (3000,), 0, 0, 3000,
            sha256(ARRAYS["y"]), [],
        )  # fmt: skip
        writer.add_stored(entry, encoded([(bytes(CODEC.encode(ARRAYS["y"], noise)), fold(ARRAYS["y"]))]))

    with intent(repo.store.fs, "repack", []) as operation:
        repo.store.write_pack(lambda writer: raw(writer, noise), operation)
        repo.store.write_pack(other, operation)
    repo.commit({"w": ARRAYS["z"], **kept})
    put(repo, ("x", "y"))
    before = {*(repo.path / "packs").iterdir()}
    put(repo, ("y", "z"))
    (path,) = {*(repo.path / "packs").iterdir()} - before
    data = bytearray(path.read_bytes())
    data[70] ^= 1  # the first tensor begins at 64
    path.write_bytes(data)
    assert np.array_equal(Repository(repo.path).load(id)["w"].data, ARRAYS["x"])
    Repository(repo.path).gc()
    assert np.array_equal(Repository(repo.path).load(id)["w"].data, ARRAYS["x"])
