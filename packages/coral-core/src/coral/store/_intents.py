"""Intents: what a running operation relies on, so that garbage collection leaves it alone.

An intent is a file that names the process and the objects it means to keep. One whose process is gone is void. It need
not survive a loss of power, and is not synced: the process would not survive it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from coral import _json
from coral.errors import CorruptObject
from coral.filesystem import FileSystem, Origin
from coral.objects import is_id
from coral.store._files import LIMIT, nonce, seal, unseal

_FOREIGN_AGE = 14 * 86400.0  # seconds after which the intent of another host counts as abandoned


@contextmanager
def intent(fs: FileSystem, kind: str, needs: Iterable[str]) -> Iterator[None]:
    """Announce an operation that relies on the objects `needs` while the block runs."""
    origin = fs.origin()
    path = f"intents/{nonce()}"
    content = {**origin._asdict(), "kind": kind, "time": fs.now(), "needs": sorted(needs)}
    file = fs.create(path)
    try:
        file.write([seal(_json.dumps(content))])
        file.close()
        yield
    finally:
        file.close()
        if fs.origin().pid == origin.pid:  # a forked process does not end its parent's operation
            with suppress(OSError):
                fs.unlink(path)


def needed(fs: FileSystem) -> set[str]:
    """The ids that running operations rely on: those of processes that are alive, or on another host and not old."""
    found: set[str] = set()
    here = fs.origin()
    for name in fs.list("intents"):
        path = f"intents/{name}"
        try:
            content = _json.loads(unseal(fs.read(path, LIMIT), path), path)
            age = fs.now() - fs.stat(path).mtime
        except (CorruptObject, FileNotFoundError):  # being written, or dropped since it was listed
            continue
        match content:
            case {"host": str(host), "boot": str(boot), "pid": int(pid), "needs": list(needs)}:
                if fs.alive(Origin(host, boot, pid)) if host == here.host else age < _FOREIGN_AGE:
                    found.update(id for id in needs if is_id(id))
    return found
