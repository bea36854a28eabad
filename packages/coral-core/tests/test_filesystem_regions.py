"""Views of a file: private, given out once, and let go when the last that was made from them is gone."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import numpy as np
import pytest

from coral.filesystem import LocalFileSystem

PAGE = mmap.PAGESIZE


@pytest.fixture
def disk(tmp_path: Path) -> LocalFileSystem:
    return LocalFileSystem(tmp_path)


@pytest.fixture
def content(tmp_path: Path) -> np.ndarray:
    data = np.random.default_rng(0).integers(0, 256, 5 * PAGE + 100, np.uint8)
    (tmp_path / "file").write_bytes(data.tobytes())
    return data


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


def private_pages(path: Path, kind: str = "Private_Dirty:") -> int:
    """Bytes of a mapped file that this process holds: copies, unless another kind is asked for."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.partition(" ")[0]:
            here = line.endswith(str(path))
        elif here and line.startswith(kind):
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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_dropping_a_view_lets_its_pages_go(disk: LocalFileSystem, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(64 * PAGE))
    file = disk.open("large")
    view = file.view(0, 64 * PAGE)
    assert view is not None
    assert not view.any()
    assert private_pages(tmp_path / "large", "Rss:") == 64 * PAGE
    del view
    assert private_pages(tmp_path / "large", "Rss:") == 0
    assert not np.any(file.view(0, 64 * PAGE))  # as often as it is asked for


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
