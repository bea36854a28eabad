"""A disk that cannot read some of its sectors: the rest is read, and nothing that another try may read is let go."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.errors import CorruptObject, StorageError
from coral.filesystem import LocalFileSystem
from coral.store import _index, intent
from coral.store._pack import pieces, read_directory


class BadDisk(LocalFileSystem):
    """A folder on a disk where some ranges of files cannot be read, nor some files opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bad: list[tuple[str, int, int]] = []  # a name, the first byte, the one after the last
        self.refused: dict[str, int] = {}  # name -> the error that opening it gives

    def open(self, path: str) -> Any:
        if os.path.basename(path) in self.refused:
            code = self.refused[os.path.basename(path)]
            raise OSError(code, os.strerror(code), path)
        return _BadFile(super().open(path), os.path.basename(path), self.bad)

    def read(self, path: str, limit: int) -> bytes:
        found = super().read(path, limit)
        if os.path.basename(path) in {name for name, _, _ in self.bad}:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return found


class _BadFile:
    def __init__(self, inner: Any, name: str, bad: list[tuple[str, int, int]]) -> None:
        self._inner, self._name, self._bad = inner, name, bad
        self.size = inner.size

    def _read(self, offset: int, size: int) -> None:
        if any(name == self._name and offset < end and start < offset + size for name, start, end in self._bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._name)

    def read_into(self, buffer: Any, offset: int) -> None:
        self._read(offset, buffer.size)
        self._inner.read_into(buffer, offset)

    def region(self, offset: int, size: int) -> Any:
        return None

    def view(self, offset: int, size: int) -> Any:
        self._read(offset, size)
        return self._inner.view(offset, size)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def disk(fs: LocalFileSystem) -> BadDisk:
    return BadDisk(Path(fs.root))


def packs(disk: BadDisk) -> list[str]:
    return [name.removesuffix(".pack") for name in disk.list("packs")]


def spoil(disk: BadDisk, id: str) -> None:
    """Make one byte in the middle of every copy of an object unreadable."""
    for pack in packs(disk):
        for entry in read_directory(disk, pack).entries():
            if entry.id == id:
                at = entry.offset + entry.size // 2
                disk.bad.append((f"{pack}.pack", at, at + 1))


@contextmanager
def perhaps_unreadable() -> Iterator[None]:
    """Nothing is raised but what says that bytes cannot be read."""
    try:
        yield
    except StorageError as error:
        if error.errno != errno.EIO:
            raise


