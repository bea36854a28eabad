"""A pack whose trailer says that its directory is huge, in a sparse file, which costs nothing: no memory is taken."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral._digest import BLOCK
from coral.errors import CorruptObject
from coral.store import _pack

NAME = "5" * 64
SIZE = 1 << 43


@pytest.fixture
def sparse(repo: Repository, folder: Path) -> Path:
    """A repository of one commit, with such a pack beside the commit's."""
    repo.commit({"a": np.arange(3)}, "first")
    trailer = struct.pack("<8sQQ32sI", b"CORALTR\n", 0, SIZE - 64, bytes.fromhex(NAME), 0)
    with (folder / "packs" / f"{NAME}.pack").open("wb") as file:
        file.truncate(SIZE)
        file.seek(SIZE - 64)
        file.write(trailer + struct.pack("<I", zlib.crc32(trailer)))
    return folder


def test_it_is_a_damaged_pack_like_any_other(sparse: Path) -> None:
    repo = Repository(sparse)
    assert [commit.message for commit in repo.log()] == ["first"]
    assert repo.load()["a"].data.tolist() == [0, 1, 2]
    (problem,) = repo.fsck().problems
    assert problem.path == f"packs/{NAME}.pack"
    assert f"its directory has {SIZE - 64} bytes" in problem.message
    repo.commit({"a": np.arange(4)}, "second")


def test_a_remote_that_has_one_is_cloned(sparse: Path, tmp_path: Path) -> None:
    for url in (str(sparse), f"file://{sparse}"):
        clone = Repository.clone(url, tmp_path / f"clone{len(url)}")
        assert clone.load()["a"].data.tolist() == [0, 1, 2]
        assert clone.fsck().ok


def test_none_is_written_that_would_not_be_read(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.commit({"a": np.arange(3)}, "first")
    with monkeypatch.context() as patched:
        patched.setattr(_pack, "LARGEST_DIRECTORY", 300)
        with pytest.raises(CorruptObject, match="directory"):
            repo.commit({"a": np.arange(4)}, "second")
    assert [commit.message for commit in repo.log()] == ["first"]
    assert repo.fsck().ok


def test_a_directory_of_more_than_is_ever_saved_at_once_is_far_below_the_limit() -> None:
    """A sum and a SHA-256 for each block, and for each tensor of the largest tree an entry of two sizes."""
    blocks, tensors = (4 << 40) // BLOCK, (16 << 20) // len(f'"":{{"dtype":"int8","id":"{NAME}","shape":[1,1]}}')
    assert blocks * (32 + 4) + tensors * (_pack.ENTRY.itemsize + 2 * 8) < _pack.LARGEST_DIRECTORY / 5
