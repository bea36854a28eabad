"""An interrupt may come anywhere: in a capture, in a save in place, as a run ends."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral._process import CoralProcess
from coral.errors import SaveFailedError
from coral.training import (
    CheckpointConfig,
    CheckpointManager,
    EpochEnd,
    Evaluated,
    Interrupted,
    Snapshot,
    StepEnd,
)


class Source:
    """One weight, which is the step; `capture` may be made to fail once."""

    def __init__(self) -> None:
        self.weight = np.zeros(4, np.float32)
        self.fails: dict[int, BaseException] = {}

    def capture(self, *, copy: bool = True) -> Snapshot:
        error = self.fails.pop(int(self.weight[0]), None)
        if error is not None:
            raise error
        return Snapshot({"w": WeightTensor(self.weight.copy())})

    def restore(self, snapshot: Snapshot) -> None:
        self.weight[:] = snapshot.weights["w"].data


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True)


def config(**options: Any) -> CheckpointConfig:
    fields = {"durability": "fast", "save_on_best_metric": "loss", "save_on_train_end": False}
    return CheckpointConfig(**{**fields, **options})


def epoch(manager: CheckpointManager, source: Source, step: int, loss: float) -> None:
    source.weight[:] = step
    manager.emit(StepEnd(step), EpochEnd(step, step - 1, metrics={"loss": loss}))


def saved(repo: Repository) -> dict[int | None, tuple[str, ...]]:
    return {commit.step: commit.reasons for commit in reversed(repo.log())}


def test_an_interrupt_of_a_capture_that_ends_the_run_does_not_lose_the_step(repo: Repository) -> None:
    source = Source()
    source.fails[2] = KeyboardInterrupt()

    def run() -> None:
        with CheckpointManager(repo, config(save_every_n_epochs=1), source) as manager:
            epoch(manager, source, 1, 5.0)
            epoch(manager, source, 2, 1.0)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert saved(repo) == {1: ("best", "epoch"), 2: ("requested",)}
    assert repo.load()["w"].data[0] == 2


def test_an_interrupt_of_a_capture_leaves_no_best_behind_where_training_goes_on(repo: Repository) -> None:
    source = Source()
    source.fails[2] = KeyboardInterrupt()
    with CheckpointManager(repo, config(save_every_n_epochs=1), source) as manager:
        epoch(manager, source, 1, 5.0)
        manager.request_save()
        with pytest.raises(KeyboardInterrupt):
            epoch(manager, source, 2, 1.0)
        epoch(manager, source, 3, 2.0)
        epoch(manager, source, 4, 3.0)
    assert saved(repo) == {1: ("best", "epoch"), 3: ("best", "epoch", "requested"), 4: ("epoch",)}
    assert repo.show("best").step == 3


def test_a_request_stands_after_an_interrupt_of_a_save_in_place(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real, left = Source(), Repository.commit, [KeyboardInterrupt()]

    def commit(this: Repository, *args: Any, **options: Any) -> str:
        if left:
            raise left.pop()
        return real(this, *args, **options)

    monkeypatch.setattr(Repository, "commit", commit)
    with CheckpointManager(repo, config(async_save=False), source) as manager:
        manager.request_save()
        with pytest.raises(KeyboardInterrupt):
            manager.emit(StepEnd(1))
        manager.emit(StepEnd(2))
    assert saved(repo) == {2: ("requested",)}


def test_weights_of_the_next_update_are_never_the_best_when_all_is_told_at_once(repo: Repository) -> None:
    source = Source()
    with CheckpointManager(repo, config(save_every_n_epochs=1), source) as manager:
        epoch(manager, source, 1, 0.9)
        source.weight[:] = 777
        events = (StepEnd(2), EpochEnd(2, 1, metrics={"loss": 0.1}))
        manager.emit(*events, Interrupted(2, "exception", mid_step=True))
    found = repo.show()
    assert (found.step, found.reasons, found.exact, found.metrics) == (2, ("exception",), False, {"loss": 0.1})
    assert repo.show("best").step == 1


def test_without_saves_of_interrupts_they_are_not_saved_at_all(repo: Repository) -> None:
    source = Source()
    with CheckpointManager(repo, config(save_every_n_steps=1, save_on_interrupt=False), source) as manager:
        manager.emit(StepEnd(1))
        manager.emit(StepEnd(2), Interrupted(2, "exception", mid_step=True))
        manager.close(save=False)
    assert saved(repo) == {1: ("step",)}


def test_a_failed_capture_is_said_while_another_failure_waits(
    repo: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    source.fails = {1: MemoryError("for step 1"), 2: MemoryError("for step 2")}
    manager = CheckpointManager(repo, config(save_every_n_steps=1), source)
    source.weight[:] = 1
    with pytest.raises(SaveFailedError, match="step 1"):
        manager.emit(StepEnd(1))
    source.weight[:] = 2
    with pytest.raises(SaveFailedError, match="step 2"):
        manager.emit(StepEnd(2))
    manager.close()
    assert caplog.text.count("saving step 1 failed: for step 1") == 1
    assert caplog.text.count("saving step 2 failed: for step 2") == 1


def test_what_a_disk_makes_of_a_save_is_said_at_once(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only what the commit itself says."""

    def full(this: Any, *_: Any) -> int:
        raise OSError("no room can be made")

    monkeypatch.setattr("coral.training._disk.Disk.save", full)
    manager = CheckpointManager(repo, config(save_every_n_steps=1, check_disk=True), Source())
    manager.emit(StepEnd(1))
    manager._queue.close()
    assert caplog.text.count("saving step 1 failed: no room can be made") == 1
    with pytest.raises(SaveFailedError):
        manager.close()


