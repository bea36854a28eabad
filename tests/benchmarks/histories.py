"""Repositories of the checkpoints of a series, and what can be read of how a commit is stored in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import cases
import numpy as np
import series

from coral import Repository
from coral.store import Chain

__all__ = ["build", "chains", "check", "disk", "linked", "newest_of_depth"]


def build(path: Path, checkpoints: Iterable[series.Tensors]) -> list[str]:
    """Commit checkpoints to a new repository, as they are; return the commits' ids."""
    shutil.rmtree(path, ignore_errors=True)
    with Repository(path, init=True, durability="batch") as repo:
        return [repo.commit(cases.weights(tensors)) for tensors in checkpoints]


def linked(path: Path, copy: Path) -> Path:
    """Return a copy of a repository that shares the memory of its files: coral never writes into one that it made."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy, copy_function=os.link)
    return copy


def chains(repo: Repository, ref: str) -> dict[str, Chain]:
    """Return, for each tensor of a commit, how its bytes are got at."""
    return repo.load(ref)._stored


def newest_of_depth(repo: Repository, ids: list[str], depth: int) -> int:
    """Return the place in `ids` of the newest commit whose weights, most of their bytes, lie `depth` differences deep.

    None of its tensors lies deeper.
    """
    for place in reversed(range(len(ids))):
        found = chains(repo, ids[place])
        kept = {name: chain for name, chain in found.items() if cases.part_of(name).kind == "weights"}
        deep = sum(chain.entry.nbytes for chain in kept.values() if chain.depth == depth)
        whole = sum(chain.entry.nbytes for chain in kept.values())
        if 2 * deep > whole and max(chain.depth for chain in found.values()) == depth:
            return place
    raise AssertionError(f"no commit of {repo.path} lies {depth} differences deep")


def check(repo: Repository, ref: str, tensors: series.Tensors) -> None:
    """Refuse a commit that is not these tensors, bit by bit."""
    loaded, saved = repo.load(ref), cases.weights(tensors)
    assert sorted(loaded) == sorted(saved), f"{ref} has not the tensors that were committed"
    for name, weight in saved.items():
        same = np.array_equal(loaded[name].data.view(np.uint8), weight.data.view(np.uint8))
        assert same, f"{name} of {ref} is not what was committed"


def disk(path: Path) -> int:
    """Return the bytes of all files below a folder; one that has two names counts once, one that goes meanwhile not."""
    sizes = {(found.st_dev, found.st_ino): found.st_size for found in _files(path)}
    return sum(sizes.values())


def _files(path: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                yield os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
