"""Several objects and processes on one repository; the repository somewhere else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.store import _index, _refs

Start = Callable[..., "subprocess.Popen[str]"]
Bits = Callable[[Any, Any], None]
Weights = Callable[..., dict[str, np.ndarray]]

WRITER = """
    import json, sys, numpy as np
    from coral import Repository
    from coral.store import _index, _refs
    _index._UNCOVERED, _refs.FOLD, _refs._KEEP = 5, 8, 4
    path, me, count, durability = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    repo = Repository(path, init=True, durability=durability)
    print("ready", flush=True)
    sys.stdin.readline()
    shared = np.arange(1000.0)
    done = []
    for n in range(count):
        done.append(repo.commit({"w": np.array([me, n]), "shared": shared}, f"{me}/{n}", branch=sys.argv[5]))
    print(json.dumps(done))
"""


def test_two_objects_take_turns(repo: Repository, folder: Path) -> None:
    other = Repository(folder, durability="fast")
    ids = [(repo, other)[n % 2].commit({"a": np.full(2, n)}) for n in range(10)]
    assert [c.id for c in repo.log()] == [c.id for c in other.log()] == ids[::-1]
    assert repo.fsck().ok


@pytest.mark.parametrize("branch", ["main", "new"])
def test_four_processes_commit_to_one_branch_at_once(folder: Path, start: Start, branch: str) -> None:
    count = 12
    writers = [start(WRITER, folder, me, count, "fast", branch) for me in range(4)]
    lines = []
    try:
        for writer in writers:
            assert writer.stdout is not None
            lines.append(writer.stdout.readline())
        outputs = [writer.communicate("go\n", timeout=60) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    assert lines == ["ready\n"] * 4
    assert [writer.returncode for writer in writers] == [0] * 4, outputs
    acknowledged = {(me, n): id for me, (out, _) in enumerate(outputs) for n, id in enumerate(json.loads(out))}
    repo = Repository(folder)
    log = repo.log(branch)
    assert {c.id for c in log} == set(acknowledged.values())
    assert [c.parents for c in log] == [(c.id,) for c in log[1:]] + [()]
    for (me, n), id in acknowledged.items():
        assert repo.load(id)["w"].data.tolist() == [me, n]
    for me in range(4):
        assert [c.message for c in log if c.message.startswith(f"{me}/")] == [
            f"{me}/{n}" for n in range(count - 1, -1, -1)
        ]
    assert repo.fsck().ok
    assert os.listdir(folder / "tmp") == os.listdir(folder / "intents") == []
    assert [e.value for e in _refs.history(repo.store.fs, f"refs/heads/{branch}") if isinstance(e, _refs.RefEntry)] == [
        c.id for c in log
    ]


def test_another_process_goes_on(
    repo: Repository, folder: Path, python: Callable[..., Any], weights: Weights, assert_bits: Bits
) -> None:
    first = repo.commit(weights(1, big=True), "first", state={"m": np.arange(5.0)}, metrics={"loss": 0.5})
    repo.tag("t")
    second = python(
        """
        import json, sys, numpy as np
        from coral import Repository
        repo = Repository(sys.argv[1], init=True)
        assert repo.resolve("t") == repo.show().id == repo.resolve(repo.show().id[:6])
        assert repo.load_state()["m"].tolist() == [0, 1, 2, 3, 4]
        weights = {name: tensor.data for name, tensor in repo.load("main").items()}
        weights["steps"] = weights["steps"] + 1
        print(json.dumps(repo.commit(weights, "second")))
        """,
        folder,
    )
    assert [c.id for c in repo.log()] == [second, first]
    assert repo.diff("HEAD~1").modified == ["steps"]
    assert_bits(repo.load("HEAD~1"), weights(1, big=True))
    assert int(repo.load()["steps"].data) == 2


def test_opening_with_init_twice(folder: Path, weights: Weights, assert_bits: Bits) -> None:
    for number in range(3):
        repo = Repository(folder, init=True, durability="fast")
        repo.commit(weights(number))
    assert len(repo.log()) == 3
    assert_bits(repo.load("HEAD~2"), weights(0))


def test_creating_is_gone_on_with_where_it_was_cut_off(
    folder: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    (folder / "packs").mkdir(parents=True)
    (folder / "tmp").mkdir()
    repo = Repository(folder, init=True)
    repo.commit({"a": np.ones(1)})
    assert repo.fsck().ok


@pytest.mark.parametrize("drop", [False, True])
def test_a_copy_elsewhere(
    repo: Repository, folder: Path, tmp_path: Path, weights: Weights, assert_bits: Bits, drop: bool
) -> None:
    for number in range(3):
        repo.commit(weights(number, big=True), state={"n": number})
    repo.tag("t", "HEAD~1")
    shutil.copytree(folder, tmp_path / "copy")
    if drop:  # as some tools do with empty folders
        for path, _, _ in os.walk(tmp_path / "copy", topdown=False):
            if not os.listdir(path):
                os.rmdir(path)
    shutil.rmtree(folder)
    copy = Repository(tmp_path / "copy", durability="fast")
    assert_bits(copy.load("t"), weights(1, big=True))
    assert copy.load_state() == {"n": 2}
    copy.commit(weights(9))
    copy.tag("u")
    copy.annotate("HEAD", reasons=["x"])
    assert len(copy.log()) == 4
    assert copy.fsck().ok


def test_a_relative_path_stays_where_it_was(repo: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.commit({"a": np.ones(1)})
    monkeypatch.chdir(folder.parent)
    found = Repository(folder.name)
    monkeypatch.chdir("/")
    assert len(found.log()) == 1
    assert found.path == folder


def test_many_commits_are_covered_by_an_index(
    repo: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_bits: Bits
) -> None:
    monkeypatch.setattr(_index, "_UNCOVERED", 8)
    monkeypatch.setattr(_refs, "FOLD", 8)
    monkeypatch.setattr(_refs, "_KEEP", 2)
    ids = [repo.commit({"a": np.full(3, n), "b": np.ones(2)}, str(n)) for n in range(60)]
    assert 1 <= len(os.listdir(folder / "index")) <= 4
    fresh = Repository(folder)
    assert [c.id for c in fresh.log()] == ids[::-1]
    for number in (0, 17, 59):
        assert_bits(fresh.load(ids[number]), {"a": np.full(3, number), "b": np.ones(2)})
    assert repo.stats().packs == 60
    assert repo.fsck().ok


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("held", ["store", "index", "collector", "file"])
def test_a_forked_process_waits_for_no_thread_of_its_parents(repo: Repository, held: str) -> None:
    """A worker of a data loader is forked off while a save in the background holds a lock."""
    large = np.arange(300_000.0)
    id = repo.commit({"a": large})
    loaded: Any = repo.load(id)
    (file, _), *_ = loaded._copies._open.values()
    locks = {"store": repo.store, "index": repo.store.index, "file": file}
    lock = locks[held]._lock if held in locks else repo._collector.lock
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    pid = os.fork()
    if not pid:
        signal.alarm(30)  # ends one that hangs
        status = 2
        try:
            fine = np.array_equal(loaded["a"].data, large) and np.array_equal(repo.load(id)["a"].data, large)
            repo.commit({"a": large + 1}, "forked")
            repo.stats()
            status = 0 if fine else 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    done.set()
    thread.join()
    assert status == 0
    assert [c.message for c in repo.log()] == ["forked", ""]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_may_commit_too(repo: Repository) -> None:
    repo.commit({"a": np.ones(300_000)})
    pid = os.fork()
    if not pid:
        try:
            repo.commit({"a": np.zeros(300_000)}, "forked")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    repo.commit({"a": np.full(300_000, 2.0)})
    assert [c.message for c in repo.log()] == ["", "forked", ""]
    assert not repo.load("HEAD~1")["a"].data.any()


def test_a_spawned_process_may_commit_too(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "r", init=True, durability="batch")
    repo.commit({"a": np.ones(3)})
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(_commit_there, (repo,)) == "batch"
    assert [c.message for c in repo.log()] == ["spawned", ""]


def _commit_there(repo: Repository) -> str:
    repo.commit({"a": np.zeros(3)}, "spawned")
    return repo.store.durability
