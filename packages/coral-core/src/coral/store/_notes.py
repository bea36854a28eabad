"""Notes: what became known of a commit later, each a small file put under the commit's id and never changed."""

from __future__ import annotations

from coral.filesystem import FileSystem
from coral.objects import Note
from coral.store._files import LIMIT, make_folder, nonce, put_if_absent, seal, unseal


def add(fs: FileSystem, commit: str, note: Note, *, durable: bool) -> str:
    """Add a note to a commit; returns the path of its file."""
    folder = f"notes/{commit}"
    make_folder(fs, folder, durable=durable)
    path = f"{folder}/{nonce()}"
    put_if_absent(fs, path, seal(note.encode()), durable=durable)
    return path


def read(fs: FileSystem, commit: str) -> list[Note]:
    """The notes on a commit, in no order. CorruptObject where one is damaged."""
    found = []
    for name in sorted(fs.list(f"notes/{commit}")):
        path = f"notes/{commit}/{name}"
        found.append(Note.decode(unseal(fs.read(path, LIMIT), path), path))
    return found
