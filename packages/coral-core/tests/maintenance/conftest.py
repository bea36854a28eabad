"""Helpers for the tests of upkeep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.filesystem import LocalFileSystem
from coral.store._pack import Entry, read_directory

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def version() -> Callable[..., Arrays]:
    """Version `n` of weights of which little changes from one to the next, and some nothing."""
    rng = np.random.default_rng(5)
    weight, bias = (rng.standard_normal(size).astype(np.float32) for size in (30_000, 2_000))
    frozen = rng.standard_normal(3_000)

    def make(n: int) -> Arrays:
        moved = weight.copy()
        moved[n % 7 :: 97] += np.float32(n / 100)
        return {"weight": moved, "bias": bias * np.float32(1 + n / 1e4), "frozen": frozen, "n": np.array(n)}

    return make


@pytest.fixture
def grow(repo: Repository, version: Callable[..., Arrays]) -> Callable[..., list[str]]:
    """Commits some versions, with training state; returns the commits' ids."""

    def do(*numbers: int, branch: str | None = None) -> list[str]:
        state = {"m": np.arange(500.0), "steps": 3}
        return [repo.commit(version(n), f"version {n}", branch, state={**state, "n": n}) for n in numbers]

    return do


@pytest.fixture(scope="session")
def entries() -> Callable[[Path], dict[str, list[Entry]]]:
    """The entries of all packs, by id."""

    def find(folder: Path) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for path in (folder / "packs").iterdir():
            for entry in read_directory(LocalFileSystem(folder), path.stem).entries():
                found.setdefault(entry.id, []).append(entry)
        return found

    return find


@pytest.fixture
def restores(
    folder: Path, version: Callable[..., Arrays], assert_bits: Callable[..., None]
) -> Callable[[dict[str, int]], None]:
    """Asserts that commits load as the versions that they are, in a repository that is opened anew."""

    def check(commits: dict[str, int]) -> None:
        repo = Repository(folder)
        for commit, n in commits.items():
            assert_bits(repo.load(commit), version(n))
        assert repo.fsck().problems == []

    return check
