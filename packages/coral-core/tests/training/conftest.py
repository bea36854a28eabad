"""What the tests of runs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd


class Weights:
    """A source of one tensor, every element of which is the step, and of one that never changes."""

    def __init__(self, nbytes: int = 64, *, frozen: int = 4) -> None:
        self.weight = np.zeros(nbytes // 4, np.float32)
        self.frozen = np.ones(frozen // 4, np.float32)

    def capture(self, *, copy: bool = True) -> Snapshot:
        weight = self.weight.copy() if copy else self.weight
        return Snapshot({"w": WeightTensor(weight), "frozen": WeightTensor(self.frozen)})

    def restore(self, snapshot: Snapshot) -> None:
        self.weight[:] = snapshot.weights["w"].data


class Training:
    """A run of a manager in a repository, a step at a time."""

    def __init__(self, repo: Repository, nbytes: int = 64, *, frozen: int = 4, **options: Any) -> None:
        self.repo = repo
        self.source = Weights(nbytes, frozen=frozen)
        config = CheckpointConfig(**{"durability": "fast", "background_repack": False, **options})
        self.manager = CheckpointManager(repo, config, self.source)
        self.at = 0

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.at += 1
            self.source.weight[:] = self.at
            self.manager.emit(StepEnd(self.at))

    def saved(self, *, pruned: bool | None = None) -> list[int | None]:
        self.manager.wait()
        return [c.step for c in reversed(self.repo.log("main")) if pruned is None or c.pruned == pruned]

    def reasons(self) -> dict[int | None, set[str]]:
        self.manager.wait()
        return {commit.step: set(commit.reasons) for commit in self.repo.log("main")}


@pytest.fixture(scope="session")
def training() -> Callable[..., Training]:
    return Training
