"""fsck(repair=True): what is whole anywhere comes back, nothing wrong does, and nothing is ever deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.errors import CoralError, CorruptObject, MissingObject
from coral.filesystem import FileSystem
from coral.maintenance import FsckReport
from coral.store import _index, _refs
from coral.store._pack import read_directory
from coral.store._refs import RefEntry

Arrays = dict[str, np.ndarray]
Flip = Callable[..., None]


class History:
    """Three commits on a branch and one on another, a tag, HEAD's log and a note, each commit in a pack of its own."""

    def __init__(self, repo: Repository, folder: Path) -> None:
        self.folder = folder
        self.repo = repo
        self.packs: dict[str, Path] = {}
        for number in range(3):
            self._commit(number, None)
        repo.branch("x", "HEAD~1")
        self._commit(7, "x")
        repo.tag("t", "HEAD~1")
        repo.annotate("HEAD~2", metrics={"late": 0.5}, state={"late": np.ones(5)})
        repo.checkout("x")
        repo.checkout("main")
        self.ids = list(self.packs)
        self.refs = self.read_refs()

    def _commit(self, number: int, branch: str | None) -> None:
        before = set((self.folder / "packs").iterdir())
        id = self.repo.commit(self.weights(number), str(number), branch, state={"m": np.full(300, number)})
        (self.packs[id],) = set((self.folder / "packs").iterdir()) - before

    @staticmethod
    def weights(number: int) -> Arrays:
        return {"same": np.arange(1000.0), "own": np.full(500, number, np.float32)}

    def read_refs(self) -> tuple[Any, ...]:
        repo = Repository(self.folder)
        return dict(repo.branches()), dict(repo.tags()), repo.head

    def pack(self, number: int) -> Path:
        return self.packs[self.ids[number]]

    def flip(self, number: int, part: bytes, at: int = 0) -> None:
        flip(self.pack(number), self.pack(number).read_bytes().index(part) + at)

    def newest(self, ref: str) -> Path:
        return max((self.folder / "refs" / ref).iterdir())

    def wholes(self) -> set[str]:
        """The commits that load, bit by bit, with their states."""
        found = set()
        for id, number in zip(self.ids, (0, 1, 2, 7), strict=True):
            try:
                repo = Repository(self.folder)
                loaded, state = {name: tensor.data for name, tensor in repo.load(id).items()}, repo.load_state(id)
            except CoralError:
                continue
            assert loaded.keys() == {"same", "own"}
            for name, array in self.weights(number).items():
                assert loaded[name].tobytes() == array.tobytes()
            if not number and "late" not in state:  # the note that named it is gone
                continue
            if number:
                assert state["m"].tolist() == [number] * 300
            else:
                assert state["late"].tolist() == [1] * 5
            found.add(id)
        return found

    def assert_as_before(self) -> None:
        assert self.wholes() == set(self.ids)
        assert self.read_refs() == self.refs
        repo = Repository(self.folder)
        assert repo.show("HEAD~2").metrics == {"late": 0.5}
        assert repo.fsck().problems == []
        repo.commit({"a": np.ones(2)})
        repo.gc()
        assert repo.fsck().problems == []


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def exchange(a: Path, b: Path) -> None:
    a.rename(a.parent / "x")
    b.rename(a)
    (a.parent / "x").rename(b)


def as_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_a_link(path: Path) -> None:
    target = path.parent.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def note_of(h: History) -> Path:
    (note,) = (h.folder / "notes" / h.ids[0]).iterdir()
    return note


