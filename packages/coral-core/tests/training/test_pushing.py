"""A run is pushed as it goes; what fails is due until it is done, by whichever run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import UnknownRemote, UnsafeInput
from coral.remotes import DuePush, add_due, dues
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd
from coral.training._pushing import Pushing

CONFIG = CheckpointConfig(save_every_n_steps=1, background_repack=False, durability="fast")


class Source:
    def __init__(self) -> None:
        self.step = 0

    def capture(self, *, copy: bool = True) -> Snapshot:
        self.step += 1
        return Snapshot({"w": np.full(2000, self.step, np.float32)}, None)

    def restore(self, snapshot: Snapshot) -> None: ...


def run(repo: Repository, *steps: int, **options) -> None:
    config = options.pop("config", CONFIG)
    with CheckpointManager(repo, config, Source(), **options) as manager:
        for step in steps:
            manager.emit(StepEnd(step))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tmp_path / "other"


def test_what_is_saved_is_there_when_the_run_ends(repo: Repository, other: Path) -> None:
    run(repo, 1, 2, 3, push_to=other)
    found = Repository(other)
    assert [commit.step for commit in found.log()] == [3, 2, 1]
    assert found.fsck().ok
    assert dues(repo.store.fs) == []


def test_a_remote_that_does_not_exist_yet_is_pushed_to_by_the_next_run(repo: Repository, other: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "coral"):
        run(repo, 1, push_to="backup")
    assert caplog.text.count("queued until the remote exists") == 1
    assert "coral push --due" in caplog.text
    assert [push.remote for push in dues(repo.store.fs)] == ["backup"]
    repo.add_remote("backup", other)
    run(repo, 2, push_to="backup")
    assert Repository(other).branches() == repo.branches()
    assert dues(repo.store.fs) == []


def test_what_is_due_is_done_by_a_run_that_pushes_nothing_itself(repo: Repository, other: Path) -> None:
    run(repo, 1, push_to="backup")
    repo.add_remote("backup", other)
    run(repo, 2)
    assert Repository(other).branches()


def test_what_is_pruned_is_pruned_there_when_asked(repo: Repository, other: Path) -> None:
    config = CheckpointConfig(
        save_every_n_steps=1, keep_last_n_checkpoints=1, background_repack=False, durability="fast", prune_remote=True
    )
    run(repo, 1, 2, 3, config=config, push_to=other)
    assert [commit.pruned for commit in Repository(other).log()] == [False, True, True]


def test_without_a_process_it_is_done_here(repo: Repository, other: Path, monkeypatch) -> None:
    monkeypatch.setattr("coral._process.coral_command", lambda *_: ["/does/not/exist"])
    run(repo, 1, 2, push_to=other)
    assert Repository(other).branches() == repo.branches()


def test_a_remote_that_is_removed_has_nothing_due(repo: Repository, other: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    repo.add_remote("backup", tmp_path / "file" / "x")  # never there
    repo.add_remote("origin", other)
    run(repo, 1, push_to="backup")
    add_due(repo.store.fs, DuePush.checked("origin", "main"))
    repo.remove_remote("backup")
    assert dues(repo.store.fs) == [DuePush("origin", "main")]
    with pytest.raises(UnknownRemote):
        repo.remove_remote("backup")


@pytest.mark.parametrize("spawns", [True, False])
def test_what_is_due_to_another_remote_slows_nothing(
    repo: Repository, other: Path, monkeypatch, caplog, *, spawns: bool
) -> None:
    """The one fails each time; the other has each save as soon as it is made."""
    if not spawns:
        monkeypatch.setattr("coral._process.coral_command", lambda *_: ["/does/not/exist"])
    repo.add_remote("origin", other)
    add_due(repo.store.fs, DuePush.checked("dead", "main"))
    pushing = Pushing(repo, "origin", "main", prune=False)
    with caplog.at_level(logging.WARNING, "coral"):
        for step in range(3):
            repo.commit({"w": np.full(2000, step, np.float32)}, "more")
            pushing.saved()
            if pushing._process is not None:
                pushing._process.wait()
            assert Repository(other).branches() == repo.branches()
        pushing.close()
    assert "a push failed" not in caplog.text
    assert "not pushed: main to dead" in caplog.text
    assert [push.remote for push in dues(repo.store.fs)] == ["dead"]


@pytest.mark.parametrize("spawns", [True, False])
def test_after_a_push_that_failed_there_is_a_pause(
    repo: Repository, tmp_path: Path, monkeypatch, caplog, *, spawns: bool
) -> None:
    if not spawns:
        monkeypatch.setattr("coral._process.coral_command", lambda *_: ["/does/not/exist"])
    (tmp_path / "file").write_bytes(b"")
    repo.add_remote("origin", tmp_path / "file" / "x")
    pushing = Pushing(repo, "origin", "main", prune=False)
    with caplog.at_level(logging.WARNING, "coral"):
        for step in range(3):
            repo.commit({"w": np.full(2000, step, np.float32)}, "more")
            pushing.saved()
            if pushing._process is not None:
                pushing._process.wait()
    pushing._reap(wait=True)
    assert caplog.text.count("a push failed, and stays due") == 1
    assert [push.remote for push in dues(repo.store.fs)] == ["origin"]


def test_a_url_with_credentials_is_refused_before_the_run(repo: Repository) -> None:
    with pytest.raises(UnsafeInput, match="credentials") as caught:
        CheckpointManager(repo, CONFIG, Source(), push_to="s3://me:canary@bucket/x")
    assert "canary" not in str(caught.value)
