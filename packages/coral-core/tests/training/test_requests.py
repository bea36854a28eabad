"""Saves asked for by hand: by a call, or by a file named SAVE."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coral import Repository
from coral.errors import DiskFull, SaveFailedError
from coral.filesystem import LocalFileSystem
from coral.training import EpochEnd, Evaluated, TrainEnd, _requests


@pytest.fixture(autouse=True)
def looks_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requests, "_EVERY", 0.0)


@pytest.fixture
def asked(folder: Path) -> Path:
    """The file that asks."""
    return folder / "SAVE"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Commits wait until it is set."""
    opened, real = threading.Event(), Repository.commit

    def commit(this: Repository, *args: Any, **options: Any) -> str:
        assert opened.wait(10)
        return real(this, *args, **options)

    monkeypatch.setattr(Repository, "commit", commit)
    return opened


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many commits fail as there are entries."""
    left, real = [1], Repository.commit

    def commit(this: Repository, *args: Any, **options: Any) -> str:
        if left:
            left.pop()
            raise DiskFull("no space left (pretended)")
        return real(this, *args, **options)

    monkeypatch.setattr(Repository, "commit", commit)
    return left


def test_the_file_asks_for_a_save_and_goes_when_that_is_done(
    repo: Repository, training: Any, asked: Path, gate: threading.Event
) -> None:
    run = training(repo)
    run.step()
    asked.touch()
    run.step(3)  # one request, one save
    assert asked.exists(), "it is not saved yet"
    gate.set()
    assert run.reasons() == {2: {"requested"}}
    assert not asked.exists()
    run.step()
    assert run.saved() == [2]


def test_a_file_that_is_touched_again_while_its_save_is_written_asks_again(
    repo: Repository, training: Any, asked: Path, gate: threading.Event
) -> None:
    run = training(repo)
    asked.touch()
    run.step()
    os.utime(asked, (1.0, 1.0))
    gate.set()
    run.manager.wait()
    assert asked.exists()
    run.step()
    assert run.saved() == [1, 2]
    assert not asked.exists()


def test_a_call_asks_for_a_save_from_any_thread(repo: Repository, training: Any) -> None:
    run = training(repo)
    run.step()
    other = threading.Thread(target=run.manager.request_save)
    other.start()
    other.join()
    run.step(2)
    assert run.reasons() == {2: {"requested"}}


def test_a_call_while_a_save_is_written_asks_for_one_more(
    repo: Repository, training: Any, gate: threading.Event
) -> None:
    run = training(repo)
    run.manager.request_save()
    run.step()
    run.manager.request_save()
    gate.set()
    run.step(2)
    assert run.saved() == [1, 2]


def test_a_save_that_is_due_anyway_is_the_one_that_was_asked_for(repo: Repository, training: Any, asked: Path) -> None:
    run = training(repo, save_every_n_steps=2)
    run.step()
    asked.touch()
    run.step()
    assert run.reasons() == {2: {"step", "requested"}}
    assert not asked.exists()


def test_a_step_that_is_saved_already_answers_at_the_end_of_its_epoch(
    repo: Repository, training: Any, asked: Path
) -> None:
    run = training(repo, save_every_n_steps=2)
    run.step(2)
    run.manager.wait()
    asked.touch()
    run.manager.emit(EpochEnd(2, 0))
    assert run.reasons() == {2: {"step", "requested"}}
    assert not asked.exists()


def test_only_the_end_of_a_step_an_epoch_or_the_run_is_a_moment_for_it(
    repo: Repository, training: Any, asked: Path
) -> None:
    run = training(repo, save_on_train_end=False)
    run.step()
    asked.touch()
    run.manager.emit(Evaluated(1, {"loss": 1.0}))
    assert run.saved() == []
    run.manager.emit(TrainEnd(1))
    assert run.reasons() == {1: {"requested"}}


def test_a_save_that_fails_leaves_the_file_and_is_tried_at_the_next_step(
    repo: Repository, training: Any, asked: Path, full: list[int]
) -> None:
    run = training(repo)
    asked.touch()
    run.step()
    with pytest.raises(SaveFailedError):
        run.manager.wait()
    assert asked.exists()
    run.step()
    assert run.reasons() == {2: {"requested"}}
    assert not asked.exists()


def test_a_file_that_cannot_be_removed_is_answered_once_and_warned_of(
    repo: Repository, training: Any, asked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked.mkdir()
    run = training(repo)
    run.step(2)
    run.manager.wait()
    run.step(2)
    assert run.saved() == [1]
    assert caplog.text.count("the file stays") == 1


def test_a_file_that_is_not_to_be_looked_for_asks_for_nothing(repo: Repository, training: Any, asked: Path) -> None:
    run = training(repo, save_on_request=False)
    asked.touch()
    run.step(2)
    assert run.saved() == []
    assert asked.exists()
    run.manager.request_save()
    run.step()
    assert run.saved() == [3]  # the call does not depend on it
    assert asked.exists()


def test_the_file_is_looked_for_once_a_second(
    folder: Path, fs: LocalFileSystem, training: Any, around: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    looks, now = [], [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watched = around(fs, lambda kind, path: looks.append(kind) if path == "SAVE" else None)
    run = training(Repository(watched, durability="fast"))
    run.step(50)
    assert looks == ["stat"]
    (folder / "SAVE").touch()
    now[0] += 1
    run.step(50)
    assert run.saved() == [51]
    assert looks == ["stat", "stat", "stat", "unlink"]  # before it is removed, whether it is still the same


def test_a_file_that_cannot_be_looked_for_asks_for_nothing(
    fs: LocalFileSystem, training: Any, around: Callable[..., Any]
) -> None:
    def refuse(kind: str, path: str) -> None:
        if path == "SAVE":
            raise OSError(errno.EACCES, "pretended")

    run = training(Repository(around(fs, refuse), durability="fast"))
    run.step(2)
    assert run.saved() == []
