"""Several processes: rank 0 decides and saves, nobody waits for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coral import Repository

LIMIT = 240.0  # seconds that are never needed, unless there is a deadlock


def run(scenario: str, folder: Path, ranks: int = 2) -> tuple[int, str]:
    """The exit status of rank 0 and what was written; a deadlock is a failure."""
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), scenario, str(folder), str(ranks)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"deadlock after {LIMIT} s:\n{said[-4000:]}")
    return process.returncode, said


def found(scenario: str, folder: Path, ranks: int = 2) -> Any:
    status, said = run(scenario, folder, ranks)
    assert status == 0, said[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_rank_0_decides_and_each_rank_goes_on_with_its_own_random_numbers(tmp_path: Path, ranks: int) -> None:
    seen = found("whole", tmp_path, ranks)
    assert seen["steps"] == {"2": ["best", "epoch"], "4": ["best", "epoch"], "6": ["epoch"], "8": ["epoch", "final"]}
    assert seen["names"] == ["net.0.bias", "net.0.weight", "net.3.bias", "net.3.weight"], "no module. prefix"
    assert seen["exact"] == [True] * 4
    assert seen["weights"] == [True] * ranks
    assert seen["difference"] == 0.0
    assert seen["stopped"] == [6] * ranks, "the others' scores get better still"
    assert seen["stopped again"] == [6] * ranks, "one that goes on from there has nothing to do"
    assert seen["loaded"] == [4] * ranks


def test_a_naive_save_by_rank_0_alone_has_the_ranks_wait_for_each_other(tmp_path: Path) -> None:
    """... for ever, but for a timeout of 8 seconds. What is above saves by rank 0 alone, too."""
    status, said = run("naive", tmp_path)
    assert status != 0, said[-4000:]
    assert not (tmp_path / "found.json").exists()


def test_all_ranks_are_preempted_and_end_together(tmp_path: Path) -> None:
    assert found("preempted", tmp_path) == {"steps": [4, 4], "signals": [True, True]}
    log = Repository(tmp_path / "weights").log()
    assert [(commit.step, commit.reasons) for commit in log] == [(4, ("final",)), (3, ("preempted",))]


def test_the_others_do_not_wait_for_the_last_push(tmp_path: Path) -> None:
    assert found("pushes", tmp_path) == {}
    assert Repository(tmp_path / "there").log()[0].step == 8


def test_when_a_rank_dies_the_others_do_not_wait(tmp_path: Path) -> None:
    status, said = run("dies", tmp_path)
    assert status != 0
    repo = Repository(tmp_path / "weights")
    assert [commit.step for commit in repo.log()] == [3, 2], said[-4000:]
    assert repo.show().reasons == ("exception",)
    assert "other processes could not be asked" in repo.show().training["why"]
    assert repo.fsck().ok


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("scenario", "steps"),
    [
        ("another is killed as it gives its part", [2]),
        ("the main one is killed before its commit is there", [2]),
        ("the main one is killed when its commit is there", [4, 2]),
    ],
)
def test_one_of_four_ranks_is_killed_within_a_save(scenario: str, steps: list[int], tmp_path: Path) -> None:
    status, said = run(scenario, tmp_path, 4)
    assert status != 0, said[-4000:]
    whole(tmp_path, steps, said)


@pytest.mark.nightly
def test_four_ranks_exit_while_a_save_is_under_way(tmp_path: Path) -> None:
    status, said = run("exits", tmp_path, 4)
    assert status == 3, said[-4000:]
    assert (tmp_path / "ended").exists(), "else the save was over before the program ended"
    whole(tmp_path, [4], said)


def whole(folder: Path, steps: list[int], said: str) -> None:
    """The repository has commits of these steps, of which nothing is lost, and takes another one."""
    repo = Repository(folder / "weights")
    log = repo.log()
    assert [commit.step for commit in log] == steps, said[-4000:]
    assert repo.fsck().ok
    for commit in log:
        assert all(weight.data.size for weight in repo.load(commit.id).values())
        assert len(repo.load_state(commit.id)["ranks"]) == 4
    assert repo.show(repo.commit(repo.load(), "another")).parents == (log[0].id,)


def test_shards_are_brought_together(tmp_path: Path) -> None:
    seen = found("sharded", tmp_path)
    assert seen["steps"] == [8, 6, 4, 2]
    assert seen["shapes"] == {
        "net.0.weight": [8, 4], "net.0.bias": [8], "net.3.weight": [1, 8], "net.3.bias": [1],
    }  # fmt: skip
    assert seen["difference"] == 0.0
    assert len(set(seen["file"])) == 1
    assert seen["loaded"] == 4
