"""A remote in a folder."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest

from coral.errors import CorruptObject
from coral.remotes import open_remote
from coral.testing import RemoteTests


class TestDirectory(RemoteTests):
    def make(self, folder: Path) -> str:
        return str(folder / "remote")


class TestFileUrl(RemoteTests):
    def make(self, folder: Path) -> str:
        return f"file://{folder}/re%20mote"


def test_a_link_in_it_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "remote" / "format").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptObject, match="link"):
        open_remote(tmp_path / "remote").read("format", 0, 10)


def test_a_put_that_fails_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    remote = open_remote(tmp_path / "remote")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coral._local_files.LocalWriteFile.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        remote.put("format", memoryview(b"x"))
    assert [path for path in (tmp_path / "remote").rglob("*") if path.is_file()] == []


def test_folders_in_folders_are_listed_however_deep(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    remote = open_remote(tmp_path / "remote")
    remote.put("packs/a.pack", memoryview(b"x"))
    deep = "packs/" + "d/" * 300
    os.makedirs(tmp_path / "remote" / deep)
    (tmp_path / "remote" / deep / "b").write_bytes(b"xy")
    before = sys.getrecursionlimit()
    request.addfinalizer(lambda: sys.setrecursionlimit(before))
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    assert sorted((each.name, each.size) for each in remote.list("packs/")) == [("packs/a.pack", 1), (deep + "b", 2)]
