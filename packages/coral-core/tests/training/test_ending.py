"""How a run ends: in two parts, without a save, or before its time with a push under way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coral import Repository
from coral.remotes import dues
from coral.training import CheckpointConfig, CheckpointManager, Interrupted, StepEnd, _manager


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True)


def test_what_is_finished_is_saved_and_closing_it_saves_nothing_more(
    repo: Repository, training: Callable[..., Any]
) -> None:
    run = training(repo)
    run.step(3)
    run.manager.finish()
    assert run.reasons() == {3: {"final"}}
    run.manager.close()
    assert run.reasons() == {3: {"final"}}


def test_a_run_that_is_let_go_of_saves_nothing_more(repo: Repository, training: Callable[..., Any]) -> None:
    run = training(repo, save_every_n_steps=2)
    run.step(3)
    run.manager.close(save=False)
    assert run.reasons() == {2: {"step"}}


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushes take for ever."""
    forever = [sys.executable, "-c", "import time\nwhile True: time.sleep(9)"]
    monkeypatch.setattr("coral._process.coral_command", lambda *_: forever)
    monkeypatch.setattr(_manager, "_PATIENCE", 0.2)


@pytest.mark.usefixtures("stuck")
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_run_that_is_interrupted_does_not_wait_for_a_push_for_ever(
    repo: Repository, training: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CheckpointConfig(save_every_n_steps=1, durability="fast", background_repack=False)
    manager = CheckpointManager(repo, config, training(repo).source, push_to=tmp_path / "there")
    manager.emit(StepEnd(1))
    manager.emit(StepEnd(2), Interrupted(2, "exception"))
    manager.close()
    process = manager._pushing._process
    assert process is not None
    assert process.poll() is None, "it goes on"
    process.kill()
    process.communicate()
    assert "takes longer than the run that ends can wait" in caplog.text
    assert [due.branch for due in dues(repo.store.fs)] == ["main"], "and is the next run's, if it does not get there"
