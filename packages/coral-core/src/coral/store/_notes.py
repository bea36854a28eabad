"""Notes: what became known of a commit later, each a small file put under the commit's id and never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from coral.errors import CorruptObject
from coral.filesystem import FileSystem
from coral.objects import Note
from coral.store._files import LIMIT, make_folder, nonce, put_if_absent, seal, unseal

_NAME = re.compile("[0-9a-f]{32}")


def add(fs: FileSystem, commit: str, note: Note, *, durable: bool) -> str:
    """Add a note to a commit; returns the path of its file."""
    folder = f"notes/{commit}"
    make_folder(fs, folder, durable=durable)
    path = f"{folder}/{nonce()}"
    put_if_absent(fs, path, seal(replace(note, synced=durable).encode(commit)), durable=durable)
    return path


def read(fs: FileSystem, commit: str) -> Iterator[Note | CorruptObject]:
    """The notes on a commit, in no order; a damaged one as the error that reading it gives."""
    for name in sorted(fs.list(f"notes/{commit}")):
        if _NAME.fullmatch(name):
            path = f"notes/{commit}/{name}"
            try:
                yield Note.decode(unseal(fs.read(path, LIMIT), path), commit, path)
            except CorruptObject as error:
                yield error
