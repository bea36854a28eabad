"""However a history is repacked, reading takes as many differences as were allowed, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coral import DeltaConfig, Repository


def versions(count: int) -> list[np.ndarray]:
    """Noise that moves a little: keyframes as differences from the first one pay."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 20_000, np.uint32)
    found = []
    for _ in range(count):
        bits = bits + rng.integers(0, 3, bits.size, np.uint32)
        found.append(bits.view(np.float32))
    return found


def depths(repo: Repository) -> list[int]:
    return [repo.load(commit.id)._stored["w"].depth for commit in reversed(repo.log())]


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True, durability="fast")


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("patient", [False, True])
def test_as_deep_as_was_allowed(repo: Repository, most: int, every: int, *, patient: bool) -> None:
    config = DeltaConfig(group_size=3, max_depth=most)
    made = versions(26)
    for number, version in enumerate(made, 1):
        repo.commit({"w": version})
        if number % every == 0:
            repo.repack(config=config, patient=patient)
    repo.repack(config=config)
    assert max(depths(repo)) == most
    for commit, version in zip(reversed(repo.log()), made, strict=True):
        assert repo.load(commit.id)["w"].data.tobytes() == version.tobytes()


def test_a_second_branch_goes_no_deeper(repo: Repository) -> None:
    config = DeltaConfig(group_size=3)
    for version in versions(8):
        repo.commit({"w": version})
    repo.repack(config=config)
    repo.branch("other", "HEAD~3")
    repo.checkout("other")
    for version in versions(16)[8:]:
        repo.commit({"w": version})
        repo.repack(config=config)
    assert max(depths(repo)) == 2


def test_aggressive_goes_no_deeper(repo: Repository) -> None:
    for version in versions(14):
        repo.commit({"w": version})
    for _ in range(2):
        repo.repack(config=DeltaConfig(group_size=3))
        repo.repack(aggressive=True, config=DeltaConfig(group_size=3))
    assert max(depths(repo)) == 2
