"""A difference whose base is damaged in one place is read with a copy that is elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from coral import DeltaConfig, Repository
from coral.errors import CorruptObject
from coral.store import Chain
from coral.store._pack import path_of

CONFIG = DeltaConfig(entropy="deflate", min_size=0)


def weights(step: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    return {"w": values + np.float32(step * 1e-6)}


@pytest.fixture
def repo(folder: Path, tmp_path: Path) -> Repository:
    """A repository with differences, into which a pack of another one was put that holds each base once more."""
    repo = Repository(folder, init=True)
    for step in range(4):
        repo.commit(weights(step), f"step {step}")
    repo.repack(config=CONFIG)
    other = Repository(tmp_path / "other", init=True)
    for step in range(4):
        other.commit(weights(step), f"again, step {step}")
    for pack in (other.path / "packs").iterdir():
        shutil.copy(pack, folder / "packs" / pack.name)
    return Repository(folder)


def differences(repo: Repository) -> dict[int, Chain]:
    """The differences that commits have, by step, each on the copy of its base that comes first."""
    found = {}
    for step, commit in enumerate(reversed(repo.log())):
        chains = repo.load(commit.id)._copies.chains(repo.tree(commit.id)["w"].id)
        deep = [chain for chain in chains if chain.depth]
        if deep:
            found[step] = deep[0]
    return found


def damage(repo: Repository, chain: Chain, link: int) -> None:
    stored = chain.links[link]
    with (repo.path / path_of(stored.pack.name)).open("r+b") as file:
        file.seek(stored.entry.offset + stored.entry.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 64]))


def test_another_copy_of_the_base_is_found(repo: Repository) -> None:
    (step, chain), *_ = differences(repo).items()
    ways = list(repo.load()._copies.chains(chain.entry.id))
    on = [way for way in ways if way.depth and way.links[0].pack.name == chain.links[0].pack.name]
    assert len({way.links[-1].pack.name for way in on}) > 1, "each copy of the base is a way of its own"
    damage(repo, chain, -1)
    for way in ways:  # what is left is the difference alone, and the other copy of its base
        if not way.depth:
            damage(repo, way, 0)
    again = Repository(repo.path)
    commit = list(reversed(again.log()))[step]
    np.testing.assert_array_equal(again.load(commit.id)["w"].data, weights(step)["w"])


def test_where_all_are_damaged_it_says_so(repo: Repository) -> None:
    (step, chain), *_ = differences(repo).items()
    damaged = set()
    for way in repo.load()._copies.chains(chain.entry.id):
        last = way.links[-1]
        if (last.pack.name, last.entry.offset) not in damaged:
            damaged.add((last.pack.name, last.entry.offset))
            damage(repo, way, -1)
    again = Repository(repo.path)
    commit = list(reversed(again.log()))[step]
    with pytest.raises(CorruptObject, match="fails its check"):
        _ = again.load(commit.id)["w"].data


def test_a_damaged_base_makes_no_difference_damaged_that_another_copy_is_whole_for(repo: Repository) -> None:
    bases = {chain.links[-1].entry.id: chain for chain in differences(repo).values()}
    (id, chain), *_ = bases.items()
    damage(repo, chain, -1)
    again = Repository(repo.path)
    (problem,) = again.fsck().problems
    assert (problem.object, problem.commits) == (id, ())
    assert again.gc().bytes_freed > 0
    assert Repository(repo.path).stats().reclaimable_bytes == 0
    assert Repository(repo.path).fsck().ok
    for step, commit in enumerate(reversed(again.log())):
        np.testing.assert_array_equal(Repository(repo.path).load(commit.id)["w"].data, weights(step)["w"])
