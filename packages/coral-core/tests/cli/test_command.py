"""The command line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coral
from coral import Repository
from coral.cli import main
from coral.maintenance._repack import _lease


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repo", init=True)
    weight = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    for number in range(3):
        made.commit({"w": weight * np.float32(1 + number / 1e5)}, str(number))
    return made


def test_repack(repo: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repack", str(repo.path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 tensors of 1 commits encoded")  # the oldest is a keyframe, and hardly shrinks
    assert not err
    assert main(["repack", "--aggressive", "--entropy", "deflate", str(repo.path)]) == 0


def test_repack_while_another_one_is_at_work(repo: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    with _lease(repo.store.fs):
        assert main(["repack", str(repo.path)]) == 1
        assert "coral repack: another process is repacking" in capsys.readouterr().err


def test_gc(repo: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    repo.branch("gone")
    repo.commit({"w": np.arange(100_000)}, "gone", branch="gone")
    repo.delete_branch("gone")
    assert main(["gc", str(repo.path), "--grace", "1000"]) == 0
    assert capsys.readouterr().out.startswith("0 bytes freed")
    assert main(["gc", str(repo.path)]) == 0
    assert "1 packs removed" in capsys.readouterr().out


def test_errors_are_a_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repack", str(tmp_path / "nothing")]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("coral repack: no coral repository")
    for wrong in ([], ["unknown"], ["repack"], ["repack", "x", "--entropy", "none"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2


def test_version_names_the_adapters_that_are_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert version(capsys) == [f"coral-core {coral.__version__}", "adapters: none"]
    info = tmp_path / "coral_abacus-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: coral-abacus\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[coral.adapters]\nbeads = never_imported\nabacus = never_imported\n")
    importlib.invalidate_caches()
    assert version(capsys)[1] == "adapters: abacus (coral-abacus 2.5), beads (coral-abacus 2.5)"


def version(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_as_a_module(repo: Repository) -> None:
    root = str(Path(coral.errors.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    for arguments in (["--version"], ["repack", "--auto", str(repo.path)]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coral", *arguments],
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout
