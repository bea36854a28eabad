"""Requests of a push and of a pull, broken between the real client of an object store and a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.remotes.breaking import Breaking

from coral import CoralError, Repository
from coral.remotes import open_remote

KINDS = ("500", "cut", "429", "lost", "twice", "truncated", "503", "wrong")


def push_and_pull(between: Breaking, place: str, folder: Path, every: int) -> int:
    """Break one request in `every`, or all from it on, the kinds taking turns; every one in every way if that is 1.

    The branch is old or new, what is there is whole, and the same again succeeds. Returns the number of cases.
    """
    repo = Repository(folder / "ours", init=True, durability="fast")
    weights = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    first = repo.commit({"w": weights}, "first")
    repo.branch("first")
    second = repo.commit({"w": weights + np.float32(1e-6)}, "second", "first")
    repo.branch("old", first)
    at = f"{place}/counted"
    repo.push(at, "first")
    remote = open_remote(at)
    before = {file.name: remote.get(file.name, 1 << 30) for file in remote.list("")}
    third = repo.commit({"w": weights + np.float32(2e-6)}, "third", "first")
    between.begin()
    repo.push(at, "first")
    count = between.requests
    cases = [
        (number, kind)
        for number in range(0, 2 * count, every)
        for kind in (KINDS if every == 1 else [KINDS[number // every % len(KINDS)]])
    ]
    for number, kind in cases:
        always, begins = number >= count, number % count

        def fault(n: int, always: bool = always, begins: int = begins, kind: str = kind) -> str | None:
            return kind if (n >= begins if always else n == begins) else None

        at = f"{place}/{kind}-{number}"
        between.begin()
        remote = open_remote(at)
        for name, data in before.items():
            remote.put(name, memoryview(data))
        between.begin(fault)
        failed = False
        try:
            repo.push(at, "first")
        except CoralError:
            failed = True
        between.begin()
        found = Repository.clone(at, folder / f"{kind}-{number}", durability="fast")
        assert found.fsck().ok
        assert found.resolve("first") in ({second, third} if failed else {third})
        repo.push(at, "first")
        between.begin(fault)
        try:
            found.pull(branch="first")
        except CoralError:
            assert found.resolve("first") in (second, third)
        between.begin()
        found.pull(branch="first")
        assert found.resolve("first") == third
        assert found.fsck().ok
    return len(cases)
