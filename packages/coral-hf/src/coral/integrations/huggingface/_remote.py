"""`hf://owner/name`: a coral repository in the folder `coral/` of a repository on the Hub.

What is put waits until a ref is put, and goes there with it in one commit, which follows the commit that was looked at
(create_commit(parent_commit=)): so refs move by compare-and-swap. Where somebody else has committed meanwhile it is
looked at anew: whether the name is taken by now, and that no pack has gone. That takes the place of intents, which
never leave this process. The bytes of packs are uploaded as they are put, side by side, and shown by the commit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

from coral.errors import ConfigError, Conflict, RemoteError, RemoteUnreachable
from coral.integrations.huggingface._repository import HubRepository, Operation
from coral.integrations.huggingface._showing import Shown
from coral.remotes import Newest, Remote, RemoteFile, check_remote_name

__all__ = ["HubRemote"]

_FOLDER = "coral"
_LATER = ("packs/", "notes/", "trash/")  # what waits for a ref, or for `flush`
_AHEAD = 1 << 20  # bytes from which a file is uploaded when it is put; others go along with the commit
_TRIES = 20
_ATTRIBUTES = ".gitattributes"
_LARGE = f"{_FOLDER}/packs/* filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True, slots=True)
class _Copy:
    """A second name for a file that is there."""

    source: str
    size: int


_Put = CommitOperationAdd


@dataclass(slots=True)
class _Seen:
    """The repository as it was at one commit: the files under `coral/`, with their sizes, once they were listed."""

    revision: str
    files: dict[str, int] | None = None


@dataclass(slots=True)
class _Waiting:
    """What is to be committed: files put, copies, and what is deleted (None), by name."""

    changes: dict[str, _Put | _Copy | None] = field(default_factory=dict)
    shown: Shown | None = None


class HubRemote(Remote):
    """A repository on the Hub, which has to be there. Opened by `hf://owner/name`; the token is huggingface_hub's."""

    shows = True

    def __init__(self, url: str) -> None:
        self.url = url
        repo_id = url.partition("://")[2]
        if repo_id.count("/") != 1 or not all(repo_id.split("/")):
            raise ConfigError(f"{url} names no repository on the Hub: hf://owner/name does, without a folder")
        self._hub = HubRepository(repo_id)
        self._lock = threading.RLock()
        self._seen: _Seen | None = None
        self._waiting = _Waiting()
        self._relied: set[str] = set()  # packs that were listed: nothing may be built on one that is gone
        self._intents: dict[str, bytes] = {}

    # -- what a remote does -----------------------------------------------------------------------------------------

    def put(self, name: str, data: memoryview) -> bool:
        check_remote_name(name)
        if name.startswith("intents/"):
            return self._intents.setdefault(name, content := bytes(data)) is content
        if self._waiting.changes.get(name, data) is None:  # it is to be deleted: first that
            self._commit({name: None})
        add = _Put(_path(name), bytes(data))
        if not name.startswith(_LATER):
            return self._commit({name: add}, name)
        with self._lock:
            if self._there(name):
                return False
        if len(data) >= _AHEAD:
            self._hub.upload(add)
        with self._lock:
            return self._waiting.changes.setdefault(name, add) is add

    def read(self, name: str, offset: int, size: int) -> bytes:
        check_remote_name(name)
        if name in self._intents:
            return self._intents[name][offset : offset + size]
        with self._lock:
            change = self._waiting.changes.get(name, name)
            if isinstance(change, _Put):
                self._show_puts()
            elif isinstance(change, _Copy):
                name = change.source
            elif change is None:
                raise FileNotFoundError(2, "no such file on the remote", name)
            revision = self._look().revision
        return self._hub.read(revision, _path(name), offset, size)

    def list(self, prefix: str) -> Iterator[RemoteFile]:
        with self._lock:
            found = dict(self._files())
            for name, change in self._waiting.changes.items():
                if change is None:
                    found.pop(name, None)
                else:
                    found[name] = change.size if isinstance(change, _Copy) else change.upload_info.size
        found |= {name: len(data) for name, data in self._intents.items()}
        whole = not prefix or prefix.endswith("/")
        now = time.time()  # the Hub knows when a file was put, and takes long to tell: it is young, and left alone
        for name, size in found.items():
            if name.startswith(prefix) if whole else name == prefix:
                if name.startswith("packs/"):
                    self._relied.add(name)
                yield RemoteFile(name, size, now)

    def delete(self, name: str) -> None:
        check_remote_name(name)
        if self._intents.pop(name, None) is not None:
            return
        with self._lock:
            self._waiting.changes[name] = None

    def copy(self, source: str, target: str) -> None:
        check_remote_name(target)
        with self._lock:
            if isinstance(self._waiting.changes.get(check_remote_name(source)), _Put):
                self._show_puts()
            change = self._waiting.changes.get(source, source)
            if isinstance(change, _Copy):
                self._waiting.changes[target] = change
            elif change is not None and source in self._files():
                self._waiting.changes[target] = _Copy(source, self._files()[source])
            else:
                raise FileNotFoundError(2, "no such file on the remote", source)

    def flush(self) -> None:
        if self._waiting.changes:
            self._commit(self._waiting.changes)

    def show(self, newest: Newest) -> None:
        self._waiting.shown = Shown.of(newest, self._hub)

    # -- what is there ----------------------------------------------------------------------------------------------

    def _look(self) -> _Seen:
        """The repository as it was when it was first looked at since somebody's commit here."""
        if self._seen is None:
            self._seen = _Seen(self._hub.head())
        return self._seen

    def _files(self) -> dict[str, int]:
        """All files at that commit, by name."""
        seen = self._look()
        if seen.files is None:
            at = len(_FOLDER) + 1
            found = {path[at:]: size for path, size in self._hub.files(seen.revision, _FOLDER).items()}
            if gone := sorted(self._relied - found.keys()):
                self._seen = None
                raise RemoteError(
                    f"{self.url} has lost {gone[0]}, on which what was put here relies: somebody has collected garbage "
                    "meanwhile. Nothing has changed there; try again.",
                    remote=self.url,
                )
            seen.files = found
        return seen.files

    def _there(self, name: str) -> bool:
        """Whether a name is taken, by what is there or what is put."""
        return self._waiting.changes.get(name, self._files().get(name)) is not None

    # -- commits ----------------------------------------------------------------------------------------------------

    def _show_puts(self) -> None:
        """Commit what was put alone, so that it can be read: nobody is misled by that."""
        self._commit({name: change for name, change in self._waiting.changes.items() if isinstance(change, _Put)})

    def _commit(self, changes: Mapping[str, _Put | _Copy | None], first: str | None = None) -> bool:
        """Make a commit of these changes, and with a ref of all that waits, too; False if the name `first` is taken.

        Conflict, and nothing waits any more, where packs are deleted and somebody else has committed meanwhile: they
        may be needed by now.
        """
        with self._lock:
            for _ in range(_TRIES):
                files = self._files()
                if first is not None and self._there(first):
                    return False
                waiting = self._waiting.changes if first is not None and first.startswith("refs/") else {}
                wanted = {**waiting, **changes}
                shown = self._waiting.shown if first is not None and first.startswith("refs/heads/") else None
                operations = [*self._operations(wanted, files), *self._beside(first, shown)]
                if not operations or self._made(operations, first):
                    self._committed(wanted, files)
                    if shown is not None:
                        self._waiting.shown = None
                    return True
                self._seen = None
                if any(change is None and name.startswith("packs/") for name, change in wanted.items()):
                    self._waiting, self._relied = _Waiting(), set()
                    raise Conflict(f"somebody else has committed to {self.url} while packs were about to be deleted")
        raise RemoteUnreachable(f"others commit to {self.url} all the time: try again later", remote=self.url)

    def _made(self, operations: Sequence[Operation], first: str | None) -> bool:
        """Make a commit that follows what was looked at; whether that is the newest still."""
        seen = self._look()
        try:
            done = self._hub.commit(operations, f"coral: {first or 'packs and notes'}", parent=seen.revision)
        except BaseException:
            self._seen = None  # it may have been made
            raise
        if done is None:
            return False
        # only of what is new each time it is sure that a commit was made of it, and not found there already
        self._seen = _Seen(done, seen.files) if first is not None and first.startswith("refs/") else None
        return True

    @staticmethod
    def _operations(changes: Mapping[str, _Put | _Copy | None], files: Mapping[str, int]) -> Iterator[Operation]:
        for name, change in changes.items():
            match change:
                case _Copy():
                    yield CommitOperationCopy(_path(change.source), _path(name))
                case None if name in files:
                    yield CommitOperationDelete(_path(name))
                case None:
                    pass
                case _ if name not in files:
                    yield change

    def _beside(self, first: str | None, shown: Shown | None) -> Iterator[Operation]:
        """What goes along outside of `coral/`: the weights that are shown; with the first file, how packs are kept."""
        if shown is not None:
            yield from shown.operations(self._hub.files(self._look().revision, below=False))
        if first == "format":
            try:
                before = self._hub.read(self._look().revision, _ATTRIBUTES, 0, 1 << 20).decode("utf-8", "replace")
            except FileNotFoundError:
                before = ""
            if _LARGE not in before:
                text = before if not before or before.endswith("\n") else before + "\n"
                yield _Put(_ATTRIBUTES, (text + _LARGE).encode())

    def _committed(self, changes: Mapping[str, _Put | _Copy | None], files: dict[str, int]) -> None:
        """Take what was committed for what is there."""
        for name, change in changes.items():
            self._waiting.changes.pop(name, None)
            if change is None:
                files.pop(name, None)
                self._relied.discard(name)
            else:
                files[name] = change.size if isinstance(change, _Copy) else change.upload_info.size


def _path(name: str) -> str:
    return f"{_FOLDER}/{name}"
