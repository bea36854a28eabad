"""Notes: put beside a commit, never changed, read in no order."""

from __future__ import annotations

from pathlib import Path

import pytest

from coral.errors import CorruptObject
from coral.filesystem import LocalFileSystem
from coral.objects import Note
from coral.store import _notes

COMMIT = "a" * 64


def test_notes_add_up(fs: LocalFileSystem) -> None:
    assert _notes.read(fs, COMMIT) == []
    written = [Note({"loss": float(n)}, frozenset({str(n)}), time=n) for n in range(3)]
    paths = {_notes.add(fs, COMMIT, note, durable=n == 0) for n, note in enumerate(written)}
    assert len(paths) == 3
    assert sorted(_notes.read(fs, COMMIT), key=lambda note: note.time) == written
    assert _notes.read(fs, "b" * 64) == []


def test_the_same_note_twice(fs: LocalFileSystem) -> None:
    for _ in range(2):
        _notes.add(fs, COMMIT, Note(time=1.0), durable=False)
    assert len(_notes.read(fs, COMMIT)) == 2


def test_a_damaged_note_is_named(fs: LocalFileSystem, folder: Path) -> None:
    path = _notes.add(fs, COMMIT, Note(time=1.0), durable=False)
    data = (folder / path).read_bytes()
    for bad in (data[:-1], b"", data[:5], b"x" + data[1:], data + b"\n"):
        (folder / path).write_bytes(bad)
        with pytest.raises(CorruptObject, match=path) as caught:
            _notes.read(fs, COMMIT)
        assert caught.value.path == path
