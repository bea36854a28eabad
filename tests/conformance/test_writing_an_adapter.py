"""docs/writing-an-adapter.md: its adapter is short, its loop trains, and its test passes the kit."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from tests.conformance.page import BLOCKS, CODE

from coral import Repository
from coral.testing import Schedule
from coral.testing.strategies import schedules
from coral.training import CheckpointConfig

TestNumpyCheckpoints = CODE.TestNumpyCheckpoints


def test_the_adapter_takes_less_than_60_lines() -> None:
    assert "class NumpyCheckpoints" in BLOCKS[0]
    assert len(BLOCKS[0].splitlines()) < 60


def test_the_loop_of_the_page_saves_its_best(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "repo", init=True)
    weights = {"w": np.ones(2)}
    CODE.train(weights, [{"w": np.ones(2)}] * 2, repo, CheckpointConfig(save_on_best_metric="loss"))
    assert [commit.step for commit in repo.log("best")] == [6, 4, 2]
    assert repo.load("best")["w"].data == pytest.approx(np.full(2, 0.4))


@settings(max_examples=settings().max_examples // 3)  # each writes a repository
@given(schedules())
def test_the_adapter_saves_what_any_schedule_means(schedule: Schedule) -> None:
    with TemporaryDirectory() as folder:
        TestNumpyCheckpoints().check(schedule, Path(folder))
