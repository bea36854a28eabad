"""fsck: it finds every damage, and says what it touches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import CorruptObject, UnknownRef
from coral.filesystem import FileSystem
from coral.maintenance import FsckReport
from coral.store import _index
from coral.store._pack import read_directory
from coral.store._refs import RefEntry

Flip = Callable[..., None]


@pytest.fixture
def history(repo: Repository, folder: Path) -> dict[str, Path]:
    """Three commits, a branch, a tag and a note; the packs by the commit that wrote them."""
    packs: dict[str, Path] = {}
    for number in range(3):
        before = set((folder / "packs").iterdir())
        weights = {"same": np.arange(1000.0), "own": np.full(500, number, np.float32)}
        id = repo.commit(weights, str(number), state={"m": np.full(300, number)})
        (packs[id],) = set((folder / "packs").iterdir()) - before
    repo.branch("x", "HEAD~1")
    repo.tag("t", "HEAD~1")
    repo.annotate("HEAD~2", reasons=["x"], state={"late": np.ones(5)})
    return packs


def touched(report: FsckReport) -> set[str]:
    return {id for problem in report.problems for id in problem.commits}


def test_a_clean_repository(repo: Repository, history: dict[str, Path], folder: Path) -> None:
    report = Repository(folder).fsck()
    assert report.ok
    assert (report.commits, report.packs) == (3, 4)
    assert report.tensors == 1 + 3 + 3 + 1
    assert report.bytes_checked > 8000 + 3 * 2000
    assert "no damage" in str(report)


def test_an_empty_repository(repo: Repository) -> None:
    report = repo.fsck()
    assert (report.ok, report.commits, report.packs, report.tensors) == (True, 0, 0, 0)


def test_a_flipped_byte_in_a_tensor_that_one_commit_has(
    repo: Repository, history: dict[str, Path], flip: Flip, folder: Path
) -> None:
    ids = list(history)
    data = history[ids[1]].read_bytes()
    flip(history[ids[1]], data.index(np.full(500, 1, np.float32).tobytes()) + 7)
    report = Repository(folder).fsck()
    assert not report.ok
    assert touched(report) == {ids[1]}
    assert any(problem.path == f"packs/{history[ids[1]].name}" for problem in report.problems)
    tensor = repo.tree(ids[1])["own"].id
    assert any(tensor[:12] in problem.message for problem in report.problems)
    assert ids[1][:12] in str(report)


def test_a_flipped_byte_in_a_tensor_that_all_have(
    repo: Repository, history: dict[str, Path], flip: Flip, folder: Path
) -> None:
    ids = list(history)
    data = history[ids[0]].read_bytes()
    flip(history[ids[0]], data.index(np.arange(1000.0).tobytes()) + 4000)
    assert touched(Repository(folder).fsck()) == set(ids)


def test_a_flipped_byte_in_a_state(repo: Repository, history: dict[str, Path], flip: Flip, folder: Path) -> None:
    ids = list(history)
    data = history[ids[2]].read_bytes()
    flip(history[ids[2]], data.index(b'"$array"'))
    assert touched(Repository(folder).fsck()) == {ids[2]}


def test_a_flipped_byte_in_a_later_state(repo: Repository, history: dict[str, Path], flip: Flip, folder: Path) -> None:
    """That of a note: the commit does not name it itself."""
    (pack,) = set((folder / "packs").iterdir()) - set(history.values())
    flip(pack, pack.read_bytes().index(np.ones(5).tobytes()) + 3)
    assert touched(Repository(folder).fsck()) == {next(iter(history))}


@pytest.mark.parametrize("part", ["commit", "directory"])
def test_a_commit_that_cannot_be_read(
    repo: Repository, history: dict[str, Path], flip: Flip, folder: Path, part: str
) -> None:
    ids = list(history)
    data = history[ids[1]].read_bytes()
    flip(history[ids[1]], data.index(b'"message"') if part == "commit" else len(data) - 100)
    report = Repository(folder).fsck()
    assert any(problem.path == f"packs/{history[ids[1]].name}" for problem in report.problems)
    named = {problem.path for problem in report.problems}
    assert {"refs/heads/x", "refs/tags/t"} <= named
    assert touched(report) >= {ids[1], ids[2]}  # itself, and the one whose parent it is


def test_a_deleted_pack(repo: Repository, history: dict[str, Path], folder: Path) -> None:
    ids = list(history)
    history[ids[0]].unlink()
    report = Repository(folder).fsck()
    assert touched(report) >= set(ids)  # all share a tensor that was in it
    assert report.packs == 3


@pytest.mark.parametrize("at", ["every"])
def test_every_byte_of_a_pack_is_checked(repo: Repository, folder: Path, flip: Flip, at: str) -> None:
    repo.commit({"a": np.arange(3, dtype=np.uint8)})
    (pack,) = (folder / "packs").iterdir()
    size = pack.stat().st_size
    missed = []
    for at_byte in range(0, size, 3):
        flip(pack, at_byte, at_byte % 8)
        if Repository(folder).fsck().ok:
            missed.append(at_byte)
        flip(pack, at_byte, at_byte % 8)
    data = pack.read_bytes()
    assert all(data[at_byte] == 0 for at_byte in missed)  # the gaps between entries
    assert len(missed) < 45
    assert Repository(folder).fsck().ok


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/heads/x", "refs/tags/t"])
@pytest.mark.parametrize("damage", ["flipped", "torn", "empty"])
def test_a_damaged_ref(
    repo: Repository, history: dict[str, Path], flip: Flip, folder: Path, ref: str, damage: str
) -> None:
    path = max((folder / ref).iterdir())
    match damage:
        case "flipped":
            flip(path, 20)
        case "torn":
            path.write_bytes(path.read_bytes()[:50])
        case "empty":
            path.write_bytes(b"")
    report = Repository(folder).fsck()
    assert [problem.path for problem in report.problems] == [f"{ref}/{path.name}"]


def test_a_damaged_head(repo: Repository, history: dict[str, Path], flip: Flip, folder: Path) -> None:
    repo.checkout("x")
    (path,) = (folder / "refs/HEAD").iterdir()
    flip(path, 5)
    report = Repository(folder).fsck()
    assert [problem.path for problem in report.problems] == [f"refs/HEAD/{path.name}"]


def test_an_old_entry_of_a_ref(repo: Repository, history: dict[str, Path], flip: Flip, folder: Path) -> None:
    flip(folder / "refs/heads/main/0000000002", 5)
    report = Repository(folder).fsck()
    assert [problem.path for problem in report.problems] == ["refs/heads/main/0000000002"]


def test_a_damaged_note(repo: Repository, history: dict[str, Path], flip: Flip, folder: Path) -> None:
    first = next(iter(history))
    (note,) = (folder / "notes" / first).iterdir()
    flip(note, 10)
    report = Repository(folder).fsck()
    assert [(problem.path, problem.commits) for problem in report.problems] == [
        (f"notes/{first}/{note.name}", (first,))
    ]


def test_a_damaged_index(repo: Repository, flip: Flip, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index, "_UNCOVERED", 2)
    for number in range(4):
        repo.commit({"a": np.full(2, number)})
    (index,) = (folder / "index").iterdir()
    flip(index, 50)
    report = Repository(folder).fsck()
    assert [problem.path for problem in report.problems] == [f"index/{index.name}"]
    assert "remove it" in str(report)
    index.unlink()
    assert Repository(folder).fsck().ok
    assert len(Repository(folder).log()) == 4


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_format_file(
    repo: Repository, history: dict[str, Path], flip: Flip, folder: Path, damage: str
) -> None:
    """It was whole when the repository was opened: fsck says so of the next opening."""
    opened = Repository(folder)
    flip(folder / "format", 5) if damage == "flipped" else (folder / "format").unlink()
    assert [problem.path for problem in opened.fsck().problems] == ["format"]


@pytest.mark.parametrize("where", ["packs", "index", "notes", "refs/heads", "refs/tags", "refs", "refs/heads/main"])
def test_a_stray_file(repo: Repository, history: dict[str, Path], folder: Path, where: str) -> None:
    """Damage is reported, not raised; and what is not coral's hinders nobody."""
    (folder / where / ".DS_Store").write_bytes(b"junk")
    report = Repository(folder).fsck()
    assert all("DS_Store" in problem.path for problem in report.problems)
    fresh = Repository(folder)
    assert (len(fresh.log()), len(fresh.branches()), len(fresh.tags())) == (3, 2, 1)
    fresh.commit({"a": np.ones(1)})


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs POSIX")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize(
    "where", ["packs/" + "0" * 64 + ".pack", "index/x.idx", "refs/heads/main/0000000009", "intents/x"]
)
def test_links_and_pipes_are_no_part_of_it(
    repo: Repository, history: dict[str, Path], folder: Path, where: str, kind: str
) -> None:
    path = folder / where
    match kind:
        case "link":
            path.symlink_to(next(iter(history.values())))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    report = Repository(folder).fsck()
    assert {problem.path for problem in report.problems} <= {where, where.rpartition("/")[0]}  # a gap in a log, too
    if not where.startswith("intents"):
        assert not report.ok


