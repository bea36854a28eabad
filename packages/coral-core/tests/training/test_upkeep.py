"""What is pruned comes back as free space while the run goes on, and the past is repacked by a process of its own."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral.errors import StorageError
from coral.store import intent
from coral.store._pack import RAW, read_directory
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd, _upkeep

SIZE = 9 << 20  # bytes of a checkpoint: two of them are worth a repack


class Walk:
    """A source whose weights move a little with each step."""

    def __init__(self, nbytes: int = SIZE) -> None:
        self.weight = np.random.default_rng(0).standard_normal(nbytes // 4).astype(np.float32)
        self.past: dict[int, bytes] = {}

    def move(self, step: int) -> None:
        self.weight *= np.float32(1 + 1e-5)
        self.past[step] = self.weight.tobytes()

    def capture(self, *, copy: bool = True) -> Snapshot:
        return Snapshot({"w": WeightTensor(self.weight.copy() if copy else self.weight)})

    def restore(self, snapshot: Snapshot) -> None:
        self.weight[:] = snapshot.weights["w"].data


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True)


@pytest.fixture
def begin(repo: Repository) -> Iterator[Callable[..., CheckpointManager]]:
    managers = []

    def make(source: Walk, **options: Any) -> CheckpointManager:
        config = CheckpointConfig(save_every_n_steps=1, durability="fast", **options)
        managers.append(CheckpointManager(repo, config, source))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def train(manager: CheckpointManager, source: Walk, *steps: int) -> None:
    for step in steps:
        source.move(step)
        manager.emit(StepEnd(step))
    manager.wait()


def encoded(repo: Repository) -> int:
    """How many tensors are stored as anything but themselves."""
    fs = repo.store.fs
    packs = (read_directory(fs, name.removesuffix(".pack")) for name in fs.list("packs"))
    return sum(int((pack.rows["codec"] != RAW).sum()) for pack in packs)


def process_of(manager: CheckpointManager) -> Any:
    return manager._upkeep._process


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a shell script run in place of Python."""

    def put(script: str) -> None:
        path = tmp_path / "stand-in"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


