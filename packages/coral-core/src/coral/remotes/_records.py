"""The remotes that a repository knows by name, and what it remembers of them.

    remotes/<name>/remote        {"name": ..., "url": ..., "single_writer": ...}, sealed: no credentials
    remotes/<name>/packs/<id>    the end of a pack that is there: its directory and its trailer
    remotes/<name>/pushed        what the last push left there
    remotes/<name>/refused       a copy of `remote`, made when the store had refused to have a name taken twice

All but the first is derived, and may go at any time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from coral import _json
from coral.errors import CoralError, CorruptObject, RefExists, UnknownRemote, UnsafeInput
from coral.filesystem import FileSystem
from coral.remotes._opening import check_url
from coral.store import _refs, check_ref_name
from coral.store._files import LIMIT, make_folder, put_if_absent, seal, temporary, unseal
from coral.store._pack import LARGEST_DIRECTORY

__all__ = ["Memory", "RemoteRecord", "add_record", "read_record", "records", "remove_record"]


@dataclass(frozen=True, slots=True)
class RemoteRecord:
    """A remote: its name, where it is, and whether nobody else writes to it (for stores without a conditional put)."""

    name: str
    url: str
    single_writer: bool = False


def check_remote(name: object) -> str:
    """Return `name` if it may name a remote: a ref's name in one part."""
    checked = check_ref_name(name, "remote")
    if "/" in checked:
        raise UnsafeInput(f"{checked!r} cannot name a remote: it has no '/', which stands between remote and branch")
    return checked


def _folder(name: str) -> str:
    return f"remotes/{_refs.folder_of('remotes', name).rpartition('/')[2]}"


def add_record(fs: FileSystem, record: RemoteRecord) -> RemoteRecord:
    """Store a remote durably; RefExists where one of the name is at another place."""
    folder = _folder(check_remote(record.name))
    record = RemoteRecord(record.name, check_url(record.url), record.single_writer)
    make_folder(fs, "remotes", durable=True)
    make_folder(fs, folder, durable=True)
    fields = {"name": record.name, "url": record.url, "single_writer": record.single_writer}
    if not put_if_absent(fs, f"{folder}/remote", seal(_json.dumps(fields)), durable=True):
        there = read_record(fs, record.name)
        if there != record:
            raise RefExists(
                f"there is a remote {record.name!r} already, at {there.url}: remove it first, or take another name",
                ref=record.name,
            )
    return record


def read_record(fs: FileSystem, name: str) -> RemoteRecord:
    """The remote of a name; UnknownRemote names those that there are."""
    try:
        return _read(fs, check_remote(name))
    except FileNotFoundError:
        known = ", ".join(each.name for each in records(fs)) or "none"
        raise UnknownRemote(
            f"no remote {name!r}; there are: {known}. Add it with add_remote({name!r}, url).", remote=name
        ) from None


def _read(fs: FileSystem, name: str) -> RemoteRecord:
    path = f"{_folder(name)}/remote"
    found = _json.loads(unseal(fs.read(path, LIMIT), path), path)
    match found:
        case {"name": str(its), "url": str(url), "single_writer": bool(single)} if its == name:
            return RemoteRecord(name, check_url(url), single)
        case _:
            raise CorruptObject(f"{path} is not the record of the remote {name}", path=path)


def records(fs: FileSystem) -> list[RemoteRecord]:
    """All remotes that can be read, by name."""
    found = []
    for name in _refs.components(fs.list("remotes")):
        with suppress(CoralError, FileNotFoundError):
            found.append(_read(fs, name))
    return sorted(found, key=lambda record: record.name)


def remove_record(fs: FileSystem, name: str) -> None:
    """Forget a remote, durably, with all that is remembered of it."""
    read_record(fs, name)
    folder = _folder(name)
    fs.unlink(f"{folder}/remote")
    fs.fsync_dir(folder)
    with suppress(OSError):  # only derived
        for pack in fs.list(f"{folder}/packs"):
            fs.unlink(f"{folder}/packs/{pack}")
        fs.rmdir(f"{folder}/packs")
    for derived in ("pushed", "refused"):
        with suppress(OSError):
            fs.unlink(f"{folder}/{derived}")


class Memory:
    """What is remembered of a remote from one time to the next. It is only derived, and none of it is relied upon."""

    def __init__(self, fs: FileSystem, name: str | None) -> None:
        """That of the remote of a name; of one without, nothing is remembered."""
        self._fs = fs
        self._folder = None if name is None else _folder(name)

    def pack(self, name: str) -> bytes | None:
        """The end of a pack of the remote."""
        return self._read(f"packs/{name}", LARGEST_DIRECTORY)

    def remember_pack(self, name: str, data: bytes) -> None:
        """Remember the end of a pack."""
        self._write(f"packs/{name}", data)

    def forget_packs(self, there: set[str]) -> None:
        """Forget packs that are not there any more."""
        if self._folder is not None:
            for name in set(self._fs.list(f"{self._folder}/packs")) - there:
                with suppress(OSError):
                    self._fs.unlink(f"{self._folder}/packs/{name}")

    def pushed(self) -> dict[str, Any]:
        """What the last push said, or nothing."""
        data = self._read("pushed", LIMIT)
        with suppress(CorruptObject):
            found = _json.loads(unseal(data or b"", "pushed"), "pushed")
            if isinstance(found, dict):
                return found
        return {}

    def remember_pushed(self, fields: dict[str, Any]) -> None:
        """Remember what a push has found, or left."""
        self._write("pushed", seal(_json.dumps(fields)))

    def refused(self) -> bool:
        """Whether the store of this remote, as it is recorded now, has refused to have a name taken twice."""
        record = self._read("remote", LIMIT)
        return record is not None and record == self._read("refused", LIMIT)

    def remember_refused(self) -> None:
        """Remember that it has."""
        record = self._read("remote", LIMIT)
        if record is not None:
            self._write("refused", record)

    def _read(self, path: str, limit: int) -> bytes | None:
        if self._folder is None:
            return None
        with suppress(OSError, CoralError):
            return self._fs.read(f"{self._folder}/{path}", limit)
        return None

    def _write(self, path: str, data: bytes) -> None:
        if self._folder is None:
            return
        with suppress(OSError):
            self._fs.mkdir(f"{self._folder}/packs")
            with temporary(self._fs) as (source, file):
                file.write([data])
                file.close()
                self._fs.replace(source, f"{self._folder}/{path}")


def is_url(remote: str | os.PathLike[str]) -> bool:
    """Whether it says where a remote is, rather than how it is called: a URL, or a path with a separator in it.

    So does what looks like user:secret@host, which is refused there without its being repeated.
    """
    text = os.fspath(remote)
    return (
        not isinstance(remote, str) or text.startswith(("~", ".")) or any(part in text for part in ("/", os.sep, "@"))
    )