def test_a_pruned_commit_needs_no_tensors(repo: Repository, history: dict[str, Path], flip: Flip, folder: Path) -> None:
    ids = list(history)
    repo.annotate(ids[1], pruned=True)
    data = history[ids[1]].read_bytes()
    flip(history[ids[1]], data.index(np.full(500, 1, np.float32).tobytes()))
    assert touched(Repository(folder).fsck()) == set()


def test_a_damaged_tensor_does_no_harm_where_there_is_another_copy(repo: Repository, folder: Path, flip: Flip) -> None:
    first = repo.commit({"a": np.arange(100.0)})
    (pack,) = (folder / "packs").iterdir()
    flip(pack, pack.read_bytes().index(np.arange(100.0).tobytes()) + 9)
    repo.commit({"a": np.arange(100.0)})  # it is compared with the damaged one, and stored again
    assert repo.load(first)["a"].data.tolist() == list(range(100))
    report = Repository(folder).fsck()
    assert [problem.path for problem in report.problems] == [f"packs/{pack.name}"]
    assert touched(report) == set()


def test_a_gap_in_the_log_of_a_ref_is_named(repo: Repository, folder: Path) -> None:
    for number in range(3):
        repo.commit({"a": np.full(3, number)})
    (folder / "refs/heads/main/0000000002").unlink()
    (problem,) = repo.fsck().problems
    assert problem.path == "refs/heads/main"
    assert "entry 2" in problem.message