LOSSES: dict[str, Callable[[History], object]] = {
    "a byte of a tensor": lambda h: h.flip(1, np.full(500, 1, np.float32).tobytes(), 7),
    "a byte of a tensor that all have": lambda h: h.flip(0, np.arange(1000.0).tobytes(), 4000),
    "a byte of a state": lambda h: h.flip(2, b'"$array"'),
    "a byte of a state's tensor": lambda h: h.flip(2, np.full(300, 2).tobytes(), 9),
    "a byte of a commit": lambda h: h.flip(1, b'"message"'),
    "a byte of the newest commit": lambda h: h.flip(2, b'"message"'),
    "a byte of a tree": lambda h: h.flip(1, b'"tensors"'),
    "a byte of the directory": lambda h: flip(h.pack(1), h.pack(1).stat().st_size - 100),
    "a pack cut in the middle": lambda h: cut(h.pack(2), h.pack(2).stat().st_size // 2),
    "a pack cut in its directory": lambda h: cut(h.pack(0), h.pack(0).stat().st_size - 90),
    "a pack of no bytes": lambda h: cut(h.pack(1), 0),
    "a lost pack": lambda h: h.pack(1).unlink(),
    "the newest pack lost": lambda h: h.pack(2).unlink(),
    "all packs lost": lambda h: [path.unlink() for path in (h.folder / "packs").iterdir()],
    "a pack that is a folder": lambda h: as_a_folder(h.pack(0)),
    "a torn note": lambda h: cut(note_of(h), 40),
    "a lost tag": lambda h: cut(h.newest("tags/t"), 20),
}
"""What only another copy can mend."""

MENDABLE: dict[str, Callable[[History], object]] = {
    "the header of a pack": lambda h: flip(h.pack(1), 3),
    "the header of each pack": lambda h: [flip(path, 12) for path in (h.folder / "packs").iterdir()],
    "the trailer of a pack": lambda h: flip(h.pack(1), h.pack(1).stat().st_size - 5),
    "the place of the directory": lambda h: flip(h.pack(1), h.pack(1).stat().st_size - 55),
    "a pack cut in its trailer": lambda h: cut(h.pack(2), h.pack(2).stat().st_size - 30),
    "a pack without its trailer": lambda h: cut(h.pack(2), h.pack(2).stat().st_size - 64),
    "two packs exchanged": lambda h: exchange(h.pack(0), h.pack(1)),
    "a pack with more at its end": lambda h: h.pack(0).write_bytes(h.pack(0).read_bytes() + bytes(10)),
    "a ref's newest entry": lambda h: flip(h.newest("heads/main"), 3),
    "the commit of a ref's newest entry": lambda h: flip(
        h.newest("heads/main"), h.newest("heads/main").read_bytes().index(b'"value"') + 20
    ),
    "a ref's newest entry cut": lambda h: cut(h.newest("heads/main"), 30),
    "a ref's newest entry of no bytes": lambda h: cut(h.newest("heads/main"), 0),
    "a ref's newest entry a folder": lambda h: as_a_folder(h.newest("heads/main")),
    "an older entry": lambda h: flip(h.folder / "refs/heads/main/0000000002", 3),
    "the first entry": lambda h: cut(h.folder / "refs/heads/main/0000000001", 10),
    "a lost entry": lambda h: (h.folder / "refs/heads/main/0000000002").unlink(),
    "entries of two branches exchanged": lambda h: exchange(
        h.folder / "refs/heads/main/0000000001", h.folder / "refs/heads/x/0000000001"
    ),
    "a tag's entry": lambda h: flip(h.newest("tags/t"), 3),
    "HEAD": lambda h: flip(h.newest("HEAD"), 3),
    "stray files": lambda h: [(h.folder / where / "junk").write_bytes(b"junk") for where in ("packs", "index")],
    "the format": lambda h: flip(h.folder / "format", 2),
    "the format lost": lambda h: (h.folder / "format").unlink(),
}
"""What can be mended from what is left."""


@pytest.fixture
def history(repo: Repository, folder: Path) -> History:
    return History(repo, folder)


@pytest.fixture
def remote(history: History, tmp_path: Path) -> Path:
    """A folder that holds all of it, and is a remote of the repository."""
    there = tmp_path / "remote"
    history.repo.add_remote("origin", there)
    for branch in ("main", "x"):
        history.repo.push("origin", branch)
    return there


def contents(folder: Path) -> set[bytes]:
    """What is in the files of a repository, but for what only says who is at work, and what was asked of remotes."""
    skipped = ("tmp", "intents", "remotes")
    return {
        path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in skipped
    }


def repaired(history: History) -> FsckReport:
    """Repair, and see to it that nothing has been deleted."""
    before = contents(history.folder)
    report = history.repo.fsck(repair=True)
    assert before <= contents(history.folder)
    for path in report.quarantined:
        assert (history.folder / path).exists()
    return report


@pytest.mark.parametrize("damage", [*LOSSES, *MENDABLE])
def test_with_a_remote_everything_comes_back(history: History, remote: Path, damage: str) -> None:
    (LOSSES | MENDABLE)[damage](history)
    assert not history.repo.fsck().ok
    report = repaired(history)
    assert report.problems == []
    assert report.repaired
    history.assert_as_before()


@pytest.mark.parametrize("damage", MENDABLE)
def test_what_is_left_of_it_is_enough(history: History, damage: str) -> None:
    MENDABLE[damage](history)
    assert not history.repo.fsck().ok
    report = repaired(history)
    assert report.problems == []
    assert report.repaired
    assert "seen to: " in str(report)
    history.assert_as_before()


@pytest.mark.parametrize("damage", LOSSES)
def test_without_another_copy_it_is_named_and_the_rest_stays(history: History, damage: str) -> None:
    whole = set(history.ids)
    LOSSES[damage](history)
    left = history.wholes()
    report = repaired(history)
    assert left <= history.wholes() <= whole
    again = Repository(history.folder).fsck(repair=True)
    assert again.problems == report.problems  # it is as well as it can be
    lost = {id for problem in report.problems for id in problem.commits}
    tips = set(history.read_refs()[0].values())
    told = {id for id in whole if any(f"it said of commit {id[:12]} is lost" in action for action in report.actions)}
    assert whole - history.wholes() <= lost | told | (whole - {id for tip in tips for id in _reached(history, tip)})
    if "byte of a tensor" in damage or "state" in damage:
        assert lost == whole - left
        assert set(report.whole) == left
    assert Repository(history.folder).commit({"a": np.ones(2)})


def _reached(history: History, tip: str) -> set[str]:
    found, waiting = set[str](), [tip]
    while waiting:
        id = waiting.pop()
        found.add(id)
        try:
            waiting += Repository(history.folder).show(id).parents
        except CoralError:
            continue
    return found


def test_what_is_damaged_is_named_with_all_that_it_touches(history: History) -> None:
    LOSSES["a byte of a tensor that all have"](history)
    tensor = history.repo.tree("main")["same"].id
    problems = Repository(history.folder).fsck().problems
    copy, lost = problems
    assert (copy.path, copy.object, copy.commits) == (f"packs/{history.pack(0).name}", tensor, ())
    assert (lost.object, set(lost.commits), lost.tensors) == (tensor, set(history.ids), ("weights/same",))
    assert "'weights/same'" in str(lost)
    assert Repository(history.folder).fsck().whole == []


def test_what_a_state_calls_it_is_named_too(history: History) -> None:
    LOSSES["a byte of a state's tensor"](history)
    report = Repository(history.folder).fsck()
    assert report.problems[1].tensors == ("state/m",)
    assert set(report.whole) == set(history.ids) - {history.ids[2]}
    assert "whole: 3 of the commits" in str(report)


def test_a_commit_that_no_ref_leads_to_is_no_damage(history: History) -> None:
    history.repo.delete_branch("x")
    report = history.repo.fsck()
    assert report.ok
    assert report.dangling == [history.ids[3]]
    assert history.repo.fsck(repair=True).actions == []


# -- other copies ------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_held_as_a_difference_too(
    repo: Repository, grow: Callable[..., list[str]], folder: Path, restores: Callable[..., None], tmp_path: Path
) -> None:
    ids = grow(*range(6))
    shutil.copytree(folder / "packs", tmp_path / "whole")
    repo.repack()
    differences = {path.name for path in (folder / "packs").iterdir()}
    assert any(entry.base for name in differences for entry in read_directory(repo.store.fs, name[:-5]).entries())
    for path in (tmp_path / "whole").iterdir():
        if path.name not in differences:
            flip(path, path.stat().st_size // 3)
            shutil.copy(path, folder / "packs")
    found = Repository(folder)
    assert not found.fsck().ok
    assert found.fsck(repair=True).ok
    restores(dict(zip(ids, range(6), strict=True)))


def test_a_difference_whose_whole_copy_is_there_too(
    repo: Repository, grow: Callable[..., list[str]], folder: Path, restores: Callable[..., None], tmp_path: Path
) -> None:
    ids = grow(*range(6))
    whole = {path.name: path.read_bytes() for path in (folder / "packs").iterdir()}
    repo.repack()
    for path in (folder / "packs").iterdir():
        if path.name not in whole:
            for at in range(100, path.stat().st_size - 4000, 500):
                flip(path, at)
    for name, data in whole.items():
        (folder / "packs" / name).write_bytes(data)
    found = Repository(folder)
    assert not found.fsck().ok
    report = found.fsck(repair=True)
    assert report.ok, str(report)
    restores(dict(zip(ids, range(6), strict=True)))


def test_a_difference_stays_where_it_is_when_its_base_is_damaged(
    repo: Repository, grow: Callable[..., list[str]], folder: Path
) -> None:
    """It is whole in itself: the base may come back."""
    grow(*range(6))
    repo.repack()
    fs = repo.store.fs
    packs = [path.stem for path in (folder / "packs").iterdir()]
    bases = {entry.base for name in packs for entry in read_directory(fs, name).entries() if entry.base}
    holders = [
        (name, entry)
        for name in packs
        for entry in read_directory(fs, name).entries()
        if entry.id in bases and entry.base is None
    ]
    for name, entry in holders:
        flip(folder / "packs" / f"{name}.pack", entry.offset + entry.size // 2)
    damaged = {name: (folder / "packs" / f"{name}.pack").read_bytes() for name, _ in holders}
    report = Repository(folder).fsck(repair=True)
    assert not report.ok
    differences = [e.id for p in (folder / "packs").iterdir() for e in read_directory(fs, p.stem).entries() if e.base]
    assert differences
    for name in damaged:  # the user finds a copy of it
        healed = bytearray(damaged[name])
        for holder, entry in holders:
            if holder == name:
                healed[entry.offset + entry.size // 2] ^= 1
        (folder / "packs" / f"{name}.pack").write_bytes(healed)
    assert Repository(folder).fsck().ok


@pytest.mark.parametrize("there", [True, False])
def test_a_difference_that_was_rescued_without_its_base(
    repo: Repository,
    grow: Callable[..., list[str]],
    version: Callable[[int], Arrays],
    fs: FileSystem,
    folder: Path,
    tmp_path: Path,
    there: bool,
) -> None:
    """It is looked for all the same, and no later repair writes it once more."""
    ids = grow(*range(6))
    repo.repack()
    if there:
        other = Repository(tmp_path / "other", init=True)
        for number in range(1, 6):
            other.commit(version(number))
        repo.add_remote("origin", other.path)
    bases = {entry.id for entry in repo.tree(ids[0]).values()}
    repo.prune(ids[0])
    found = [(path, e) for path in (folder / "packs").iterdir() for e in read_directory(fs, path.stem).entries()]
    differences = [(path, entry) for path, entry in found if entry.base in bases]
    beside = dict(differences)  # one in each pack: the others have to be rescued
    rescued = {entry.id for path, entry in differences if entry != beside[path]}
    assert rescued
    needed = [(path, entry) for path, entry in found if entry.id in {each.base for _, each in differences}]
    for path, entry in [*beside.items(), *needed]:
        flip(path, entry.offset + entry.size // 2)
    report = Repository(folder).fsck(repair=True)
    packs = set((folder / "packs").iterdir())
    assert rescued <= {
        entry.id for path in packs for entry in read_directory(fs, path.stem).entries() if entry.base in bases
    }
    lost = {problem.object for problem in report.problems if problem.commits}
    assert not lost & rescued if there else rescued <= lost
    again = Repository(folder).fsck(repair=True)
    assert again.problems == report.problems
    assert again.repaired == []
    assert set((folder / "packs").iterdir()) == packs


@pytest.mark.parametrize("whole", ["in the trash", "in the quarantine"])
def test_a_pack_of_which_another_file_is_whole(history: History, whole: str) -> None:
    pack = history.pack(0)
    there = history.folder / {"in the trash": "trash/0", "in the quarantine": "quarantine/0-0/packs"}[whole]
    there.mkdir(parents=True)
    shutil.copy(pack, there / pack.name)
    flip(pack, pack.read_bytes().index(np.arange(1000.0).tobytes()) + 80)
    if "trash" not in whole:
        flip(there / pack.name, 3)  # its header: it was set aside for that
    report = repaired(history)
    assert report.problems == []
    history.assert_as_before()


def test_what_an_interrupted_collection_left_is_put_back(history: History) -> None:
    trash = history.folder / "trash/0"
    trash.mkdir()
    history.pack(1).rename(trash / history.pack(1).name)
    LOSSES["a byte of a state"](history)
    report = repaired(history)
    assert any(action.startswith("trash/0") for action in report.actions)
    assert history.pack(1).exists()
    assert len(history.wholes()) == 3


def test_a_damaged_pack_in_the_trash_of_a_collection_that_ends(
    history: History, fs: FileSystem, around: Callable[..., FileSystem]
) -> None:
    trash = history.folder / "trash/0"
    trash.mkdir()
    history.pack(3).rename(trash / history.pack(3).name)
    flip(trash / history.pack(3).name, 3)
    emptied: list[bool] = []

    def before(kind: str, path: str) -> None:
        if kind == "fsync_dir" and path == "trash/0" and not [*trash.iterdir()]:
            trash.rmdir()
            emptied.append(True)

    report = Repository(around(fs, before)).fsck(repair=True)
    assert emptied
    assert report.problems == []
    history.assert_as_before()


def test_a_remote_whose_copy_is_damaged_heals_nothing_wrong(history: History, remote: Path) -> None:
    part = np.full(500, 1, np.float32).tobytes()
    history.flip(1, part, 7)
    history.flip(0, np.arange(1000.0).tobytes(), 4000)
    for path in (remote / "packs").iterdir():
        data = path.read_bytes()
        if part in data:
            flip(path, data.index(part) + 11)
    report = repaired(history)
    assert history.wholes() == {history.ids[0], *history.ids[2:]}  # what is whole there has come
    assert {id for problem in report.problems for id in problem.commits} == {history.ids[1]}
    with pytest.raises(CorruptObject):
        Repository(history.folder).load(history.ids[1])["own"].data  # noqa: B018 - reading is what fails


def test_the_next_remote_is_asked_for_what_the_first_has_not_whole(
    history: History, remote: Path, tmp_path: Path
) -> None:
    shutil.copytree(remote, tmp_path / "second")
    for path in (remote / "packs").iterdir():
        for at in range(20, path.stat().st_size, 50):
            flip(path, at)
    history.repo.add_remote("second", tmp_path / "second")
    LOSSES["all packs lost"](history)
    report = repaired(history)
    assert report.problems == []
    history.assert_as_before()


@pytest.mark.parametrize("how", ["gone", "a file", "of another format", "nothing there"])
def test_a_remote_that_cannot_be_asked_is_said(history: History, remote: Path, how: str) -> None:
    shutil.rmtree(remote)
    match how:
        case "a file":
            remote.write_bytes(b"x")
        case "of another format":
            remote.mkdir()
            (remote / "format").write_bytes(b"{}")
        case "nothing there":
            remote.mkdir()
    LOSSES["a byte of a tensor"](history)
    report = repaired(history)
    assert any("could not be asked" in action and "remote" in action for action in report.actions)
    assert len(history.wholes()) == 3
    assert not report.ok


def test_no_remote_is_asked_where_nothing_is_damaged(history: History, remote: Path) -> None:
    shutil.rmtree(remote)
    report = history.repo.fsck(repair=True)
    assert (report.ok, report.actions, report.quarantined, report.repaired) == (True, [], [], [])
    assert not (history.folder / "quarantine").exists()


def test_what_a_remote_has_of_another_history_is_not_taken(history: History, tmp_path: Path) -> None:
    """Its branch of the same name is at a commit that does not follow."""
    other = Repository(tmp_path / "other", init=True)
    other.commit({"a": np.ones(3)})
    history.repo.add_remote("origin", tmp_path / "other")
    cut(history.newest("heads/main"), 10)
    assert repaired(history).problems == []
    history.assert_as_before()


# -- refs --------------------------------------------------------------------------------------------------------------


def test_a_branch_whose_commit_is_lost_goes_back(history: History) -> None:
    history.pack(2).unlink()
    report = repaired(history)
    assert report.problems == []
    assert history.read_refs()[0]["main"] == history.ids[1]
    assert any(history.ids[2] in action for action in report.actions)  # nothing else knows of it any more
    kept = [entry.value for entry in _refs.history(history.repo.store.fs, "refs/heads/main")]  # type: ignore[union-attr]
    assert history.ids[2] in kept


def test_of_a_torn_head_it_is_not_known_where_it_was(history: History) -> None:
    cut(history.newest("HEAD"), 3)
    assert repaired(history).problems == []
    assert Repository(history.folder).head == "x"  # where it was before that


def test_a_log_whose_entries_do_not_follow_is_joined_again(history: History) -> None:
    path = history.folder / "refs/heads/main/0000000002"
    entry = RefEntry.decode("refs/heads/main", 2, path.read_bytes(), "p")
    for wrong in ({"prev": "f" * 32}, {"nonce": "f" * 32}):
        values = {name: getattr(entry, name) for name in RefEntry.__slots__}
        path.write_bytes(RefEntry(**{**values, **wrong}).encode())
        assert not history.repo.fsck().ok
        assert repaired(history).problems == []
    history.assert_as_before()


@pytest.mark.parametrize("at", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_folded_part_of_a_log(
    repo: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch, at: float, how: str
) -> None:
    monkeypatch.setattr(_refs, "FOLD", 4)
    monkeypatch.setattr(_refs, "_KEEP", 2)
    ids = [repo.commit({"a": np.full(2, number)}) for number in range(14)]
    (segment, *_) = sorted((folder / "refs/heads/main").glob("*.log"))
    size = int(at * segment.stat().st_size)
    flip(segment, size) if how == "flip" else cut(segment, size)
    assert not Repository(folder).fsck().ok
    report = Repository(folder).fsck(repair=True)
    assert report.ok, str(report)
    assert [commit.id for commit in Repository(folder).log()] == ids[::-1]
    if how == "flip":
        values = [entry.value for entry in _refs.history(repo.store.fs, "refs/heads/main")]  # type: ignore[union-attr]
        assert len(set(values) & set(ids)) >= len(ids) - 1


def test_several_commits_that_a_torn_branch_may_have_named(history: History) -> None:
    """None is taken for it; each gets a branch of its own, so that gc leaves it alone."""
    fs = history.repo.store.fs
    tip = history.ids[2]
    for number in (11, 12):
        history.repo.branch(f"b{number}", tip)
        history.repo.commit({"a": np.full(3, number)}, branch=f"b{number}")
    made = {name: history.repo.branches()[name] for name in ("b11", "b12")}
    for name in made:
        shutil.rmtree(history.folder / f"refs/heads/{name}")
    entry = _refs.read(fs, "refs/heads/main")
    _refs.append(fs, "refs/heads/main", made["b11"], after=entry, why="", durable=True)
    cut(history.newest("heads/main"), 20)
    report = repaired(history)
    assert report.problems == []
    branches = Repository(history.folder).branches()
    assert branches["main"] == tip
    assert {branches[f"lost-found/{id[:12]}"] for id in made.values()} == set(made.values())


def test_the_branch_that_head_is_on_is_gone(repo: Repository, folder: Path) -> None:
    ids = [repo.commit({"a": np.full(2, number)}) for number in range(3)]
    shutil.rmtree(folder / "refs/heads/main")
    (problem,) = Repository(folder).fsck().problems
    assert problem.path == "refs/heads/main"
    assert problem.commits == (ids[2],)
    assert Repository(folder).fsck(repair=True).ok
    assert [commit.id for commit in Repository(folder).log()] == ids[::-1]


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_indexes_are_made_anew(repo: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index, "_UNCOVERED", 2)
    for number in range(4):
        repo.commit({"a": np.full(2, number)})
    (index,) = (folder / "index").iterdir()
    whole = index.read_bytes()
    for damage in (lambda path: flip(path, 70), lambda path: cut(path, 30), _without_a_row):
        index.write_bytes(whole)
        damage(index)
        assert [problem.path for problem in Repository(folder).fsck().problems] == [f"index/{index.name}"]
        assert Repository(folder).fsck(repair=True).ok
        assert len(Repository(folder).log()) == 4
        (made,) = (folder / "index").iterdir()
        assert made.read_bytes()[:8] == b"CORALIX\n"
        index = made


def _without_a_row(path: Path) -> None:
    """Make it an index that is whole by its checksum, and lacks an object."""
    segment = _index._Segment.decode("x", path.read_bytes())
    path.write_bytes(_index._Segment.encode(segment.packs, segment.rows[:-1]))


def test_a_note_that_said_that_a_commit_is_pruned(history: History) -> None:
    history.repo.delete_tag("t")
    history.repo.delete_branch("x")
    history.repo.prune(history.ids[1])
    for note in (history.folder / "notes" / history.ids[1]).iterdir():
        flip(note, 4)
    assert not Repository(history.folder).fsck().ok
    assert repaired(history).problems == []
    assert Repository(history.folder).show(history.ids[1]).pruned


@pytest.mark.parametrize(("part", "local"), [(b'"time"', False), (b'"commit"', True)])
def test_a_note_that_said_that_a_commit_is_pruned_beside_a_remote(
    history: History, remote: Path, tmp_path: Path, part: bytes, local: bool
) -> None:
    """In doubt it is as if it was never fetched: that frees nothing over there."""
    history.repo.delete_tag("t")
    history.repo.delete_branch("x")
    history.repo.prune(history.ids[1])
    (note,) = (history.folder / "notes" / history.ids[1]).iterdir()
    flip(note, note.read_bytes().index(part) + 3)
    remote.rename(tmp_path / "aside")
    assert repaired(history).problems == []
    (made,) = Repository(history.folder).notes(history.ids[1])
    assert (made.pruned, made.local) == (True, local)


@pytest.mark.parametrize("part", [b'"local"', b'"pruned"', b'"commit"', b'"time"'])
@pytest.mark.parametrize("whole", [True, False])
def test_a_note_that_said_that_a_commit_was_not_fetched(
    history: History, remote: Path, tmp_path: Path, part: bytes, whole: bool
) -> None:
    """It is not taken for one that the commit is pruned, which a push would do over there, too."""
    clone = Repository.clone(remote, tmp_path / "clone", depth=1)
    (note,) = (tmp_path / "clone/notes" / history.ids[1]).glob("*")
    flip(note, note.read_bytes().index(part) + 3)
    aside = tmp_path / "aside"
    if not whole:
        remote.rename(aside)
    report = clone.fsck(repair=True)
    if not whole:
        aside.rename(remote)
    assert report.ok == (whole or part != b'"pruned"')
    assert Repository(tmp_path / "clone").show(history.ids[1]).pruned == (report.ok and not whole)
    clone.commit(History.weights(9))
    clone.push("origin", prune=True)
    assert Repository(remote).fsck().ok
    assert not Repository(remote).show(history.ids[1]).pruned
    assert Repository(remote).load(history.ids[1])["own"].data.tolist() == [1] * 500


def test_a_note_that_comes_from_a_damaged_remote_is_not_taken(history: History, remote: Path) -> None:
    for note in (note_of(history), *(remote / "notes" / history.ids[0]).iterdir()):
        flip(note, 30)
    report = repaired(history)
    assert any("is lost" in action for action in report.actions)
    assert Repository(history.folder).show(history.ids[0]).metrics == {}


def test_the_file_of_a_partial_clone(history: History, remote: Path, tmp_path: Path) -> None:
    clone = Repository.clone(remote, tmp_path / "clone", names=["own"])
    flip(tmp_path / "clone/partial", 9)
    assert [problem.path for problem in clone.fsck().problems] == ["partial"]
    report = clone.fsck(repair=True)
    assert report.ok, str(report)
    assert Repository(tmp_path / "clone").load(names=["own"])["own"].data.tolist() == [2] * 500
    history.repo.commit({**History.weights(9), "new": np.ones(4)})
    history.repo.push("origin")
    Repository(tmp_path / "clone").pull()
    assert Repository(tmp_path / "clone").fsck().ok
    with pytest.raises(CorruptObject, match="only own"):
        Repository(tmp_path / "clone").load()["same"].data  # noqa: B018 - reading is what fails


@pytest.mark.parametrize("name", ["weights/own", "weights/mine", "state/m"])
def test_what_a_partial_clone_has_lost_of_a_commit_that_was_made_in_it(remote: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "clone"
    clone = Repository.clone(remote, folder, names=["own"])
    before = set((folder / "packs").iterdir())
    arrays = {"weights/own": np.full(500, 8, np.float32), "weights/mine": np.full(400, 8.0), "state/m": np.ones(300)}
    weights = {"own": arrays["weights/own"], "mine": arrays["weights/mine"]}
    made = clone.commit(weights, state={"m": arrays["state/m"]})
    (pack,) = set((folder / "packs").iterdir()) - before
    clone.commit({**weights, "own": np.full(500, 9, np.float32)})
    flip(pack, pack.read_bytes().index(arrays[name].tobytes()) + 80)
    for _ in range(2):
        report = Repository(folder).fsck(repair=True)
        (problem,) = report.problems
        assert made in problem.commits
        assert name in problem.tensors
        assert made not in report.whole
        assert Repository(folder).fsck().problems == [problem]
    if name.startswith("weights/"):
        with pytest.raises(MissingObject) as caught:
            Repository(folder).load(made)
        assert "names=" not in str(caught.value)


def test_what_a_partial_clone_has_lost_of_what_it_fetched(history: History, remote: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    clone = Repository.clone(remote, folder, names=["own"])
    assert clone.fsck().ok
    part = np.full(500, 1, np.float32).tobytes()
    for path in (folder / "packs").iterdir():
        data = path.read_bytes()
        if part in data:
            flip(path, data.index(part) + 80)
    whole, aside = set(clone.fsck().whole), tmp_path / "aside"
    assert whole == set(history.ids) - {history.ids[1]}
    remote.rename(aside)
    (problem,) = Repository(folder).fsck(repair=True).problems
    assert (problem.commits, problem.tensors) == ((history.ids[1],), ("weights/own",))
    with pytest.raises(MissingObject) as caught:
        Repository(folder).load(history.ids[1], names=["own"])
    assert "names=" not in str(caught.value)
    aside.rename(remote)
    assert Repository(folder).fsck(repair=True).problems == []
    assert Repository(folder).load(history.ids[1], names=["own"])["own"].data.tolist() == [1] * 500


def test_what_a_partial_clone_never_had_is_not_lost(history: History, remote: Path, tmp_path: Path) -> None:
    """Whatever became of the refs that led to it over there."""
    clone = Repository.clone(remote, tmp_path / "clone", names=["own"])
    clone.commit({"own": np.full(500, 8, np.float32), "same": np.zeros(1000)})
    clone.push("origin")
    history.repo.delete_branch("x")
    Repository(remote).delete_branch("x")
    clone.fetch("origin")
    assert clone.fsck().problems == []
    clone.remove_remote("origin")
    assert set(clone.fsck().whole) >= {*history.ids[:3], clone.resolve("HEAD")}
    flip(tmp_path / "clone/partial", 9)
    assert clone.fsck(repair=True).problems == []
    with pytest.raises(MissingObject, match="only own:"):
        clone.load("HEAD~1")


def test_the_record_of_a_remote(history: History, remote: Path) -> None:
    flip(history.folder / "remotes/origin/remote", 9)
    assert [problem.path for problem in history.repo.fsck().problems] == ["remotes/origin/remote"]
    report = repaired(history)
    assert report.ok
    assert any("add_remote" in action for action in report.actions)
    history.repo.add_remote("origin", remote)
    history.repo.push()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs POSIX")
def test_a_link_is_moved_and_never_followed(history: History, tmp_path: Path) -> None:
    as_a_link(history.pack(1))
    content = (tmp_path / "elsewhere").read_bytes()
    report = history.repo.fsck(repair=True)
    assert not history.pack(1).is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == content
    assert not report.ok


def test_nothing_ever_collects_what_is_set_aside(history: History, remote: Path) -> None:
    LOSSES["a byte of a tensor"](history)
    report = repaired(history)
    before = {path: (history.folder / path).read_bytes() for path in report.quarantined}
    assert before
    repo = Repository(history.folder)
    repo.delete_branch("x")
    repo.repack()
    repo.gc(0)
    repo.prune(history.ids[0])
    assert repo.fsck(repair=True).ok
    assert {path: (history.folder / path).read_bytes() for path in before} == before


def test_two_repairs_set_aside_apart(history: History, remote: Path) -> None:
    for _ in range(2):
        repo = Repository(history.folder)
        for path in (history.folder / "packs").iterdir():
            flip(path, 100)
        assert repo.fsck(repair=True).ok
    assert len(list((history.folder / "quarantine").iterdir())) == 2
    history.assert_as_before()


class Dying:
    """Asked before each operation on a filesystem: from the `at`th change on the process is no more."""

    CHANGES = frozenset({"create", "write", "mkdir", "link", "replace", "unlink", "fsync", "fsync_dir"})

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, kind: str, path: str) -> None:
        if kind in self.CHANGES:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["two packs exchanged", "a ref's newest entry cut"])
def test_a_repair_that_is_cut_short_anywhere_loses_nothing(
    history: History,
    remote: Path,
    damage: str,
    fs: FileSystem,
    around: Callable[..., FileSystem],
    tmp_path: Path,
) -> None:
    (LOSSES | MENDABLE)[damage](history)
    before, whole, stored = tmp_path / "before", history.wholes(), contents(history.folder)
    shutil.copytree(history.folder, before)
    for at in range(0, 1000, 3):  # tests/torture does all of them
        shutil.rmtree(history.folder)
        shutil.copytree(before, history.folder)
        try:
            Repository(around(fs, Dying(at))).fsck(repair=True)
        except KeyboardInterrupt:
            assert stored <= contents(history.folder)
            assert whole <= history.wholes()
            assert Repository(history.folder).fsck(repair=True).problems == []
            history.assert_as_before()
        else:
            break
    assert at > 15