@pytest.fixture
def tensors(weights: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return weights(1, big=True)


@pytest.mark.parametrize("name", ["big", "layer.bias"])
def test_what_cannot_be_read_is_no_damage(disk: BadDisk, tensors: dict[str, np.ndarray], name: str) -> None:
    """Where a cable is loose, there is nothing to repair; where a disk dies, it is to be copied first."""
    repo = Repository(disk, durability="fast")
    commit = repo.commit(tensors)
    spoil(disk, repo.load(commit).entry(name).id)
    loaded = Repository(disk).load(commit)
    for other in tensors.keys() - {name}:
        np.testing.assert_array_equal(loaded[other].data, tensors[other])
    with pytest.raises(StorageError, match=f"'{name}' of commit {commit[:12]}.*{os.strerror(errno.EIO)}") as caught:
        loaded[name].data  # noqa: B018 - it is read here
    assert caught.value.errno == errno.EIO
    assert not isinstance(caught.value, CorruptObject)
    disk.bad.clear()
    np.testing.assert_array_equal(loaded[name].data, tensors[name])


@pytest.mark.parametrize("name", ["big", "layer.bias"])
def test_fsck_names_what_cannot_be_read(disk: BadDisk, tensors: dict[str, np.ndarray], name: str) -> None:
    commit = Repository(disk, durability="fast").commit(tensors)
    (pack,) = packs(disk)
    id = Repository(disk).load(commit).entry(name).id
    spoil(disk, id)
    report = Repository(disk).fsck()
    first, lost = report.problems
    assert (first.path, first.object) == (f"packs/{pack}.pack", id)
    assert os.strerror(errno.EIO) in first.message
    assert (lost.object, lost.commits, lost.tensors) == (id, (commit,), (f"weights/{name}",))


@pytest.fixture(params=["tensor", "small tensor", "commit", "directory", "trailer", "header"])
def spoiled(request: pytest.FixtureRequest, disk: BadDisk, tensors: dict[str, np.ndarray]) -> str:
    """A repository of two packs, of the second of which some bytes cannot be read; what these were of."""
    repo = Repository(disk, durability="fast")
    repo.commit({"first": np.arange(9)})
    (other,) = packs(disk)
    commit = repo.commit(tensors, "second")
    (pack,) = {*packs(disk)} - {other}
    directory = read_directory(disk, pack)
    size = disk.stat(f"packs/{pack}.pack").size
    match request.param:
        case "tensor" | "small tensor" as kind:
            spoil(disk, repo.load(commit).entry("big" if kind == "tensor" else "layer.bias").id)
        case "commit":
            spoil(disk, commit)
        case "directory":
            disk.bad.append((f"{pack}.pack", directory.end + 100, directory.end + 101))
        case "trailer":
            disk.bad.append((f"{pack}.pack", size - 1, size))
        case "header":
            disk.bad.append((f"{pack}.pack", 0, 1))
    return str(request.param)


def test_all_else_is_read_and_the_run_goes_on(
    disk: BadDisk, spoiled: str, tensors: dict[str, np.ndarray], assert_bits: Callable[..., None]
) -> None:
    """Where the newest checkpoint cannot be read, those before it can, and the next one is saved whole."""
    first = Repository(disk.root).resolve("main~1")
    assert_bits(Repository(disk).load(first), {"first": np.arange(9)})
    if spoiled not in ("tensor", "small tensor"):
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            Repository(disk).load("main")
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            Repository(disk).load(Repository(disk.root).resolve("main")[:12])
    id = Repository(disk, durability="fast").commit(tensors, "on top")  # as the run: a durable one would have to read
    assert_bits(Repository(disk).load("main"), tensors)
    assert Repository(disk.root).show(id).parents == (Repository(disk.root).resolve("main~1"),)


def test_an_index_that_cannot_be_read_is_done_without(
    disk: BadDisk, weights: Callable[..., dict[str, np.ndarray]], assert_bits: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(_index, "_UNCOVERED", 2)
    repo = Repository(disk, durability="fast")
    first, second = repo.commit(weights(1)), repo.commit(weights(2))
    (name,) = disk.list("index")
    disk.bad.append((name, 30, 31))
    for id, seed in ((first, 1), (second, 2)):
        assert_bits(Repository(disk).load(id), weights(seed))
    assert_bits(Repository(disk).load(Repository(disk).commit(weights(3))), weights(3))
    assert [problem.path for problem in Repository(disk).fsck().problems] == [f"index/{name}"]
    assert Repository(disk).fsck(repair=True).ok


def test_a_repair_leaves_alone_what_may_be_read_later(
    disk: BadDisk, spoiled: str, unchanged: Callable[[], None]
) -> None:
    """The cable was loose: nothing is set aside, no branch moved back, and there is nothing to repair afterwards."""
    (name, *_) = disk.bad[0]
    unchanged()
    report = Repository(disk).fsck(repair=True)
    assert f"packs/{name}" in {problem.path for problem in report.problems}
    assert any(f"cannot be read, and were left alone: packs/{name}" in action for action in report.actions)
    assert report.quarantined == []
    disk.bad.clear()
    unchanged()


def test_a_repair_where_nothing_can_be_read(
    disk: BadDisk, tensors: dict[str, np.ndarray], unchanged: Callable[[], None]
) -> None:
    """A server was away, say."""
    repo = Repository(disk, durability="fast")
    repo.annotate(repo.commit(tensors), metrics={"acc": 0.5})
    repo.tag("v1")
    repo.branch("side")
    unchanged()
    again = Repository(disk)
    for path in Path(disk.root).rglob("*"):
        if path.is_file() and path.name != "format":
            disk.bad.append((path.name, 0, path.stat().st_size))
    assert not again.fsck(repair=True).ok
    disk.bad.clear()
    unchanged()


def test_a_repair_mends_the_rest(disk: BadDisk, spoiled: str, flip: Callable[..., None]) -> None:
    """What is damaged besides is mended as ever; but for refs, where nobody can tell what is lost."""
    first = Repository(disk.root).resolve("main~1")
    (Path(disk.root) / "packs" / "stray").write_bytes(b"?")
    report = Repository(disk).fsck(repair=True)
    assert "packs/stray" in {problem.path for problem in report.repaired}
    assert any(path.endswith("packs/stray") for path in report.quarantined)
    Repository(disk.root).branch("side", first)
    (entry,) = (Path(disk.root) / "refs" / "heads" / "side").iterdir()
    flip(entry, 30)
    paths = {problem.path for problem in Repository(disk).fsck(repair=True).problems}
    assert f"refs/heads/side/{entry.name}" in paths
    disk.bad.clear()
    assert Repository(disk).fsck(repair=True).ok


def test_a_repair_asks_a_remote_for_what_cannot_be_read(
    disk: BadDisk, spoiled: str, tmp_path: Path, tensors: dict[str, np.ndarray], assert_bits: Callable[..., None]
) -> None:
    repo = Repository(disk.root)
    repo.add_remote("origin", f"file://{tmp_path}/remote")
    repo.push("origin")
    (name, *_) = disk.bad[0]
    report = Repository(disk).fsck(repair=True)
    assert {problem.path for problem in report.problems} == {f"packs/{name}"}, "and nothing is lost"
    assert not any(problem.commits for problem in report.problems)
    assert_bits(Repository(disk).load("main"), tensors)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
def test_what_the_system_refuses_is_no_damage(
    disk: BadDisk, tensors: dict[str, np.ndarray], unchanged: Callable[[], None], code: int
) -> None:
    Repository(disk, durability="fast").commit(tensors)
    (pack,) = packs(disk)
    unchanged()
    disk.refused[f"{pack}.pack"] = code
    for repair in (False, True):
        with pytest.raises(StorageError, match=os.strerror(code)):
            Repository(disk).fsck(repair=repair)
    unchanged()


def test_a_repair_takes_nothing_away_that_it_may_not_read(
    disk: BadDisk, tensors: dict[str, np.ndarray], unchanged: Callable[[], None]
) -> None:
    """A pack of another user's, say: what it needs is a permission."""
    Repository(disk, durability="fast").commit(tensors)
    (pack,) = packs(disk)
    unchanged()
    disk.refused[f"{pack}.pack"] = errno.EACCES
    assert [problem.path for problem in Repository(disk).fsck().problems[:1]] == [f"packs/{pack}.pack"]
    with pytest.raises(StorageError, match=os.strerror(errno.EACCES)):
        Repository(disk).fsck(repair=True)
    unchanged()


@pytest.mark.parametrize("step", [0, 3])
def test_differences_from_what_cannot_be_read(
    disk: BadDisk, tensors: dict[str, np.ndarray], assert_bits: Callable[..., None], step: int
) -> None:
    """Whatever upkeep comes upon unreadable bytes, it ends with an error of ours, or well, and nothing is lost."""
    repo, series = Repository(disk, durability="fast"), []
    for _ in range(4):
        tensors = {**tensors, "big": np.nextafter(tensors["big"], np.float32(9))}
        series.append((repo.commit(tensors), tensors))
    repo.repack()
    repo.gc()
    spoil(disk, repo.load(series[step][0]).entry("big").id)
    assert disk.bad
    assert not Repository(disk).fsck().ok
    for upkeep in (Repository.repack, Repository.gc):
        with perhaps_unreadable():
            upkeep(Repository(disk))
    for commit, expected in series:
        with perhaps_unreadable():
            assert_bits(Repository(disk).load(commit), expected)
    disk.bad.clear()
    for commit, expected in series:
        assert_bits(Repository(disk).load(commit), expected)
    assert Repository(disk).fsck().ok


_CUT = """
    import sys
    from types import SimpleNamespace
    import numpy as np
    from pathlib import Path
    from coral import Repository
    from coral.errors import CoralError
    from coral.store._chain import _view
    from coral.store._saving import _same
    repo, how = Repository(sys.argv[1]), sys.argv[2]
    loaded = repo.load("main")
    loaded["big"].data  # and with it, all of the pack is mapped
    (pack,) = Path(sys.argv[1], "packs").iterdir()
    opened = repo.store.fs.open(f"packs/{pack.name}")
    opened.view(0, 4096)
    opened.region(0, 4096)
    other = SimpleNamespace(file=opened, entry=SimpleNamespace(offset=8192))
    with pack.open("r+b") as file:
        file.truncate(5000)  # as a disk that fails from there on: each access to what is mapped is a signal
    try:
        match how:
            case "a base":
                _view(other, 0, 4096)
            case "compared":
                assert not _same(np.zeros(1 << 20, np.uint8), 0, other)
                raise OSError
    except (CoralError, OSError):
        print("an error")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux (5.14) has a way to ask first")
@pytest.mark.parametrize("how", ["a base", "compared"])
def test_mapped_bytes_that_cannot_be_read_do_not_end_a_run_that_saves(
    disk: BadDisk, tensors: dict[str, np.ndarray], how: str
) -> None:
    tensors = {"big": tensors["big"], "other": tensors["big"][::-1].copy()}
    Repository(disk.root, durability="fast").commit(tensors)
    program = [sys.executable, "-c", textwrap.dedent(_CUT), disk.root, how]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("an error\n", 0), done.stderr


def test_a_damaged_ref_is_not_mended_while_a_pack_cannot_be_read(
    disk: BadDisk, weights: Callable[..., dict[str, np.ndarray]], flip: Callable[..., None]
) -> None:
    """What it names may be in there: to move the branch back would leave that to gc."""
    repo = Repository(disk, durability="fast")
    ids = [repo.commit(weights(seed)) for seed in range(3)]
    (pack,) = [name for name in packs(disk) if ids[2] in read_directory(disk, name).ids]
    flip(Path(disk.root) / "refs" / "heads" / "main" / "0000000003", 30)
    disk.refused[f"{pack}.pack"] = errno.EIO
    assert not Repository(disk).fsck(repair=True).ok
    disk.refused.clear()
    assert Repository(disk).fsck(repair=True).ok
    assert Repository(disk).resolve("main") == ids[2]
    Repository(disk).gc()
    assert Repository(disk).fsck().ok
    assert [commit.id for commit in Repository(disk).log()] == ids[::-1]


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "its bytes"])
def test_gc_frees_nothing_that_is_held_and_cannot_be_read(
    disk: BadDisk, weights: Callable[..., dict[str, np.ndarray]], assert_bits: Callable[..., None], whole: bool
) -> None:
    """One that goes on for long knows the packs from before, and does not look at their directories again."""
    repo = Repository(disk, durability="fast")
    repo.commit(weights(1))
    repo.branch("side")
    held = repo.commit(weights(3), branch="side")
    repo = Repository(disk, durability="fast")
    repo.gc()
    Repository(disk.root).delete_branch("side")
    (pack,) = [name for name in packs(disk) if held in read_directory(disk, name).ids]
    with intent(disk, "run", [held]):
        if whole:
            disk.refused[f"{pack}.pack"] = errno.EIO
        else:
            disk.bad.append((f"{pack}.pack", 0, disk.stat(f"packs/{pack}.pack").size))
        with perhaps_unreadable():
            repo.gc()
        disk.refused.clear()
        disk.bad.clear()
        assert_bits(Repository(disk).load(held), weights(3))


def test_a_short_id_in_a_pack_that_an_index_covers(
    disk: BadDisk, weights: Callable[..., dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_index, "_UNCOVERED", 2)
    repo = Repository(disk, durability="fast")
    ids = [repo.commit(weights(seed)) for seed in range(2)]
    assert disk.list("index")
    (pack,) = [name for name in packs(disk) if ids[1] in read_directory(disk, name).ids]
    disk.refused[f"{pack}.pack"] = errno.EIO
    for ref in (ids[1], ids[1][:12], "main"):
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            Repository(disk).load(ref)


def test_a_repair_after_a_sync_that_failed(
    fs: LocalFileSystem, weights: Callable[..., dict[str, np.ndarray]], around: Any, failing: Any
) -> None:
    fail = failing(errno.EIO, kinds=frozenset({"fsync_file"}), once=True)
    repo = Repository(around(fs, fail), durability="batch")
    repo.commit(weights())
    with pytest.raises(StorageError):
        repo.sync()
    with pytest.raises(StorageError, match="a sync failed earlier"):
        repo.sync()
    (Path(fs.root) / "packs" / "stray").write_bytes(b"?")
    assert repo.fsck(repair=True).ok


def test_a_damaged_copy_beside_one_that_cannot_be_read(
    disk: BadDisk, weights: Callable[..., dict[str, np.ndarray]], flip: Callable[..., None]
) -> None:
    repo = Repository(disk, durability="fast")
    commit = repo.commit(weights())
    (pack,) = packs(disk)
    directory = read_directory(disk, pack)
    (entry,) = [entry for entry in directory.entries() if entry.id == repo.load(commit).entry("layer.bias").id]
    with intent(disk, "copy", []) as operation:
        stored = list(pieces(disk.open(f"packs/{pack}.pack"), entry))
        repo.store.write_pack(lambda writer: writer.add_stored(entry, stored), operation)
    (other,) = {*packs(disk)} - {pack}
    flip(Path(disk.root) / "packs" / f"{pack}.pack", entry.offset)
    disk.refused[f"{other}.pack"] = errno.EIO
    with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
        Repository(disk).load(commit)["layer.bias"].data  # noqa: B018 - it is read here
    disk.refused.clear()
    np.testing.assert_array_equal(Repository(disk).load(commit)["layer.bias"].data, weights()["layer.bias"])


def test_the_weights_of_a_clone_are_not_told_by_what_cannot_be_read(
    disk: BadDisk, tmp_path: Path, tensors: dict[str, np.ndarray], flip: Callable[..., None]
) -> None:
    Repository(disk, durability="fast").commit(tensors)
    names = ["big", "layer.weight"]
    clone = BadDisk(Path(Repository.clone(disk.root, tmp_path / "clone", names=names).path))
    before = clone.read("partial", 1 << 20)
    spoil(clone, Repository(clone).load(names=["big"]).entry("big").id)
    flip(tmp_path / "clone" / "partial", 3)
    for name in clone.list("remotes"):
        Repository(clone).remove_remote(name)
    Repository(clone).fsck(repair=True)
    clone.bad.clear()
    assert Repository(clone).fsck(repair=True).ok
    assert clone.read("partial", 1 << 20) == before


def test_a_pruned_commit_whose_note_cannot_be_read_is_not_lost(
    disk: BadDisk, weights: Callable[..., dict[str, np.ndarray]]
) -> None:
    repo = Repository(disk, durability="fast")
    first = repo.commit(weights(1))
    repo.commit(weights(2))
    repo.prune(first)
    repo.gc()
    (note,) = disk.list(f"notes/{first}")
    disk.bad.append((note, 0, 1))
    assert [problem.path for problem in Repository(disk).fsck().problems] == [f"notes/{first}/{note}"]
