"""Repacking on all processors: by processes that are fed, and without them where there are none."""

from __future__ import annotations

import io
import json
import stat
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from coral import DeltaConfig, Repository
from coral.maintenance import _crew, _repack, serve
from coral.store._pack import RAW, path_of, read_directory

Arrays = dict[str, np.ndarray]


@pytest.fixture
def versions() -> list[Arrays]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(50_000).astype(np.float32)
    return [{"w": weight * np.float32(1 + n / 1e4), "n": rng.standard_normal(2000)} for n in range(6)]


@pytest.fixture
def repo(tmp_path: Path, versions: list[Arrays], monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(_crew, "_WORTH", 1)
    monkeypatch.setattr(_crew, "threads", lambda: 2)
    monkeypatch.setattr(_repack, "_BATCH", 300_000)  # two commits in a batch
    made = Repository(tmp_path / "repo", init=True, durability="fast")
    for version in versions:
        made.commit(version)
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The processes that were started."""
    found: list[object] = []
    start = _crew._Crew._start

    def spy(self: _crew._Crew) -> object:
        found.append(start(self))
        return found[-1]

    monkeypatch.setattr(_crew._Crew, "_start", spy)
    return found


def check(repo: Repository, versions: list[Arrays]) -> None:
    for commit, version in zip(reversed(repo.log()), versions, strict=True):
        for name, array in version.items():
            assert repo.load(commit.id)[name].data.tobytes() == array.tobytes()
    assert repo.fsck().ok


def encoded(repo: Repository) -> int:
    fs = repo.store.fs
    packs = (read_directory(fs, name.removesuffix(".pack")) for name in fs.list("packs"))
    return sum(int((pack.rows["codec"] != RAW).sum()) for pack in packs)


def test_processes_do_the_work(repo: Repository, versions: list[Arrays], started: list[object]) -> None:
    seen: list[tuple[int, int]] = []
    done = repo.repack(progress=lambda done, total: seen.append((done, total)))
    assert len(started) == 2
    assert (done.commits, encoded(repo)) == (5, done.tensors)
    assert done.raw_bytes > done.stored_bytes > 0
    assert seen[-1][0] == seen[-1][1]
    check(repo, versions)
    assert repo.store.fs.list("intents") == []
    assert repo.store.fs.list("tmp") == []


def test_they_do_as_one_alone(repo: Repository, tmp_path: Path, versions: list[Arrays]) -> None:
    alone = Repository(tmp_path / "alone", init=True, durability="fast")
    for version in versions:
        alone.commit(version)
    done = repo.repack(config=DeltaConfig(entropy="deflate", group_size=3))
    _crew._WORTH = 1 << 40  # monkeypatched by `repo`, and set back by it
    assert (
        again := alone.repack(config=DeltaConfig(entropy="deflate", group_size=3))
    ).stored_bytes == done.stored_bytes
    assert again.tensors == done.tensors


@pytest.mark.parametrize("script", ["exit 1", "cat >/dev/null", "echo nonsense; cat >/dev/null", 'echo "[]"; exec cat'])
def test_where_they_fail_it_is_done_here(
    repo: Repository, versions: list[Arrays], script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stand-in"
    path.write_text(f"#!/bin/sh\n{script.replace('cat >/dev/null', 'read a; read b')}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))
    assert repo.repack().commits == 5
    assert encoded(repo) > 0
    check(repo, versions)


def test_where_there_are_none_it_is_done_here(
    repo: Repository, versions: list[Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/there/is/no/such/python")
    assert repo.repack().commits == 5
    check(repo, versions)


def test_little_work_starts_no_process(
    repo: Repository, started: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_crew, "_WORTH", 128 << 20)
    assert repo.repack().commits == 5
    assert started == []


def test_what_one_of_them_does(repo: Repository, versions: list[Arrays]) -> None:
    oldest, second = [commit.id for commit in reversed(repo.log())][:2]
    orders = {"config": asdict(DeltaConfig(min_size=0)), "aggressive": False}
    sizes = {entry.id: entry.nbytes for entry in repo.tree(second).values()}
    task = {"commit": second, "keyframe": False, "key": oldest, "tensors": sizes}
    questions = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in (orders, [task], [])))
    answers = io.BytesIO()
    serve(repo.store, questions, answers)
    first, last = map(json.loads, answers.getvalue().splitlines())
    assert first["commits"] == 1
    assert first["stored_bytes"] < first["raw_bytes"]
    assert path_of(first["pack"]) in {f"packs/{path.name}" for path in (repo.path / "packs").iterdir()}
    assert last == {"commits": 0, "tensors": 0, "raw_bytes": 0, "stored_bytes": 0, "pack": ""}
    check(repo, versions)
