"""What is synced, when, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import ConfigError, StorageError
from coral.filesystem import FileSystem, LocalFileSystem

SYNCS = {"fsync", "fsync_file", "fsync_dir"}
Open = Callable[..., tuple[Repository, list[tuple[str, str]]]]


@pytest.fixture
def recorded(fs: LocalFileSystem, around: Callable[..., FileSystem]) -> Open:
    """Opens the repository; what it does to the filesystem is written into the list beside it."""

    def start(durability: str = "full") -> tuple[Repository, list[tuple[str, str]]]:
        calls: list[tuple[str, str]] = []
        repo = Repository(around(fs, lambda kind, path: calls.append((kind, path))), durability=durability)  # type: ignore[arg-type]
        calls.clear()
        return repo, calls

    return start


def syncs(calls: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(kind, path) for kind, path in calls if kind in SYNCS]


@pytest.mark.parametrize("tensors", [1, 50])
def test_a_durable_commit_is_four_syncs(recorded: Open, tensors: int) -> None:
    repo, calls = recorded()
    repo.commit({"a": np.ones(3)})
    calls.clear()
    repo.commit({str(n): np.full(3, n) for n in range(tensors)}, state={"x": np.ones(2)})
    assert [kind for kind, _ in syncs(calls)] == ["fsync", "fsync_dir", "fsync", "fsync_dir"]
    assert [path for kind, path in syncs(calls) if kind == "fsync_dir"] == ["packs", "refs/heads/main"]


def test_the_order_of_a_commit(recorded: Open) -> None:
    repo, calls = recorded()
    repo.commit({"a": np.ones(3)})
    calls.clear()
    repo.commit({"a": np.zeros(3)})
    steps = [(kind, path.partition("/")[0]) for kind, path in calls if kind in SYNCS | {"replace", "link", "unlink"}]
    done = [step for step in steps if step != ("unlink", "tmp")]
    assert done == [
        ("fsync", "tmp"),
        ("replace", "packs"),
        ("fsync_dir", "packs"),
        ("fsync", "tmp"),
        ("link", "refs"),
        ("fsync_dir", "refs"),
        ("unlink", "intents"),  # of the pack
        ("unlink", "intents"),  # of the parent
    ]
    assert calls.index(next(c for c in calls if c[1].startswith("intents/"))) < calls.index(("fsync_dir", "packs"))


def test_a_new_branch_is_durable_too(recorded: Open) -> None:
    repo, calls = recorded()
    repo.commit({"a": np.ones(3)}, branch="new")
    assert ("fsync_dir", "refs/heads") in calls
    assert calls.index(("fsync_dir", "refs/heads")) < calls.index(("fsync_dir", "refs/heads/new"))


def test_fast_never_syncs(recorded: Open) -> None:
    repo, calls = recorded("fast")
    for number in range(12):
        repo.commit({"a": np.full(3, number)})
    repo.tag("t")
    repo.annotate("HEAD", reasons=["x"])
    repo.close()
    assert syncs(calls) == []


def test_a_batch_syncs_every_eighth(recorded: Open) -> None:
    repo, calls = recorded("batch")
    for number in range(7):
        repo.commit({"a": np.full(3, number)})
    assert syncs(calls) == []
    repo.commit({"a": np.full(3, 7)})
    found = syncs(calls)
    assert len([path for kind, path in found if kind == "fsync_file" and path.startswith("packs/")]) == 8
    assert len([path for kind, path in found if kind == "fsync_file" and path.startswith("refs/")]) == 8
    folders = [path for kind, path in found if kind == "fsync_dir"]
    assert folders.index("packs") < folders.index("refs/heads") < folders.index("refs/heads/main")
    assert max(i for i, (kind, _) in enumerate(found) if kind == "fsync_file") < found.index(("fsync_dir", "packs"))
    calls.clear()
    for number in range(7):
        repo.commit({"a": np.full(3, number)})
    assert syncs(calls) == []


@pytest.mark.parametrize("how", ["close", "sync", "with", "drop"])
def test_a_batch_is_synced_at_the_end(recorded: Open, how: str) -> None:
    repo, calls = recorded("batch")
    repo.commit({"a": np.ones(3)})
    repo.tag("t")
    match how:
        case "close":
            repo.close()
        case "sync":
            repo.sync()
        case "with":
            with repo:
                assert syncs(calls) == []
        case "drop":
            del repo
    assert len([path for kind, path in syncs(calls) if kind == "fsync_file"]) == 3
    if how != "drop":
        calls.clear()
        repo.sync()
        assert syncs(calls) == []


def test_a_batch_whose_sync_failed_is_never_synced_again(
    fs: LocalFileSystem, around: Callable[..., FileSystem], failing: Callable[..., Callable[[str, str], None]]
) -> None:
    """The system takes the pages for written then: a second sync would succeed, and mean nothing."""
    import errno

    fail = failing(errno.EIO, at=0, kinds=frozenset({"fsync_dir"}), once=True)
    repo = Repository(around(fs, fail), durability="batch")
    repo.commit({"a": np.ones(3)})
    with pytest.raises(StorageError, match="syncing"):
        repo.sync()
    for _ in range(2):
        with pytest.raises(StorageError, match=r"a sync failed earlier \(.*Input/output error"):
            repo.sync()
    assert fail.count == 1  # type: ignore[attr-defined]
    for number in range(7):
        repo.commit({"a": np.full(3, number)})
    with pytest.raises(StorageError, match="a sync failed earlier"):
        repo.commit({"a": np.full(3, 7)})
    with pytest.raises(StorageError, match="a sync failed earlier"):
        repo.close()
    assert Repository(fs).fsck().ok


def test_a_durable_operation_after_a_sync_that_failed(
    fs: LocalFileSystem, around: Callable[..., FileSystem], failing: Callable[..., Callable[[str, str], None]]
) -> None:
    import errno

    fast = Repository(fs, durability="fast")
    fast.commit({"a": np.ones(3)})
    fail = failing(errno.EIO, at=0, kinds=frozenset({"fsync_file"}), once=True)
    repo = Repository(around(fs, fail), durability="full")
    with pytest.raises(StorageError, match="Input/output error"):
        repo.tag("t")
    for do in (lambda: repo.tag("t"), lambda: repo.branch("b"), lambda: repo.commit({"a": np.zeros(3)}), repo.sync):
        with pytest.raises(StorageError, match=r"a sync failed earlier \(.*Input/output error"):
            do()
    assert (repo.tags(), list(repo.branches()), fail.count) == ({}, ["main"], 1)  # type: ignore[attr-defined]
    assert len(repo.log()) == 1


def test_a_batch_that_cannot_be_synced_at_the_end_is_logged(
    fs: LocalFileSystem,
    around: Callable[..., FileSystem],
    failing: Callable[..., Callable[[str, str], None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import errno

    repo = Repository(around(fs, failing(errno.EIO, kinds=frozenset({"fsync_file"}))), durability="batch")
    repo.commit({"a": np.ones(3)})
    del repo
    (record,) = (record for record in caplog.records if record.name == "coral")
    assert record.levelname == "ERROR"
    assert "could not be synced" in record.getMessage()
    assert "Input/output error" in record.getMessage()


def test_a_batch_whose_eighth_cannot_be_synced(
    fs: LocalFileSystem, around: Callable[..., FileSystem], failing: Callable[..., Callable[[str, str], None]]
) -> None:
    import errno

    repo = Repository(around(fs, failing(errno.EIO, kinds=frozenset({"fsync_file"}))), durability="batch")
    repo.commit({"a": np.ones(3)})
    for number in range(6):
        repo.tag(f"t{number}")
    with pytest.raises(StorageError, match="making the tag"):
        repo.tag("last-one")


def test_durable_on_top_of_fast_syncs_what_it_builds_on(
    recorded: Open, weights: Callable[..., dict[str, np.ndarray]]
) -> None:
    fast, _ = recorded("fast")
    fast.commit(weights())
    pack = fast.store.fs.list("packs")[0]
    repo, calls = recorded("full")
    repo.commit(weights())
    assert ("fsync_file", f"packs/{pack}") in calls
    assert ("fsync_dir", "refs/heads") in calls
    link = next(i for i, (kind, path) in enumerate(calls) if kind == "link" and path.startswith("refs/heads/main"))
    assert calls.index(("fsync_file", f"packs/{pack}")) < link


def test_with_durability(repo: Repository, recorded: Open) -> None:
    assert repo.with_durability("fast") is repo
    other = repo.with_durability("full")
    assert other.store.durable
    other.commit({"a": np.ones(1)})
    assert len(repo.log()) == 1
    with pytest.raises(ConfigError, match="durability"):
        repo.with_durability("never")  # type: ignore[arg-type]


def test_a_bad_durability_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Repository(tmp_path / "x", init=True, durability="slow")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_reading_writes_nothing(recorded: Open, weights: Callable[..., dict[str, np.ndarray]]) -> None:
    repo, calls = recorded("fast")
    repo.commit(weights(), state={"a": np.ones(2)})
    calls.clear()
    again, more = recorded("full")
    for found in (repo, again):
        for tensor in found.load().values():
            assert tensor.data is not None
        assert (found.load_state() is None, len(found.log()), found.fsck().ok) == (False, 1, True)
        assert (found.stats().commits, found.diff("HEAD").identical, found.branches().keys()) == (1, True, {"main"})
    assert not {kind for kind, _ in calls + more} & {"create", "mkdir", "link", "replace", "unlink", *SYNCS}


def test_a_durable_commit_on_top_of_fast_ones_makes_them_durable_first(recorded: Open) -> None:
    """It shares no tensor with them, and still its history must be readable after a loss of power."""
    fast, _ = recorded("fast")
    for n in range(3):
        fast.commit({"a": np.full(3, n)})
    packs = {f"packs/{name}" for name in fast.store.fs.list("packs")}
    full, calls = recorded("full")
    full.commit({"a": np.full(3, 9)})
    kinds = syncs(calls)
    assert packs <= {path for kind, path in kinds if kind == "fsync_file"}
    assert ("fsync_dir", "refs/heads") in kinds  # the branch's own name was not durable either
    calls.clear()
    full.commit({"a": np.full(3, 10)})
    assert len(syncs(calls)) == 4


def test_a_batch_syncs_packs_before_what_names_them(recorded: Open) -> None:
    repo, calls = recorded("batch")
    repo.commit({"a": np.ones(3)}, state={"x": np.ones(2)})
    repo.annotate("HEAD", state={"x": np.zeros(2)})
    repo.sync()
    folders = [path for kind, path in syncs(calls) if kind == "fsync_dir"]
    assert folders[0] == "packs"
    assert any(path.startswith("notes/") for path in folders)


@pytest.mark.parametrize(
    "how",
    [
        "tag",
        "branch",
        "commit",
        "tag again",
    ],
)
def test_a_durable_ref_to_what_was_written_fast(recorded: Open, how: str) -> None:
    """All that it leads to is durable before it is."""
    fast, _ = recorded("fast")
    for n in range(3):
        fast.commit({"a": np.full(3, n)})
    if how == "tag again":
        fast.tag("new")
    packs = {f"packs/{name}" for name in fast.store.fs.list("packs")}
    repo, calls = recorded("full")
    kind = "tags" if how.startswith("tag") else "heads"
    match how:
        case "tag" | "tag again":
            repo.tag("new")
        case "branch":
            repo.branch("new")
        case "commit":
            repo.commit({"b": np.full(4, 9)}, branch="new")
    ends = [i for i, (do, path) in enumerate(calls) if do in ("link", "fsync_dir") and path == f"refs/{kind}/new"]
    ends += [i for i, (do, path) in enumerate(calls) if do == "link" and path.startswith(f"refs/{kind}/new/")]
    before = calls[: min(ends)]
    assert packs <= {path for do, path in before if do == "fsync_file"}
    assert ("fsync_dir", "packs") in before[max(i for i, (_, what) in enumerate(before) if what in packs) :]


def test_a_repair_makes_no_ref_durable_before_the_pack_that_it_names(
    recorded: Open, fs: LocalFileSystem, weights: Callable[..., dict[str, np.ndarray]]
) -> None:
    repo, seen = recorded("batch")
    first = repo.commit(weights(1))
    (pack,) = fs.list("packs")
    repo.commit(weights(2))
    (other,) = {*fs.list("packs")} - {pack}
    (Path(fs.root) / "packs" / other).write_bytes(b"torn")
    seen.clear()
    repo.fsck(repair=True)
    assert repo.resolve("main") == first
    moved = [place for place, (kind, path) in enumerate(seen) if kind == "link" and path.startswith("refs/")]
    assert moved
    assert seen.index(("fsync_file", f"packs/{pack}")) < min(moved)
