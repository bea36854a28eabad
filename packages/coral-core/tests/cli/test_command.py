"""The command line."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coral
from coral import Repository
from coral.cli import main
from coral.filesystem import LocalFileSystem
from coral.maintenance._repack import _lease
from coral.store._files import seal


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


def test_fsck_says_by_its_status_what_it_found(repo: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(repo.path)
    assert main(["fsck", path]) == 0
    assert "no damage" in capsys.readouterr().out
    entry = max((repo.path / "refs/heads/main").iterdir())
    whole = entry.read_bytes()
    entry.write_bytes(whole[:30])
    assert main(["fsck", path]) == 4
    assert f"refs/heads/main/{entry.name}: " in capsys.readouterr().out
    assert main(["fsck", path, "--repair"]) == 1
    assert "seen to: " in capsys.readouterr().out
    assert main(["fsck", path]) == 0
    (oldest,) = (pack for pack in (repo.path / "packs").iterdir() if b'"message":"0"' in pack.read_bytes())
    oldest.unlink()
    assert main(["fsck", path, "--repair"]) == 4
    capsys.readouterr()
    assert main(["fsck", str(repo.path / "nothing")]) == 8
    assert capsys.readouterr().err.startswith("coral fsck: no coral repository")
    with pytest.raises(SystemExit) as caught:
        main(["fsck", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for status in ("0  nothing", "1  there was", "4  there is", "8  it could not", "2  the command"):
        assert status in shown


@pytest.mark.parametrize("how", ["changed", "lost", "newer"])
def test_fsck_of_a_repository_that_cannot_be_opened(
    repo: Repository, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    file = repo.path / "format"
    match how:
        case "changed":
            file.write_bytes(b"x" + file.read_bytes())
        case "lost":
            file.unlink()
        case "newer":
            file.write_bytes(seal(b'{"format":2}'))
    found = file.read_bytes() if file.exists() else None
    assert main(["fsck", str(repo.path)]) == (8 if how == "newer" else 4)
    assert (file.read_bytes() if file.exists() else None) == found
    assert main(["fsck", str(repo.path), "--repair"]) == (8 if how == "newer" else 1)
    if how != "newer":
        assert len(Repository(repo.path).log()) == 3
        assert main(["fsck", str(repo.path)]) == 0


@pytest.mark.parametrize("folder", ["tmp", "notes", "index", "intents"])
def test_fsck_where_an_empty_folder_was_lost_with_the_format(repo: Repository, folder: str) -> None:
    shutil.rmtree(repo.path / folder)
    (repo.path / "format").unlink()
    assert main(["fsck", str(repo.path)]) == 4
    assert main(["fsck", str(repo.path), "--repair"]) == 1
    assert main(["fsck", str(repo.path)]) == 0
    assert len(Repository(repo.path).log()) == 3


@pytest.mark.parametrize("how", ["changed", "lost"])
def test_fsck_where_the_disk_takes_no_format(
    repo: Repository, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    file = repo.path / "format"
    file.unlink() if how == "lost" else file.write_bytes(b"x")

    def create(self: LocalFileSystem, path: str) -> None:
        raise OSError(errno.EFBIG, "File too large", path)

    monkeypatch.setattr(LocalFileSystem, "create", create)
    assert main(["fsck", str(repo.path), "--repair"]) == 8
    assert capsys.readouterr().err.startswith("coral fsck: repairing the repository")


def test_an_error_of_fsck_itself_is_not_taken_for_a_repair(
    repo: Repository, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Repository, repair: bool) -> None:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr(Repository, "fsck", fail)
    assert main(["fsck", str(repo.path)]) == 8
    assert "ZeroDivisionError: nobody thought of it" in capsys.readouterr().err


def test_fsck_takes_no_other_folder_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    assert main(["fsck", str(tmp_path), "--repair"]) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["packs"]
