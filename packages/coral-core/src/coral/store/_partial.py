"""A repository that holds only some tensors of its commits, on purpose: a clone of named ones."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from coral import _json
from coral.errors import CorruptObject
from coral.filesystem import FileSystem
from coral.store import _refs
from coral.store._files import LIMIT, seal, temporary, unseal

_PATH = "partial"

COMMITTED = "commit: "
"""What the entry of a branch that a commit was made on begins to say of why it is there."""


def mark_partial(fs: FileSystem, names: Iterable[str] | None) -> None:
    """Say, durably, that of what is fetched only these weights are held, or with None all of it, whatever was said."""
    if names is None:
        with suppress(FileNotFoundError):
            fs.unlink(_PATH)
    else:
        with temporary(fs) as (source, file):
            file.write([partial_content(names)])
            file.fsync()
            fs.replace(source, _PATH)
    fs.fsync_dir("")


def partial_content(names: Iterable[str]) -> bytes:
    """What the file holds that says so."""
    return seal(_json.dumps({"names": sorted(names)}))


def partial_names(fs: FileSystem) -> frozenset[str] | None:
    """The weights that are held of what was fetched; None where all of it is."""
    try:
        found = _json.loads(unseal(fs.read(_PATH, LIMIT), _PATH), _PATH)
    except FileNotFoundError:
        return None
    match found:
        case {"names": list(names)} if all(isinstance(name, str) for name in names):
            return frozenset(names) or None
        case _:
            raise CorruptObject(f"the file {_PATH} does not say which tensors are held", path=_PATH)


def made_here(fs: FileSystem) -> set[str]:
    """The commits that branches here say were made on them: all of these is held, whatever was fetched of others."""
    folders = (f"refs/heads/{component}" for component in fs.list("refs/heads"))
    entries = (entry for folder in folders for entry in _refs.history(fs, folder) if isinstance(entry, _refs.RefEntry))
    return {entry.value for entry in entries if entry.value and entry.why.startswith(COMMITTED)}
