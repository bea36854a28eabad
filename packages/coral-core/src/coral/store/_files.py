"""Small files: written whole and durable, put only where nothing is, read back only if they are what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from coral.errors import CorruptObject
from coral.filesystem import FileSystem, Origin, WriteFile

LIMIT = (16 << 20) + 66  # what a sealed file of the largest JSON has
_LARGEST = 1 << 30


def nonce() -> str:
    """A name that nobody else has."""
    return os.urandom(16).hex()


def tag_of(origin: Origin) -> str:
    """Which process a file in tmp/ is of: 8 hex digits for the host, 8 for its boot, and the process id."""
    host, boot = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (origin.host, origin.boot))
    return f"{host}-{boot}-{origin.pid}"


@contextmanager
def temporary(fs: FileSystem) -> Iterator[tuple[str, WriteFile]]:
    """A new file in tmp/, as (path, file): closed at the end, and removed unless it was renamed away."""
    path = f"tmp/{nonce()}-{tag_of(fs.origin())}"
    file = fs.create(path)
    try:
        yield path, file
    finally:
        file.close()
        with suppress(OSError):
            fs.unlink(path)


def filesystem_time(fs: FileSystem) -> float:
    """Seconds since the epoch by the clock that stamps files, which ages go by: a machine's own may be years off."""
    try:
        with temporary(fs) as (path, _):
            return fs.stat(path).mtime
    except OSError:  # nothing can be written: then nothing is removed for its age either
        return fs.now()


def put_if_absent(fs: FileSystem, path: str, data: bytes, *, durable: bool) -> bool:
    """Make `path` hold `data` unless it exists; True if this call made it.

    The data is durable before the name appears, and the name before this returns. A link whose reply was lost on the
    way (NFS) is recognised by the data: callers put a nonce into it.
    """
    with temporary(fs) as (source, file):
        file.write([data])
        if durable:
            file.fsync()
        try:
            fs.link(source, path)
        except FileExistsError:
            try:
                if fs.read(path, _LARGEST) != data:
                    return False
            except FileNotFoundError:  # taken, and folded since
                return False
        if durable:
            fs.fsync_dir(path.rpartition("/")[0])
        return True


def make_folder(fs: FileSystem, path: str, *, durable: bool) -> None:
    """Make one folder if it is not there, durably where asked: whoever made it may have died before syncing it."""
    fs.mkdir(path)
    if durable:
        fs.fsync_dir(path.rpartition("/")[0])


def seal(data: bytes) -> bytes:
    """A small file's content: the data and a line with its SHA-256."""
    return data + b"\n" + hashlib.sha256(data).hexdigest().encode("ascii") + b"\n"


def unseal(content: bytes, path: str) -> bytes:
    """The data of a sealed file; CorruptObject if it is torn or was changed."""
    data, seal_line = content[:-66], content[-66:]
    if seal_line != b"\n" + hashlib.sha256(data).hexdigest().encode("ascii") + b"\n":
        raise CorruptObject(f"{path} is torn or was changed: its checksum does not fit", path=path)
    return data
