"""What a run takes over from what it goes on from: whose checkpoints count, whose scores, and who may prune them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral.errors import ReadOnly
from coral.filesystem import LocalFileSystem
from coral.training import CheckpointConfig, CheckpointManager, EpochEnd, Evaluated, Snapshot, StepEnd


class Source:
    """One weight, which is the step, and a state beside it."""

    def __init__(self) -> None:
        self.weight = np.zeros(4, np.float32)
        self.state = {"lr": 1.0}

    def capture(self, *, copy: bool = True) -> Snapshot:
        return Snapshot({"w": WeightTensor(self.weight.copy())}, dict(self.state))

    def restore(self, snapshot: Snapshot) -> None:
        self.weight[:] = snapshot.weights["w"].data


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True)


@pytest.fixture
def source() -> Source:
    return Source()


def config(**options: Any) -> CheckpointConfig:
    fields = {"durability": "fast", "save_every_n_steps": 1, "save_on_best_metric": "loss", "save_on_train_end": False}
    return CheckpointConfig(**{**fields, **options})


def step(manager: CheckpointManager, source: Source, number: int, loss: float | None = None) -> None:
    source.weight[:] = number
    manager.emit(StepEnd(number), *([] if loss is None else [Evaluated(number, {"loss": loss})]))


@pytest.mark.parametrize("budget", [None, 3])
def test_a_late_score_is_that_of_the_checkpoint_whoever_else_holds_it(
    repo: Repository, source: Source, budget: int | None
) -> None:
    options = config(keep_last_n_checkpoints=budget)
    with CheckpointManager(repo, options, source) as manager:
        step(manager, source, 1, 0.5)
        step(manager, source, 2)
    with CheckpointManager(repo, options, source, branch="ft") as manager:
        assert manager.restore("main") is not None
        manager.emit(Evaluated(2, {"loss": 0.1}))
        step(manager, source, 3, 0.3)
    assert repo.show("step:2").metrics == {"loss": 0.1}
    assert repo.show("ft@best").step == 2
    again = CheckpointManager(repo, options, source, branch="ft")
    found = again.restore(best=True)
    assert found is not None
    assert found.step == 2
    again.close()


def test_the_end_of_the_epoch_of_such_a_checkpoint_keeps_its_state(repo: Repository, source: Source) -> None:
    options = config(keep_last_n_checkpoints=3)
    with CheckpointManager(repo, options, source) as manager:
        step(manager, source, 1)
    with CheckpointManager(repo, options, source, branch="ft") as manager:
        assert manager.restore("main") is not None
        source.state = {"lr": 0.1}
        manager.emit(EpochEnd(1, 0))
    assert repo.load_state("main") == {"lr": 0.1}


def test_another_experiments_checkpoints_are_in_no_budget(
    repo: Repository, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointManager(repo, config(), source, experiment="pretrain") as manager:
        for number in (1, 2, 3, 4):
            step(manager, source, number, 1.0 / number)
    options = config(keep_last_n_checkpoints=1, keep_best_n_checkpoints=1)
    with CheckpointManager(repo, options, source, experiment="finetune") as manager:
        assert manager.restore() is not None
        assert "is of experiment 'pretrain'" in caplog.text
        for number in (5, 6, 7):
            step(manager, source, number, float(number))
    kept = [commit.step for commit in reversed(repo.log()) if not commit.pruned]
    assert kept == [1, 2, 3, 4, 5, 7]
    assert repo.show("best").step == 5


def test_early_stopping_of_another_experiment_stops_nothing(repo: Repository, source: Source) -> None:
    options = config(early_stopping_patience=1)
    with CheckpointManager(repo, options, source, experiment="pretrain") as manager:
        step(manager, source, 1, 0.1)
        step(manager, source, 2, 0.2)
        assert manager.stop_reason is not None
    with CheckpointManager(repo, options, source, experiment="finetune") as manager:
        assert manager.restore() is not None
        assert manager.stop_reason is None
        step(manager, source, 3, 0.9)
        assert manager.stop_reason is None
    assert repo.show("best").step == 3


@pytest.mark.parametrize(
    ("one", "other"), [("lr=0.1", "lr-0.1"), ("a b", "a-b"), ("a", "a/"), ("default", ""), ("x.lock", "x-lock")]
)
def test_no_two_experiments_share_a_best_tag(repo: Repository, source: Source, one: str, other: str) -> None:
    for experiment, loss in ((one, 0.1), (other, 0.9)):
        with CheckpointManager(repo, config(), source, experiment=experiment) as manager:
            step(manager, source, 1, loss)
    tags = repo.tags()
    assert len(tags) == 2
    assert {repo.show(commit).experiment for commit in tags.values()} == {one, other}


@pytest.mark.parametrize("name", ["my-experiment", "v1.2", "bert/sst2"])
def test_a_name_that_can_be_a_tags_is(repo: Repository, source: Source, name: str) -> None:
    with CheckpointManager(repo, config(), source, experiment=name) as manager:
        step(manager, source, 1, 0.1)
    assert [*repo.tags()] == [f"best/{name}"]


def test_weights_that_move_between_the_step_and_the_end_of_its_epoch_are_said_not_to_be_exact(
    repo: Repository, source: Source
) -> None:
    """The end of the epoch replaces the state of what the step has saved, and not its weights."""
    with CheckpointManager(repo, config(save_every_n_epochs=1), source) as manager:
        step(manager, source, 1)
        manager.emit(EpochEnd(1, 0))
        step(manager, source, 2)
        source.weight += 0.5
        manager.emit(EpochEnd(2, 1))
    assert repo.show("step:1").exact
    assert not repo.show("step:2").exact
    assert "the weights moved between the step" in repo.show("step:2").training["why"]


class ReadOnlyFileSystem(LocalFileSystem):
    """A folder on what is mounted to be read alone."""

    def create(self, path: str) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", path)


def test_what_cannot_be_written_to_can_be_gone_back_to_and_refuses_what_follows(
    repo: Repository, source: Source
) -> None:
    with CheckpointManager(repo, config(), source) as manager:
        step(manager, source, 1)
    source.weight[:] = 0
    manager = CheckpointManager(Repository(ReadOnlyFileSystem(repo.path)), config(), source)
    found = manager.restore()
    assert found is not None
    assert (found.step, source.weight[0], manager.state.resumed_from) == (1, 1.0, 1)
    with pytest.raises(ReadOnly):
        manager.emit(StepEnd(2))
    manager.close(save=False)
