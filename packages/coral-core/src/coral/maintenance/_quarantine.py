"""The quarantine: where a repair puts what is damaged. Nothing ever deletes what is in it.

    quarantine/<when>-<nonce>/<path>    a file that was at <path>, as it was found

Its packs are looked at again by each repair: one that was interrupted loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from coral.filesystem import FileSystem
from coral.store._files import make_folder, nonce, temporary

__all__ = ["Quarantine", "quarantined_packs"]

_ROOT = "quarantine"


class Quarantine:
    """The folder of one repair, made when it is first needed."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._folder = f"{_ROOT}/{int(fs.now())}-{nonce()[:8]}"
        self.paths: list[str] = []

    def keep(self, path: str) -> str:
        """Give a file a second name in here, durably: what has its name may be replaced then."""
        target = self._place(path)
        if target not in self.paths:
            self._fs.link(path, target)
            self._fs.fsync_dir(target.rpartition("/")[0])
            self.paths.append(target)
        return target

    def take(self, path: str) -> str:
        """Move a file, or whatever is in its place, in here; it has its new name before it loses the old one."""
        try:
            target = self.keep(path)
        except FileNotFoundError:
            raise
        except OSError:  # a folder, which has one name only
            target = self._place(path)
            self._fs.replace(path, target)
            self._fs.fsync_dir(target.rpartition("/")[0])
            self.paths.append(target)
        else:
            self._fs.unlink(path)
        self._fs.fsync_dir(path.rpartition("/")[0])
        return target

    def replace(self, path: str, content: bytes) -> None:
        """Put a file, durably, in the place of a damaged one, which is kept in here."""
        try:
            self.keep(path)
        except FileNotFoundError:
            pass
        except OSError:  # a folder
            self.take(path)
        with temporary(self._fs) as (source, file):
            file.write([content])
            file.fsync()
            file.close()
            self._fs.replace(source, path)
        self._fs.fsync_dir(path.rpartition("/")[0])

    def _place(self, path: str) -> str:
        target = f"{self._folder}/{path}"
        at = ""
        for part in target.split("/")[:-1]:
            at = f"{at}/{part}" if at else part
            make_folder(self._fs, at, durable=True)
        return target


def quarantined_packs(fs: FileSystem) -> Iterator[tuple[str, str]]:
    """The packs of all repairs, as (path, the name that it had)."""
    for run in sorted(fs.list(_ROOT), reverse=True):
        trash = (f"trash/{name}" for name in fs.list(f"{_ROOT}/{run}/trash"))
        for folder in ("packs", *trash):
            for file in sorted(fs.list(f"{_ROOT}/{run}/{folder}")):
                if file.endswith(".pack"):
                    yield f"{_ROOT}/{run}/{folder}/{file}", file.removesuffix(".pack")
