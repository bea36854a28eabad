"""Paths that are no repository, and repositories that this coral cannot use."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository, _json
from coral.errors import CorruptObject, NewerFormat, NotARepository, StorageError, UnsafeInput
from coral.filesystem import FileSystem, LocalFileSystem
from coral.store._files import seal


def test_no_repository_at_the_path(folder: Path, tmp_path: Path) -> None:
    for path in (folder, tmp_path, str(folder), tmp_path / "a" / "b"):
        with pytest.raises(NotARepository, match="init=True") as caught:
            Repository(path)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.path == str(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("init", [False, True])
def test_the_path_is_a_file(folder: Path, init: bool) -> None:
    folder.write_text("precious")
    for path in (folder, folder / "below"):
        with pytest.raises(NotARepository):
            Repository(path, init=init)
    assert folder.read_text() == "precious"


def test_a_file_is_in_the_way(folder: Path) -> None:
    folder.mkdir()
    (folder / "packs").write_text("precious")
    with pytest.raises(NotARepository):
        Repository(folder, init=True)
    assert not (folder / "format").exists()
    assert (folder / "packs").read_text() == "precious"


def test_init_in_a_folder_with_other_things(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.py").write_text("precious")
    repo = Repository(folder, init=True)
    repo.commit({"a": np.ones(1)})
    assert (folder / "train.py").read_text() == "precious"
    assert repo.fsck().ok


@pytest.mark.parametrize("init", [False, True])
def test_a_newer_format(repo: Repository, folder: Path, init: bool) -> None:
    (folder / "format").write_bytes(seal(_json.dumps({"format": 2, "more": "x"})))
    with pytest.raises(NewerFormat, match=r"format 2.*Upgrade") as caught:
        Repository(folder, init=init)
    assert caught.value.path == str(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"1", b"{}", seal(b"{}"), seal(b"[]"), seal(b'{"format":0}'), seal(b'{"format":true}'),
     seal(b'{"format":"1"}'), seal(b'{"format":1}')[:-1], seal(b"NaN"), b"\xff" * 100, b"x" * 5000],
    ids=lambda c: repr(c[:16]),
)  # fmt: skip
@pytest.mark.parametrize("init", [False, True])
def test_a_damaged_format_file(repo: Repository, folder: Path, content: bytes, init: bool) -> None:
    (folder / "format").write_bytes(content)
    with pytest.raises(CorruptObject, match="format"):
        Repository(folder, init=init)
    assert (folder / "format").read_bytes() == content


def test_any_bit_of_the_format_file_flipped(repo: Repository, folder: Path, flip: Callable[..., None]) -> None:
    for at in range((folder / "format").stat().st_size):
        flip(folder / "format", at, at % 8)
        with pytest.raises(CorruptObject):
            Repository(folder)
        flip(folder / "format", at, at % 8)
    Repository(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_format_file_that_is_none(repo: Repository, folder: Path, kind: str, tmp_path: Path) -> None:
    (folder / "format").rename(tmp_path / "elsewhere")
    match kind:
        case "link":
            (folder / "format").symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(folder / "format")
        case "folder":
            (folder / "format").mkdir()
    with pytest.raises((CorruptObject, StorageError)):
        Repository(folder)


def test_a_filesystem_without_hard_links(
    tmp_path: Path, around: Callable[..., FileSystem], failing: Callable[..., Callable[[str, str], None]]
) -> None:
    for code in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
        fs = around(LocalFileSystem(tmp_path / str(code)), failing(code, kinds=frozenset({"link"})))
        with pytest.raises(StorageError, match="hard links"):
            Repository(fs, init=True)
        with pytest.raises(NotARepository):
            Repository(tmp_path / str(code))
        Repository(tmp_path / str(code), init=True)


def test_a_path_with_a_nul() -> None:
    with pytest.raises(UnsafeInput, match="NUL"):
        Repository("a\0b", init=True)
