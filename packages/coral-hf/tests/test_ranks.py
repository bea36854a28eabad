"""Distributed runs in real processes, over gloo: each of them has a time by which it has to be over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from coral import Repository

TIMEOUT = 300  # seconds: far more than it takes, far less than a deadlock


def run(what: str, folder: Path, world: int = 2) -> list[tuple[int, str]]:
    """Exit status and output of each rank. A rank that is not over in time is killed, and the test fails."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        command = [sys.executable, str(Path(__file__).with_name("ranks.py")), what, str(folder)]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def all_done(found: list[tuple[int, str]]) -> None:
    for rank, (status, output) in enumerate(found):
        assert status == 0, f"rank {rank}:\n{output}"
        assert output.rstrip().endswith("done")


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="a Trainer cannot load any optimizer on several processes without GPUs before transformers 5.18",
)
def test_a_resumed_run_is_exact_on_every_rank(tmp_path: Path) -> None:
    all_done(run("exact", tmp_path))
    repo = Repository(tmp_path / "repo")
    assert [commit.step for commit in repo.log()] == list(range(8, 0, -1))
    assert all(commit.exact for commit in repo.log())
    assert {*repo.tree()} == {"body.0.weight", "body.0.bias", "head.weight", "head.bias"}
    assert len(repo.load_state()["trainer"]["random"]) == 2


def test_all_ranks_are_preempted_and_end_together(tmp_path: Path) -> None:
    all_done(run("preempted", tmp_path))
    (commit,) = Repository(tmp_path / "repo").log()
    assert (commit.step, commit.reasons, commit.exact) == (3, ("final", "preempted"), True)


def test_the_others_do_not_wait_for_the_last_push(tmp_path: Path) -> None:
    all_done(run("pushes", tmp_path))
    assert [commit.step for commit in Repository(tmp_path / "there").log()] == [8, 4]


@pytest.mark.nightly
def test_the_main_rank_decides_when_to_stop(tmp_path: Path) -> None:
    all_done(run("stops", tmp_path))
    assert [commit.step for commit in Repository(tmp_path / "repo").log()] == [3, 1]


@pytest.mark.parametrize("what", ["another dies", pytest.param("another raises", marks=pytest.mark.nightly)])
def test_when_another_rank_is_gone_the_main_one_saves_and_ends(what: str, tmp_path: Path) -> None:
    (status, output), (other, its) = run(what, tmp_path)
    assert status not in (0, None), output
    assert other not in (0, None), its
    log = Repository(tmp_path / "repo").log()
    assert [(commit.step, commit.reasons) for commit in log] == [(3, ("exception",)), (2, ("step",))]
    assert not log[0].exact


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("the main one dies", marks=pytest.mark.nightly),
        pytest.param("the main one raises", marks=pytest.mark.nightly),
    ],
)
def test_when_the_main_rank_is_gone_the_other_ends(what: str, tmp_path: Path) -> None:
    (status, output), (other, its) = run(what, tmp_path)
    assert status not in (0, None), output
    assert other not in (0, None), its
    steps = [commit.step for commit in Repository(tmp_path / "repo").log()]
    assert steps in ([3, 2], [2]) if what == "the main one raises" else steps in ([2], [])
    assert 3 in steps or what == "the main one dies"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("another is killed as it gives its part", [2]),
        ("the main one is killed before its commit is there", [2]),
        ("the main one is killed when its commit is there", [4, 2]),
    ],
)
def test_one_of_four_ranks_is_killed_within_a_save(what: str, steps: list[int], tmp_path: Path) -> None:
    found = run(what, tmp_path, world=4)
    assert all(status != 0 for status, _ in found), found
    assert [status for status, _ in found].count(-signal.SIGKILL) == 1, found
    whole(tmp_path, steps)


@pytest.mark.nightly
def test_four_ranks_exit_while_a_save_is_under_way(tmp_path: Path) -> None:
    found = run("exits", tmp_path, world=4)
    assert [status for status, _ in found] == [3] * 4, found
    assert (tmp_path / "ended").exists(), "else the save was over before the program ended"
    whole(tmp_path, [4])


def whole(folder: Path, steps: list[int]) -> None:
    """The repository has commits of these steps, of which nothing is lost, and takes another one."""
    repo = Repository(folder / "repo")
    log = repo.log()
    assert [commit.step for commit in log] == steps
    assert repo.fsck().ok
    for commit in log:
        assert all(weight.data.size for weight in repo.load(commit.id).values())
        assert len(repo.load_state(commit.id)["trainer"]["random"]) == 4
    assert repo.show(repo.commit(repo.load(), "another")).parents == (log[0].id,)


@pytest.mark.nightly
def test_shards_are_brought_together_where_the_trainer_is_attached(tmp_path: Path) -> None:
    all_done(run("sharded", tmp_path))
    log = Repository(tmp_path / "repo").log()
    assert [commit.step for commit in log] == [3, 2, 1]
    assert "the optimizer of a sharded model is not saved" in str(log[0].training["why"])