def test_a_process_repacks_what_lies_behind(
    repo: Repository, begin: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    source = Walk()
    manager = begin(source)
    train(manager, source, 1)
    assert process_of(manager) is None  # there is nothing behind it
    train(manager, source, 2)
    assert process_of(manager).wait() == 0  # the first is a keyframe, and hardly shrinks
    train(manager, source, 3)
    assert process_of(manager).wait() == 0
    assert encoded(repo) == 1
    with caplog.at_level(logging.INFO, "coral"):
        train(manager, source, 4)
    assert "repacked in the background: 1 tensors of 1 commits encoded" in caplog.text
    for step in (1, 2, 3, 4):
        assert repo.load(f"step:{step}")["w"].data.tobytes() == source.past[step]


def test_a_process_may_say_as_much_as_it_likes(
    begin: Callable[..., CheckpointManager], stand_in: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in("head -c 300000 /dev/zero | tr '\\0' x >&2\necho the end >&2\nexit 3")
    source = Walk()
    manager = begin(source)
    train(manager, source, 1, 2)
    assert process_of(manager).wait(timeout=60) == 3  # it would wait for a reader if it wrote into a pipe
    train(manager, source, 3)
    assert "repacking in the background failed (3)" in caplog.text
    assert caplog.text.count("x") < 2000
    assert "the end" in caplog.text


def test_it_can_be_turned_off(repo: Repository, begin: Callable[..., CheckpointManager]) -> None:
    source = Walk()
    manager = begin(source, background_repack=False)
    train(manager, source, 1, 2, 3)
    assert process_of(manager) is None
    assert encoded(repo) == 0


def test_small_checkpoints_are_not_worth_a_process(repo: Repository, begin: Callable[..., CheckpointManager]) -> None:
    source = Walk(64 << 10)
    manager = begin(source)
    train(manager, source, *range(1, 20))
    assert process_of(manager) is None
    assert encoded(repo) == 0


def test_closing_ends_it_and_what_it_started(
    begin: Callable[..., CheckpointManager], stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    source = Walk()
    manager = begin(source)
    train(manager, source, 1, 2)
    process = process_of(manager)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
        time.sleep(0.01)
    assert process.poll() is None
    manager.close()
    assert process.poll() is not None
    child = int((tmp_path / "child").read_text())
    while runs(child):  # until whoever adopts it has seen it off
        time.sleep(0.01)


def runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not status.exists() or " Z " not in status.read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_its_command_takes_nothing_from_the_working_folder(
    begin: Callable[..., CheckpointManager], stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(f'echo "$@" > {tmp_path}/arguments')
    source = Walk()
    manager = begin(source)
    train(manager, source, 1, 2)
    process_of(manager).wait()
    assert (tmp_path / "arguments").read_text().split() == [
        "-P",
        "-m",
        "coral",
        "repack",
        "--auto",
        str(manager.repo.path),
    ]


def test_where_it_fails_the_run_goes_on(
    begin: Callable[..., CheckpointManager], stand_in: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in("echo no luck >&2; exit 3")
    source = Walk()
    manager = begin(source)
    train(manager, source, 1, 2)
    process_of(manager).wait()
    train(manager, source, 3)
    assert "repacking in the background failed (3): no luck" in caplog.text


@pytest.mark.parametrize("how", [("executable", "/there/is/no/such/python"), ("executable", ""), ("frozen", True)])
def test_where_no_process_can_be_had_it_is_off(
    begin: Callable[..., CheckpointManager],
    how: tuple[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name, value = how
    monkeypatch.setattr(sys, name, value, raising=False)
    source = Walk()
    manager = begin(source)
    with caplog.at_level(logging.INFO, "coral"):
        train(manager, source, 1, 2, 3, 4)
    assert caplog.text.count("no process can be had") == 1


def test_a_backlog_is_seen_to_by_the_manager(
    repo: Repository,
    begin: Callable[..., CheckpointManager],
    stand_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in("exec sleep 600")  # as a process that gets no time
    monkeypatch.setattr(_upkeep, "_BACKLOG", 3)
    source = Walk()
    manager = begin(source)
    train(manager, source, 1, 2, 3)
    process = process_of(manager)
    assert encoded(repo) == 0
    train(manager, source, 4)
    assert process.poll() is not None
    assert encoded(repo) == 2


def test_what_is_pruned_is_freed_as_the_run_goes_on(repo: Repository, begin: Callable[..., CheckpointManager]) -> None:
    source = Walk(2 << 20)
    manager = begin(source, keep_last_n_checkpoints=2, background_repack=False)
    for step in range(1, 9):
        train(manager, source, step)
        assert repo.store.fs.usage() < (min(step, 2) + 1) * (2 << 20)
    assert [commit.pruned for commit in repo.log()] == [False, False] + [True] * 6


def test_little_is_freed_at_the_end(repo: Repository, begin: Callable[..., CheckpointManager]) -> None:
    source = Walk(16 << 10)
    manager = begin(source, keep_last_n_checkpoints=1)
    train(manager, source, *range(1, 9))
    assert repo.store.fs.usage() > 8 * (16 << 10)
    manager.close()
    assert repo.store.fs.usage() < 3 * (16 << 10)


def test_where_freeing_fails_the_run_goes_on(
    begin: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gc(self: Repository, grace: float | None = None) -> None:
        raise StorageError("the disk says no")

    monkeypatch.setattr(Repository, "gc", gc)
    source = Walk(2 << 20)
    train(begin(source, keep_last_n_checkpoints=1), source, 1, 2, 3)
    assert "what was pruned could not be freed: the disk says no" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="the idle class is Linux's")
def test_the_process_stands_back(repo: Repository) -> None:
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(_standing_back) == (19, os.SCHED_IDLE)


def _standing_back() -> tuple[int, int]:
    from coral.cli._priority import stand_back

    stand_back()
    return os.nice(0), os.sched_getscheduler(0)


def test_what_a_repack_relies_on_is_pruned_all_the_same(
    repo: Repository, begin: Callable[..., CheckpointManager]
) -> None:
    source = Walk(64 << 10)
    manager = begin(source, keep_last_n_checkpoints=1)
    train(manager, source, 1)
    with intent(repo.store.fs, "repack", [repo.resolve()]):
        train(manager, source, 2)
    assert [commit.pruned for commit in repo.log()] == [False, True]
