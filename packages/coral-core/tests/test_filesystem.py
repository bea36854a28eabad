"""The seam to the operating system, on a real folder."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coral.errors import CorruptObject
from coral.filesystem import LocalFileSystem, Origin

PAGE = mmap.PAGESIZE
REFUSED = (OSError, CorruptObject)
local = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")


@pytest.fixture
def disk(tmp_path: Path) -> LocalFileSystem:
    return LocalFileSystem(tmp_path)


@pytest.fixture
def content(tmp_path: Path) -> np.ndarray:
    data = np.random.default_rng(0).integers(0, 256, 5 * PAGE + 100, np.uint8)
    (tmp_path / "file").write_bytes(data.tobytes())
    return data


@pytest.mark.parametrize("refuses", [None, errno.ENOTSUP, errno.EIO])
def test_on_macos_a_sync_reaches_the_platter(
    disk: LocalFileSystem, monkeypatch: pytest.MonkeyPatch, refuses: int | None
) -> None:
    """Files and folders: fsync stops at the drive's cache there. Filesystems that do not know better have that."""
    full, plain = [], []

    def fcntl(fd: int, command: int) -> None:
        if refuses is not None:
            raise OSError(refuses, os.strerror(refuses))
        full.append(command)

    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=fcntl))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "fsync", plain.append)
    file = disk.create("a")
    for sync in (file.fsync, partial(disk.fsync_dir, "")):
        with pytest.raises(OSError, match="Input/output") if refuses == errno.EIO else nullcontext():
            sync()
    file.close()
    assert (len(full), len(plain)) == {None: (2, 0), errno.ENOTSUP: (0, 2), errno.EIO: (0, 0)}[refuses]


def test_create_write_read(disk: LocalFileSystem) -> None:
    file = disk.create("a")
    file.write([b"abc", b"", np.arange(3, dtype=np.uint8)])
    file.write([])
    file.fsync()
    file.close()
    file.close()
    assert disk.read("a", 6) == b"abc\x00\x01\x02"
    assert disk.stat("a").size == 6
    with pytest.raises(FileExistsError):
        disk.create("a")


def test_many_buffers_in_one_write(disk: LocalFileSystem) -> None:
    file = disk.create("a")
    file.write([bytes([i % 256]) * (i % 3) for i in range(3000)])
    file.close()
    assert disk.read("a", 1 << 20) == b"".join(bytes([i % 256]) * (i % 3) for i in range(3000))


def test_short_writes_are_gone_on_with(disk: LocalFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [memoryview(buffers[0])[:3]]))
    file = disk.create("a")
    file.write([b"abcdefgh", b"ij", np.arange(5, dtype=np.uint8)])
    file.close()
    assert disk.read("a", 100) == b"abcdefghij\x00\x01\x02\x03\x04"


def test_a_small_file_has_a_limit(disk: LocalFileSystem, content: np.ndarray) -> None:
    with pytest.raises(CorruptObject, match="limit"):
        disk.read("file", content.size - 1)


def test_reading_past_the_end(disk: LocalFileSystem, content: np.ndarray) -> None:
    file = disk.open("file")
    with pytest.raises(EOFError):
        file.read_into(np.empty(10, np.uint8), content.size - 5)
    file.read_into(np.empty(0, np.uint8), content.size)
    file.close()


def test_an_open_file_outlives_its_name(disk: LocalFileSystem, content: np.ndarray) -> None:
    file = disk.open("file")
    disk.unlink("file")
    buffer = np.empty(content.size, np.uint8)
    file.read_into(buffer, 0)
    assert np.array_equal(buffer, content)


def test_folders(disk: LocalFileSystem) -> None:
    assert disk.mkdir("d")
    assert not disk.mkdir("d")
    assert disk.list("d") == []
    assert disk.list("nowhere") == []
    disk.create("d/x").close()
    assert disk.list("d") == ["x"]
    with pytest.raises(FileExistsError):
        disk.mkdir("d/x")
    disk.fsync_dir("d")
    disk.fsync_file("d/x")


def test_link_and_replace(disk: LocalFileSystem, content: np.ndarray) -> None:
    disk.link("file", "second")
    assert disk.stat("second").size == content.size
    with pytest.raises(FileExistsError):
        disk.link("second", "file")
    disk.create("third").close()
    disk.replace("third", "second")
    assert disk.read("second", 10) == b""
    assert sorted(disk.list("")) == ["file", "second"]
    assert disk.usage() == content.size


@local
def test_links_are_not_followed(disk: LocalFileSystem, content: np.ndarray, tmp_path: Path) -> None:
    os.symlink(tmp_path / "file", tmp_path / "link")
    for refuse in (disk.open, lambda path: disk.read(path, 1 << 20), disk.fsync_file, disk.create):
        with pytest.raises(REFUSED):
            refuse("link")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    with pytest.raises(REFUSED):
        disk.create("dangling")
    assert not (tmp_path / "nowhere").exists()


@local
def test_a_pipe_is_refused_and_not_waited_for(disk: LocalFileSystem, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(REFUSED, match="regular"):
        disk.open("pipe")


@local
def test_a_folder_or_device_is_no_file(disk: LocalFileSystem, tmp_path: Path) -> None:
    disk.mkdir("d")
    with pytest.raises(REFUSED, match="regular"):
        disk.open("d")
    with pytest.raises(REFUSED, match="regular"):
        LocalFileSystem("/dev").open("null")


def test_the_root_is_made_with_what_is_above_it(tmp_path: Path) -> None:
    deep = LocalFileSystem(tmp_path / "a" / "b" / "c")
    deep.make_root()
    deep.make_root()
    assert deep.list("") == []
    assert deep.root == str(tmp_path / "a" / "b" / "c")


def test_processes(disk: LocalFileSystem) -> None:
    here = disk.origin()
    assert here.pid == os.getpid()
    assert disk.alive(here)
    assert not disk.alive(here._replace(boot="another"))
    assert abs(disk.now() - disk.stat("").mtime) < 3600


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1, 2**40, 2**70])
def test_a_process_that_cannot_be(disk: LocalFileSystem, pid: int) -> None:
    assert not disk.alive(Origin(disk.origin().host, disk.origin().boot, pid))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_descriptors_are_closed(disk: LocalFileSystem, content: np.ndarray) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        disk.open("file").region(0, PAGE)
        disk.read("file", 1 << 20)
        disk.fsync_dir("")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
def test_more_files_may_be_open_than_the_soft_limit_says(python: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    code = """
    import resource, sys
    from coral.filesystem import LocalFileSystem
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    fs = LocalFileSystem(sys.argv[1])
    files = [fs.open("x") for _ in range(200)]
    print([len(files), int(resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard)])
    """
    assert python(code, tmp_path) == [200, 1]
    none_left = code.replace("(64, hard)", "(64, 64)")
    with pytest.raises(AssertionError, match="Too many open files"):
        python(none_left, tmp_path)
