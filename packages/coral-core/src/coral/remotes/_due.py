"""Pushes that are due: what a run wants pushed stands in the repository until it is, whichever process does it.

pushes/<32 hex digits>    {"remote": name or URL, "branch": ..., "prune": ...}, sealed
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from coral import _json
from coral.errors import CoralError, CorruptObject
from coral.filesystem import FileSystem
from coral.remotes._opening import check_url
from coral.remotes._records import check_remote, is_url
from coral.store import check_ref_name
from coral.store._files import LIMIT, make_folder, put_if_absent, seal, unseal

__all__ = ["DuePush", "add_due", "dues", "remove_due"]

_FOLDER = "pushes"


@dataclass(frozen=True, slots=True)
class DuePush:
    """A branch that is to be pushed to a remote (a name, or a URL), and whether what is pruned here goes there, too."""

    remote: str
    branch: str
    prune: bool = False

    @classmethod
    def checked(cls, remote: str | os.PathLike[str], branch: str, *, prune: bool = False) -> DuePush:
        """One whose remote may be stored: UnsafeInput, ConfigError for a URL that may not."""
        known = check_url(remote) if is_url(remote) else check_remote(remote)
        return cls(known, check_ref_name(branch), prune)

    @property
    def path(self) -> str:
        """Where it is stored: the same for the same."""
        text = f"{self.remote}\n{self.branch}\n{self.prune}"
        return f"{_FOLDER}/{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def add_due(fs: FileSystem, push: DuePush) -> None:
    """Have a push due, durably."""
    make_folder(fs, _FOLDER, durable=True)
    put_if_absent(fs, push.path, seal(_json.dumps(asdict(push))), durable=True)


def remove_due(fs: FileSystem, push: DuePush) -> None:
    """Have a push due no more."""
    with suppress(FileNotFoundError):
        fs.unlink(push.path)


def dues(fs: FileSystem) -> list[DuePush]:
    """The pushes that are due; what cannot be read is left out."""
    found = []
    for name in sorted(fs.list(_FOLDER)):
        with suppress(CoralError, FileNotFoundError):
            found.append(_read(fs, f"{_FOLDER}/{name}"))
    return found


def _read(fs: FileSystem, path: str) -> DuePush:
    match _json.loads(unseal(fs.read(path, LIMIT), path), path):
        case {"remote": str(remote), "branch": str(branch), "prune": bool(prune)}:
            return DuePush.checked(remote, branch, prune=prune)
        case _:
            raise CorruptObject(f"{path} is no push that is due", path=path)
