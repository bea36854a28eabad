"""The seam to the operating system, on a real folder."""

from __future__ import annotations

import gc
import mmap
import os
import sys
from pathlib import Path

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


def test_a_region_is_private(disk: LocalFileSystem, content: np.ndarray, tmp_path: Path) -> None:
    file = disk.open("file")
    view = file.region(PAGE, 2 * PAGE)
    assert view is not None
    assert np.array_equal(view, content[PAGE : 3 * PAGE])
    view[:] = 0
    assert (tmp_path / "file").read_bytes() == content.tobytes()
    again = disk.open("file").region(PAGE, 2 * PAGE)
    assert np.array_equal(again, content[PAGE : 3 * PAGE])


def test_a_region_outlives_its_file(disk: LocalFileSystem, content: np.ndarray) -> None:
    file = disk.open("file")
    view = file.region(0, PAGE)
    file.close()
    disk.unlink("file")
    del file
    gc.collect()
    assert np.array_equal(view, content[:PAGE])


def test_a_region_is_given_out_once(disk: LocalFileSystem, content: np.ndarray) -> None:
    """What was written into a view may stay in the pages at its ends."""
    file = disk.open("file")
    view = file.region(0, PAGE)
    assert view is not None
    for offset, size in ((0, PAGE), (0, 1), (PAGE - 1, 2), (100, 50), (0, content.size)):
        assert file.region(offset, size) is None
    view[:] = 0
    del view
    assert file.region(0, PAGE) is None
    assert file.region(PAGE, PAGE) is not None
    assert np.array_equal(disk.open("file").region(0, PAGE), content[:PAGE])


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (PAGE, 5 * PAGE), (8 * PAGE, 1), (5 * PAGE + 100, 1)])
def test_a_region_that_cannot_be_had(disk: LocalFileSystem, content: np.ndarray, offset: int, size: int) -> None:
    assert disk.open("file").region(offset, size) is None


@pytest.mark.parametrize("size", [17, PAGE, 2 * PAGE + 17])
@pytest.mark.parametrize("start", [0, 64, PAGE - 1, PAGE + 1])
def test_regions_side_by_side(disk: LocalFileSystem, content: np.ndarray, start: int, size: int) -> None:
    """They may share a page; dropping one changes nothing in the others."""
    file = disk.open("file")
    before, view, after = file.region(0, start), file.region(start, size), file.region(start + size, PAGE)
    assert view is not None
    assert after is not None
    assert np.array_equal(view, content[start : start + size])
    after[:] = 1
    view[:] = 2
    del view
    assert (after == 1).all()
    assert before is None or np.array_equal(before, content[:start])
    others = disk.open("file").region(0, content.size)
    assert np.array_equal(others, content)


def private_pages(path: Path) -> int:
    """Bytes of a mapped file that this process holds copies of."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.partition(" ")[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Private_Dirty:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_dropping_a_region_lets_its_pages_go(disk: LocalFileSystem, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(65 * PAGE))
    file = disk.open("large")
    view = file.region(100, 64 * PAGE)
    assert view is not None
    view[:] = 1
    derived = view.view(np.uint32).reshape(2, -1)[1]
    del view
    assert private_pages(tmp_path / "large") >= 64 * PAGE  # something made from it is still in use
    del derived
    assert private_pages(tmp_path / "large") <= 2 * PAGE


def test_dropping_a_region_leaves_others_alone(disk: LocalFileSystem, content: np.ndarray) -> None:
    file = disk.open("file")
    views = [file.region(0, PAGE - 10), file.region(PAGE, PAGE + 5), file.region(3 * PAGE, 2 * PAGE)]
    for number, view in enumerate(views):
        assert view is not None
        view[:] = number
    views[1] = None
    assert (views[0] == 0).all()
    assert (views[2] == 2).all()


def test_regions_that_overlap_do_not_show_in_each_other(disk: LocalFileSystem, content: np.ndarray) -> None:
    file = disk.open("file")
    outer = file.region(0, 3 * PAGE)
    inner = file.region(PAGE, PAGE)
    assert outer is not None
    outer[:] = 0
    assert inner is None or np.array_equal(inner, content[PAGE : 2 * PAGE])


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


@pytest.mark.parametrize("pid", [2**31 - 1, 2**40, 2**70])
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
