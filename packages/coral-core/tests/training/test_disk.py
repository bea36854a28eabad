"""A disk that fills up: it is said early, what can go goes, and a save that still does not fit fails as it did."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from coral import Repository
from coral.errors import SaveFailedError
from coral.filesystem import LocalFileSystem
from coral.training import Evaluated, _upkeep

SIZE = 1 << 20  # bytes of a checkpoint
REST = 60_000  # bytes that a repository takes beside its checkpoints, at most


class SmallDisk(LocalFileSystem):
    """A disk of so many bytes, which are those of the files in it; `says` is what it gives as free."""

    def __init__(self, root: Path, capacity: int, says: Callable[[int], int] = lambda free: free) -> None:
        super().__init__(root)
        self.capacity, self.says = capacity, says

    def free(self) -> int:
        return self.says(self.capacity - self.usage())

    def create(self, path: str) -> Any:
        return _SmallFile(super().create(path), self)


class _SmallFile:
    def __init__(self, inner: Any, disk: SmallDisk) -> None:
        self.inner, self.disk = inner, disk

    def write(self, buffers: Sequence[Any]) -> None:
        if sum(memoryview(b).nbytes for b in buffers) > self.disk.capacity - self.disk.usage():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.inner.write(buffers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def on_disk(folder: Path, fs: LocalFileSystem, training: Any) -> Callable[..., Any]:
    """A run on a disk with room for so many checkpoints."""

    def make(checkpoints: float, says: Callable[[int], int] = lambda free: free, **options: Any) -> Any:
        disk = SmallDisk(folder, int(checkpoints * SIZE) + REST, says)
        return training(Repository(disk, durability="fast"), SIZE, **{"save_every_n_steps": 1, **options})

    return make


@pytest.fixture
def nothing_is_freed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_upkeep, "_FREE_AT", 1 << 60)


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_before_the_first_save_it_is_said_that_the_budgets_do_not_fit(
    on_disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = on_disk(2.5, keep_last_n_checkpoints=2)
    run.step()
    run.manager.wait()
    (warning,) = said(caplog, "bytes free")
    assert "the next 3 checkpoints take up to 3,145,740. " in warning
    assert f"{run.repo.path} has 2," in warning


@pytest.mark.parametrize(("room", "options"), [(3.5, {}), (2.5, {"check_disk": False})])
def test_where_they_fit_or_are_not_to_be_compared_nothing_is_said(
    on_disk: Any, caplog: pytest.LogCaptureFixture, room: float, options: Any
) -> None:
    run = on_disk(room, keep_last_n_checkpoints=2, **options)
    run.step()
    run.manager.wait()
    assert caplog.text == ""


def test_a_run_that_goes_on_counts_what_is_there_already(on_disk: Any, caplog: pytest.LogCaptureFixture) -> None:
    run = on_disk(3.5, keep_last_n_checkpoints=2)
    run.step(2)
    run.manager.close()
    again = on_disk(3.5, keep_last_n_checkpoints=2)
    again.manager.restore()
    again.at = 2
    again.step()
    assert again.saved(pruned=False) == [2, 3]
    assert caplog.text == ""


def test_that_the_next_save_will_not_fit_is_said_after_the_last_that_does(
    on_disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = on_disk(2.5)
    run.step()
    run.manager.wait()
    assert caplog.text == ""
    run.step()
    run.manager.wait()
    assert len(said(caplog, "bytes are left, and the next save takes up to 1,048,576")) == 1


@pytest.mark.usefixtures("nothing_is_freed_unasked")
@pytest.mark.parametrize("async_save", [True, False])
def test_what_is_out_of_budget_is_freed_before_a_save_that_does_not_fit(on_disk: Any, async_save: bool) -> None:
    run = on_disk(3.5, keep_last_n_checkpoints=1, async_save=async_save)
    run.step(9)
    assert run.saved(pruned=False) == [9]


@pytest.mark.usefixtures("nothing_is_freed_unasked")
def test_unless_the_disk_is_to_be_left_alone(on_disk: Any) -> None:
    run = on_disk(3.5, keep_last_n_checkpoints=1, check_disk=False)
    run.step(3)
    run.manager.wait()
    run.step()
    with pytest.raises(SaveFailedError, match="step 4"):
        run.manager.wait()


def test_what_the_save_would_push_out_goes_first_where_there_is_no_room_for_both(on_disk: Any) -> None:
    run = on_disk(2.5, keep_last_n_checkpoints=2)
    run.step(9)
    assert run.saved(pruned=False) == [8, 9]
    assert run.saved() == list(range(1, 10))
    assert run.repo.fsck().ok


def test_a_disk_that_does_not_say_what_is_free_is_believed_when_it_is_full(on_disk: Any) -> None:
    """A quota, or other users of it."""
    run = on_disk(2.5, says=lambda free: 1 << 40, keep_last_n_checkpoints=2)
    run.step(9)
    assert run.saved(pruned=False) == [8, 9]


def test_the_newest_never_goes(on_disk: Any) -> None:
    run = on_disk(1.5, keep_last_n_checkpoints=1)
    run.step()
    run.manager.wait()
    run.step()
    with pytest.raises(SaveFailedError, match="step 2"):
        run.manager.wait()
    assert run.saved(pruned=False) == [1]
    assert run.repo.load()["w"].data[0] == 1


def test_the_best_never_goes_for_one_that_would_be_better(on_disk: Any) -> None:
    options = {"keep_last_n_checkpoints": 1, "keep_best_n_checkpoints": 1, "save_on_best_metric": "loss"}
    run = on_disk(2.5, **options)
    run.step()
    run.manager.emit(Evaluated(1, {"loss": 1.0}))
    run.step()
    run.manager.wait()
    assert run.saved(pruned=False) == [1, 2]
    with pytest.raises(SaveFailedError):  # noqa: PT012
        run.source.weight[:] = 3
        run.manager.emit(Evaluated(3, {"loss": 0.5}))
        run.manager.wait()
    assert run.saved(pruned=False) == [1, 2]
    assert run.repo.resolve("best") == run.repo.resolve("step:1")


def test_what_is_tagged_by_hand_never_goes(on_disk: Any) -> None:
    run = on_disk(2.5, keep_last_n_checkpoints=2)
    run.step()
    run.manager.wait()
    run.repo.tag("mine", "step:1")
    run.step()
    run.manager.wait()
    run.step()
    with pytest.raises(SaveFailedError, match="step 3"):
        run.manager.wait()
    assert run.saved(pruned=False) == [1, 2]


def test_a_save_that_does_not_fit_is_tried_again_once(on_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = on_disk(2.5, says=lambda free: 1 << 40, keep_last_n_checkpoints=2)
    run.step(2)
    run.manager.wait()
    tries, real = [], Repository.commit
    monkeypatch.setattr(Repository, "commit", lambda *args, **how: (tries.append(1), real(*args, **how))[1])
    run.repo.store.fs.capacity = 1  # also when what can go is gone
    run.step()
    with pytest.raises(SaveFailedError, match="step 3"):
        run.manager.wait()
    assert len(tries) <= 2
    run.repo.store.fs.capacity = 4 * SIZE
    run.step()
    assert run.saved(pruned=False)[-1] == 4


def test_what_does_not_change_needs_no_room(folder: Path, fs: Any, training: Any, caplog: Any) -> None:
    disk = SmallDisk(folder, SIZE + SIZE // 2)
    repo = Repository(disk, durability="fast")
    run = training(repo, 4096, frozen=SIZE, save_every_n_steps=1, keep_last_n_checkpoints=9)
    with caplog.at_level(logging.INFO, "coral"):
        run.step(9)
        run.manager.wait()
    assert run.saved(pruned=False) == list(range(1, 10))
    assert said(caplog, "making room") == []


REAL = """
import sys
import numpy as np
from coral import Repository, WeightTensor
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd

class Source:
    def capture(self, *, copy=True):
        return Snapshot({"w": WeightTensor(np.full(1 << 20, step, np.float32))})
    def restore(self, snapshot): ...

step = 0
repo = Repository(sys.argv[1] + "/repo", init=True)
config = CheckpointConfig(save_every_n_steps=1, keep_last_n_checkpoints=2, background_repack=False)
with CheckpointManager(repo, config, Source()) as manager:
    for step in range(1, 7):
        manager.emit(StepEnd(step))
assert [c.step for c in repo.log() if not c.pruned] == [6, 5], repo.log()
assert repo.load()["w"].data[-1] == 6
assert repo.fsck().ok
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no tmpfs to mount")
def test_on_a_real_disk_that_two_checkpoints_fill(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=10m coral "$1" && echo mounted && exec "$2" -W error -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [*command, str(tmp_path), sys.executable, REAL],
            capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip
    except OSError as error:
        pytest.skip(f"no tmpfs of our own can be mounted here: {error}")
    if not done.stdout.startswith("mounted"):
        pytest.skip(f"no tmpfs of our own can be mounted here: {done.stderr.strip()[-300:]}")
    assert done.stdout.splitlines() == ["mounted", "done"], done.stderr
