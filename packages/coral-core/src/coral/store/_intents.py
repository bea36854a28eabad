"""Intents: what a running operation relies on or is about to publish, so that garbage collection leaves it alone.

An intent is a file that names the process and the objects, or packs, that it means to keep. One whose process is gone
is void. It need not survive a loss of power, and is not synced: the process would not survive it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from coral import _json
from coral.errors import CorruptObject
from coral.filesystem import FileSystem, Origin
from coral.objects import is_id
from coral.store._files import LIMIT, filesystem_time, nonce, seal, unseal

FOREIGN_AGE = 14 * 86400.0
"""Seconds after which what another host left counts as abandoned."""


@dataclass(slots=True)
class Operation:
    """An operation that is under way, and what it has announced."""

    fs: FileSystem
    kind: str
    name: str = field(default_factory=nonce)
    _paths: list[str] = field(default_factory=list)

    def needs(self, ids: Iterable[str]) -> None:
        """Announce that it relies on these objects, with all that they lead to, or on all that is in these packs."""
        path = f"intents/{nonce() if self._paths else self.name}"
        content = {**self.fs.origin()._asdict(), "kind": self.kind, "time": self.fs.now(), "needs": sorted(ids)}
        file = self.fs.create(path)
        self._paths.append(path)
        try:
            file.write([seal(_json.dumps(content))])
        finally:
            file.close()

    def end(self) -> None:
        """Withdraw what was announced."""
        while self._paths:
            with suppress(OSError):
                self.fs.unlink(self._paths[-1])
            self._paths.pop()


@contextmanager
def intent(fs: FileSystem, kind: str, needs: Iterable[str]) -> Iterator[Operation]:
    """Announce an operation that relies on the objects `needs` while the block runs."""
    pid, operation = fs.origin().pid, Operation(fs, kind)
    try:
        operation.needs(needs)
        yield operation
    finally:
        if fs.origin().pid == pid:  # a forked process does not end its parent's operation
            operation.end()


@dataclass(frozen=True, slots=True)
class Intent:
    """An intent as another process sees it."""

    name: str
    kind: str
    needs: frozenset[str]
    alive: bool  # its process runs, or is on another host and may


def intents(fs: FileSystem) -> list[Intent]:
    """All intents that can be read; one that cannot is being written or withdrawn, and relies on nothing yet."""
    found, here, now = [], fs.origin(), None
    for name in fs.list("intents"):
        path = f"intents/{name}"
        try:
            content = _json.loads(unseal(fs.read(path, LIMIT), path), path)
            written = fs.stat(path).mtime
        except (CorruptObject, FileNotFoundError):
            continue
        match content:
            case {"host": str(host), "boot": str(boot), "pid": int(pid), "kind": str(kind), "needs": list(needs)}:
                if host == here.host:
                    alive = fs.alive(Origin(host, boot, pid))
                else:
                    now = filesystem_time(fs) if now is None else now
                    alive = now - written < FOREIGN_AGE
                found.append(Intent(name, kind, frozenset(id for id in needs if is_id(id)), alive))
    return found


def needed(fs: FileSystem, kind: str | None = None) -> set[str]:
    """The ids that running operations, of a kind if one is given, rely on.

    That is those of processes that are alive, or on another host and not old.
    """
    found = (intent for intent in intents(fs) if intent.alive and kind in (None, intent.kind))
    return {id for intent in found for id in intent.needs}
