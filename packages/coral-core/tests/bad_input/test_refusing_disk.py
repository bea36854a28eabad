"""A disk that is full, a folder that is read-only: a clear error, nothing half-written, and a retry that succeeds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.errors import DiskFull, NotARepository, ReadOnly, StorageError
from coral.filesystem import FileSystem, LocalFileSystem
from coral.store import _index, _refs

CODES = [
    (errno.ENOSPC, DiskFull),
    (errno.EDQUOT, DiskFull),
    (errno.EROFS, ReadOnly),
    (errno.EACCES, ReadOnly),
    (errno.EIO, StorageError),
]
Weights = Callable[..., dict[str, np.ndarray]]

OPERATIONS: dict[str, Callable[[Repository, Any], object]] = {
    "commit": lambda repo, weights: repo.commit(weights, "second", state={"m": np.ones(2)}),
    "new branch": lambda repo, weights: repo.commit(weights, "second", branch="new"),
    "annotate": lambda repo, weights: repo.annotate("HEAD", reasons=["x"], state={"m": np.ones(2)}),
    "branch": lambda repo, weights: repo.branch("new"),
    "tag": lambda repo, weights: repo.tag("new"),
    "checkout": lambda repo, weights: repo.checkout("x"),
    "delete": lambda repo, weights: repo.delete_branch("x"),
}


def facts(repo: Repository) -> tuple[Any, ...]:
    """What a user can tell of a repository."""
    log = repo.log()
    return repo.branches(), repo.tags(), repo.head, [(c.id, c.reasons, c.state) for c in log]


@pytest.mark.parametrize("once", [False, True], ids=["from then on", "once"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_full_disk_at_any_write(
    fs: LocalFileSystem,
    folder: Path,
    weights: Weights,
    assert_bits: Callable[..., None],
    name: str,
    once: bool,
    around: Callable[..., FileSystem],
    failing: Callable[..., Any],
) -> None:
    whole = Repository(fs, durability="fast")
    whole.commit(weights())
    whole.branch("x")
    for at in range(100):
        before = facts(whole)
        fail = failing(errno.ENOSPC, at=at, once=once)
        repo = Repository(around(fs, fail), durability="fast")
        if fail.count:
            pytest.fail("opening wrote something")
        try:
            OPERATIONS[name](repo, weights(1))
        except DiskFull:
            pass
        else:
            assert fail.count <= at
            break
        assert facts(Repository(folder)) == before
        assert Repository(folder).fsck().ok
        assert os.listdir(folder / "tmp") == os.listdir(folder / "intents") == []
        assert_bits(Repository(folder).load(), weights())
    else:
        pytest.fail("it never succeeded")
    assert at >= 3
    assert facts(Repository(folder)) != before
    assert Repository(folder).fsck().ok


def test_every_refusal_has_its_class(
    fs: LocalFileSystem, weights: Weights, around: Callable[..., FileSystem], failing: Callable[..., Any]
) -> None:
    Repository(fs).commit(weights())
    for code, error in CODES:
        repo = Repository(around(fs, failing(code)))
        for name, operation in OPERATIONS.items():
            if name == "checkout" or name == "delete":
                continue
            with pytest.raises(error) as caught:
                operation(repo, weights(1))
            assert type(caught.value) is error
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == code
            assert os.strerror(code) in str(caught.value)
        assert len(repo.log()) == 1
        assert repo.fsck().ok


@pytest.mark.parametrize(
    "kinds", [{"fsync"}, {"fsync_dir"}, {"fsync", "fsync_dir"}], ids=lambda kinds: "+".join(sorted(kinds))
)
def test_a_sync_that_fails_is_never_acknowledged(
    fs: LocalFileSystem,
    weights: Weights,
    around: Callable[..., FileSystem],
    failing: Callable[..., Any],
    kinds: set[str],
) -> None:
    Repository(fs).commit(weights())
    for at in range(4):
        fail = failing(errno.EIO, at=at, kinds=frozenset(kinds), once=True)
        repo = Repository(around(fs, fail))
        if at < (4 if len(kinds) == 2 else 2):
            with pytest.raises(StorageError):
                repo.commit(weights(at + 1))
        repo.commit(weights(at + 10))
        assert repo.fsck().ok
        assert fs.list("tmp") == []


def test_an_index_that_cannot_be_written_does_not_undo_a_commit(
    fs: LocalFileSystem,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    around: Callable[..., FileSystem],
) -> None:
    """The ref has moved by then, and the index is only derived: to raise would be to call a saved commit lost."""
    monkeypatch.setattr(_index, "_UNCOVERED", 2)

    def refuse(kind: str, path: str) -> None:
        if kind == "replace" and path.startswith("index/"):
            raise OSError(errno.ENOSPC, "full", path)

    repo = Repository(around(fs, refuse), durability="fast")
    ids = [repo.commit(weights(n)) for n in range(4)]
    assert [c.id for c in repo.log()] == ids[::-1]
    assert fs.list("index") == fs.list("tmp") == []


def test_a_fold_that_cannot_be_written_does_not_undo_a_commit(
    fs: LocalFileSystem,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    around: Callable[..., FileSystem],
) -> None:
    monkeypatch.setattr(_refs, "FOLD", 2)
    monkeypatch.setattr(_refs, "_KEEP", 1)

    def refuse(kind: str, path: str) -> None:
        if kind == "replace" and path.endswith(".log"):
            raise OSError(errno.ENOSPC, "full", path)

    repo = Repository(around(fs, refuse), durability="fast")
    ids = [repo.commit(weights(n)) for n in range(5)]
    assert [c.id for c in repo.log()] == ids[::-1]
    assert fs.list("tmp") == []


def test_a_read_only_repository_can_be_read(
    fs: LocalFileSystem,
    weights: Weights,
    assert_bits: Callable[..., None],
    around: Callable[..., FileSystem],
    failing: Callable[..., Any],
) -> None:
    Repository(fs).commit(weights(big=True), state={"m": np.ones(3)})
    os.rmdir(Path(fs.root) / "trash")  # as if lost in a copy: it cannot be made anew here
    every = frozenset({"create", "mkdir", "write", "link", "replace", "unlink", "fsync", "fsync_dir", "fsync_file"})
    for init in (False, True):
        repo = Repository(around(fs, failing(errno.EROFS, kinds=every)), init=init)
        assert_bits(repo.load(), weights(big=True))
        assert repo.load_state()["m"].tolist() == [1, 1, 1]
        assert (len(repo.log()), repo.head, repo.fsck().ok, repo.stats().commits) == (1, "main", True, 1)
        with pytest.raises(ReadOnly, match="reading still works"):
            repo.commit(weights(1))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(fs: LocalFileSystem, folder: Path, weights: Weights) -> None:
    Repository(fs).commit(weights())
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        with pytest.raises(ReadOnly):
            Repository(folder).commit(weights(1))
        assert len(Repository(folder).load()) == 3
    finally:
        for path in folders:
            path.chmod(0o755)


def test_init_on_a_full_disk(tmp_path: Path, around: Callable[..., FileSystem], failing: Callable[..., Any]) -> None:
    kinds = frozenset({"make_root", "mkdir", "create", "write", "link"})
    for at in range(50):
        fs = LocalFileSystem(tmp_path / str(at))
        try:
            Repository(around(fs, failing(errno.ENOSPC, at=at, kinds=kinds)), init=True)
        except DiskFull:
            with pytest.raises(NotARepository):
                Repository(fs)
            repo = Repository(fs, init=True, durability="fast")
            repo.commit({"a": np.ones(1)})
            assert repo.fsck().ok
        else:
            break
    assert 10 < at < 49