def unsynced(manager: CheckpointManager) -> int:
    return len(manager.repo.store._unsynced)


def failing_hook(manager: CheckpointManager) -> None:
    def hook(step: int, commit: str) -> None:
        raise ValueError("the hook's own")

    manager.on_saved.append(hook)


@pytest.mark.parametrize("prepare", [None, failing_hook])
@pytest.mark.parametrize("save", [True, False])
def test_the_end_syncs_what_a_batch_has_left(
    repo: Repository, prepare: Callable[[CheckpointManager], None] | None, save: bool
) -> None:
    manager = CheckpointManager(repo, config(save_every_n_steps=1, durability="batch"), Source())
    if prepare is not None:
        prepare(manager)
    manager.emit(StepEnd(1))
    if prepare is None:
        manager.close(save=save)
    else:
        with pytest.raises(SaveFailedError):
            manager.close(save=save)
    assert unsynced(manager) == 0


def test_an_interrupt_as_the_last_push_is_waited_for_leaves_nothing_behind(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = signal.getsignal(signal.SIGTERM)
    repo.add_remote("origin", tmp_path / "other")
    with CheckpointManager(repo, config(save_every_n_steps=1), Source()) as manager:
        manager.emit(StepEnd(1))
    manager = CheckpointManager(repo, config(save_every_n_steps=1, handle_signals=True), Source(), push_to="origin")
    assert manager.restore() is not None
    manager.emit(StepEnd(2))
    manager.wait()
    assert os.listdir(Path(repo.path) / "intents")

    real = CoralProcess.wait

    def wait(process: Any, timeout: float | None = None) -> int:
        monkeypatch.setattr(CoralProcess, "wait", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(CoralProcess, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        manager.close()
    assert signal.getsignal(signal.SIGTERM) == found
    manager._pushing.close()
    assert os.listdir(Path(repo.path) / "intents") == []


def test_an_evaluation_is_not_asked_for_again_after_an_interrupt_of_a_note(
    repo: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """An epoch's end replaces the state of a save of its step: an interrupt of that leaves the save as it is."""
    source = Source()
    with CheckpointManager(repo, config(save_every_n_steps=1, save_every_n_epochs=1), source) as manager:
        source.weight[:] = 1
        manager.emit(StepEnd(1))
        manager.wait()
        source.fails[1] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            manager.emit(EpochEnd(1, 0))
        manager.emit(Evaluated(1, {"loss": 1.0}))
    assert saved(repo) == {1: ("best", "step")}
    assert caplog.text == ""


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "coral")