def test_a_damaged_branch_does_not_stand_in_the_way_of_others(repo: Repository, folder: Path) -> None:
    repo.commit({"a": np.ones(3)})
    repo.branch("whole")
    repo.branch("torn")
    (folder / "refs/heads/torn/0000000001").write_bytes(b"")
    repo.checkout("whole")
    with pytest.raises(UnknownRef, match="whole"):
        repo.show("whol")
    with pytest.raises(CorruptObject, match="torn"):
        repo.show("torn")
    with pytest.raises(CorruptObject):
        repo.branches()  # what is kept by it could be missed otherwise


def test_entries_of_two_branches_that_changed_places(repo: Repository, folder: Path) -> None:
    repo.commit({"a": np.ones(2)})
    repo.commit({"a": np.zeros(2)}, branch="exp")
    paths = ["refs/heads/main/0000000001", "refs/heads/exp/0000000001"]
    (folder / paths[0]).rename(folder / "x")
    (folder / paths[1]).rename(folder / paths[0])
    (folder / "x").rename(folder / paths[1])
    again = Repository(folder)
    for branch in ("main", "exp"):
        with pytest.raises(CorruptObject, match=f"refs/heads/{branch}/0000000001.*out of place"):
            again.load(branch)
    assert {problem.path for problem in again.fsck().problems} == set(paths)


def test_an_entry_that_does_not_follow_on_the_one_before(repo: Repository, folder: Path) -> None:
    """Whole, of this ref and number, and from another history."""
    for number in range(3):
        repo.commit({"a": np.full(2, number)})
    path = folder / "refs/heads/main/0000000002"
    entry = RefEntry.decode("refs/heads/main", 2, path.read_bytes(), "p")
    assert repo.fsck().ok
    path.write_bytes(replace(entry, prev="f" * 32).encode())
    (problem,) = Repository(folder).fsck().problems
    assert problem.path == "refs/heads/main"
    assert "entry 2" in problem.message
    path.write_bytes(replace(entry, nonce="f" * 32).encode())
    (problem,) = Repository(folder).fsck().problems
    assert "entry 3" in problem.message


