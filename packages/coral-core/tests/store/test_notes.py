"""Notes: put beside a commit, never changed, read in no order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import CorruptObject
from coral.filesystem import LocalFileSystem
from coral.objects import Note
from coral.store import _notes

COMMIT, OTHER = "a" * 64, "b" * 64


def test_notes_add_up(fs: LocalFileSystem) -> None:
    assert list(_notes.read(fs, COMMIT)) == []
    written = [Note({"loss": float(n)}, frozenset({str(n)}), time=n) for n in range(3)]
    paths = {_notes.add(fs, COMMIT, note, durable=n == 0) for n, note in enumerate(written)}
    assert len(paths) == 3
    found = [note for note in _notes.read(fs, COMMIT) if isinstance(note, Note)]
    assert sorted(found, key=lambda note: note.time) == written
    assert list(_notes.read(fs, OTHER)) == []


def test_the_same_note_twice(fs: LocalFileSystem) -> None:
    for _ in range(2):
        _notes.add(fs, COMMIT, Note(time=1.0), durable=False)
    assert list(_notes.read(fs, COMMIT)) == [Note(time=1.0)] * 2


def test_a_damaged_note_is_named(fs: LocalFileSystem, folder: Path) -> None:
    path = _notes.add(fs, COMMIT, Note(time=1.0), durable=False)
    data = (folder / path).read_bytes()
    for bad in (data[:-1], b"", data[:5], b"x" + data[1:], data + b"\n"):
        (folder / path).write_bytes(bad)
        (error,) = _notes.read(fs, COMMIT)
        assert isinstance(error, CorruptObject)
        assert path in str(error)
        assert error.path == path


def test_a_note_that_was_moved_to_another_commit_is_damaged(fs: LocalFileSystem, folder: Path) -> None:
    path = _notes.add(fs, COMMIT, Note({"loss": 1.0}, time=1.0), durable=False)
    moved = f"notes/{OTHER}/{path.rpartition('/')[2]}"
    fs.mkdir(f"notes/{OTHER}")
    (folder / path).rename(folder / moved)
    assert list(_notes.read(fs, COMMIT)) == []
    (error,) = _notes.read(fs, OTHER)
    assert isinstance(error, CorruptObject)
    assert error.path == moved


@pytest.mark.parametrize("name", [".DS_Store", "x" * 32, "A" * 32, "a" * 31, "a" * 33, "a" * 32 + ".tmp"])
def test_what_is_no_note_is_left_alone(repo: Repository, folder: Path, name: str) -> None:
    id = repo.commit({"a": np.ones(2)})
    repo.annotate("HEAD", metrics={"loss": 1.0})
    stray = folder / "notes" / id / name
    stray.write_bytes(b"junk")
    assert [note.metrics for note in repo.notes()] == [{"loss": 1.0}]
    assert repo.show().metrics == {"loss": 1.0}
    assert repo.fsck().ok
    assert stray.read_bytes() == b"junk"


def test_a_torn_note_does_not_hide_its_commit(repo: Repository, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = repo.commit({"a": np.ones(2)})
    id = repo.commit({"a": np.zeros(2)})
    repo.annotate("HEAD", metrics={"loss": 1.0})
    (torn,) = (folder / "notes" / id).iterdir()
    torn.write_bytes(torn.read_bytes()[:-9])
    repo.annotate("HEAD", reasons=["late"])
    caplog.clear()
    again = Repository(folder)
    assert (again.show().id, again.show().metrics, again.show().reasons) == (id, {}, ("late",))
    assert ("coral", "WARNING") in {(record.name, record.levelname) for record in caplog.records}
    assert torn.name in caplog.text
    assert [commit.id for commit in again.log()] == [id, first]
    assert again.load()["a"].data.tolist() == [0, 0]
    report = again.fsck()
    assert [(problem.path, problem.commits) for problem in report.problems] == [(f"notes/{id}/{torn.name}", (id,))]
