"""Notes on both sides, by name: each is put once and never changed, so what is missing is all that there is to know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from coral.errors import CorruptObject
from coral.filesystem import FileSystem
from coral.objects import Note
from coral.store._files import LIMIT, unseal

__all__ = ["FoundNote", "local_notes", "note_paths", "read_note"]

_PATH = re.compile(r"notes/([0-9a-f]{64})/[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FoundNote:
    """A note as it lies in its file."""

    path: str
    commit: str
    note: Note
    content: bytes


def commit_of(path: str) -> str | None:
    """The commit that a path is of a note on; None where it is of something else."""
    match = _PATH.fullmatch(path)
    return match[1] if match else None


def note_paths(fs: FileSystem) -> Iterator[str]:
    """The paths of all notes."""
    for commit in fs.list("notes"):
        for name in fs.list(f"notes/{commit}"):
            if commit_of(path := f"notes/{commit}/{name}"):
                yield path


def read_note(fs: FileSystem, path: str) -> FoundNote:
    """A note, checked; CorruptObject if it is not what was written."""
    commit = commit_of(path)
    if commit is None:
        raise CorruptObject(f"{path[:200]!r} is not the path of a note", path=path)
    content = fs.read(path, LIMIT)
    return FoundNote(path, commit, Note.decode(unseal(content, path), commit, path), content)


def local_notes(fs: FileSystem) -> list[str]:
    """The paths of those that say of a commit that its record alone was fetched; not of damaged ones."""
    found = []
    for path in note_paths(fs):
        with suppress(CorruptObject, FileNotFoundError):
            if read_note(fs, path).note.local:
                found.append(path)
    return found