@pytest.mark.parametrize(
    "how",
    [
        "commit",
        "branch",
        "note",
    ],
)
def test_a_commit_that_is_made_meanwhile(
    repo: Repository, history: dict[str, Path], fs: FileSystem, around: Callable[..., FileSystem], how: str
) -> None:
    made: list[str] = []

    def before(kind: str, path: str) -> None:
        if kind in ("open", "read") and path.startswith("packs/") and not made:
            made.append("")
            match how:
                case "commit":
                    made.append(repo.commit({"own": np.full(500, 9, np.float32)}, state={"m": np.full(300, 9)}))
                case "note":
                    repo.annotate("HEAD", state={"late": np.full(7, 9.0)})
                case "branch":
                    made.append(repo.commit({"own": np.full(500, 9, np.float32)}, branch="new"))

    report = Repository(around(fs, before)).fsck()
    assert made
    assert report.problems == []
    assert repo.fsck().ok


@pytest.fixture
def beside(fs: FileSystem, around: Callable[..., FileSystem]) -> Callable[..., FsckReport]:
    """Checks a repository in which something is done at the first operation of a kind on a path."""

    def check(kind: str, path: str, do: Callable[[], object]) -> FsckReport:
        done: list[bool] = []

        def before(its_kind: str, its_path: str) -> None:
            if (its_kind, its_path) == (kind, path) and armed and not done:
                done.append(True)
                do()

        armed = False
        opened = Repository(around(fs, before))
        armed = True
        report = opened.fsck()
        assert done
        return report

    return check


PACKS_ARE_LISTED = ("read", "format")
"""What fsck does next."""
REFS_ARE_READ = ("list", "notes")


def test_a_repack_beside_it(
    repo: Repository, grow: Callable[..., list[str]], folder: Path, beside: Callable[..., FsckReport]
) -> None:
    ids = grow(*range(6))
    packs = set((folder / "packs").iterdir())
    report = beside(*PACKS_ARE_LISTED, repo.repack)
    assert packs - set((folder / "packs").iterdir())
    assert report.problems == []
    assert set(report.whole) == set(ids)
    assert (report.commits, report.packs) == (6, len(list((folder / "packs").iterdir())))


@pytest.mark.parametrize("when", [PACKS_ARE_LISTED, REFS_ARE_READ])
def test_a_branch_that_is_deleted_and_collected_beside_it(
    repo: Repository, history: dict[str, Path], beside: Callable[..., FsckReport], when: tuple[str, str]
) -> None:
    repo.commit({"only": np.full(500, 9.0)}, branch="x")

    def do() -> None:
        repo.delete_branch("x")
        assert repo.gc().packs_removed

    report = beside(*when, do)
    assert report.problems == []
    assert set(report.whole) == set(history)


def test_what_is_committed_beside_it_is_not_dangling(
    repo: Repository, history: dict[str, Path], beside: Callable[..., FsckReport]
) -> None:
    report = beside(*REFS_ARE_READ, lambda: repo.commit({"own": np.full(500, 9.0)}))
    assert (report.problems, report.dangling) == ([], [])
    assert report.commits == 4


def test_a_difference_that_is_collected_with_its_base(
    repo: Repository, grow: Callable[..., list[str]], folder: Path, fs: FileSystem, around: Callable[..., FileSystem]
) -> None:
    """It was open, and what it is a difference from was not yet."""
    grow(*range(6), branch="old")
    repo.repack()
    packs = {path.name: read_directory(fs, path.stem) for path in (folder / "packs").iterdir()}
    pack = next(f"packs/{name}" for name, held in packs.items() if any(entry.base for entry in held.entries()))
    repo.commit({"a": np.ones(3)})
    opened: list[bool] = []

    def before(kind: str, path: str) -> None:
        if (kind, path) == ("open", pack):
            opened.append(True)
        elif opened == [True] and kind == "open" and path.startswith("packs/"):
            opened.append(True)
            repo.delete_branch("old")
            assert repo.gc().packs_removed

    report = Repository(around(fs, before)).fsck()
    assert len(opened) > 1
    assert report.problems == []
