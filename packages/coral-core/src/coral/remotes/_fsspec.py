"""Object stores by way of fsspec: `s3://`, `gs://`, `az://`, and `memory://` for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from coral.errors import MissingExtra
from coral.remotes._errors import denied, kinds, no_bucket, no_condition, remote_errors
from coral.remotes._remote import Remote, RemoteFile, check_remote_name

__all__ = ["ObjectStore"]

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
_RETRY = {"gs", "az"}  # whose clients ask again by themselves, for half a minute and more
_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "created")
_PART = 16 << 20  # bytes that are uploaded at once, where a file is uploaded in parts
_BOUNDARY = b"--==0=="
"""Ends the file in the multipart body that gcsfs sends, with a \\n before it, which takes a \\r for its own."""
_in_memory = threading.Lock()
"""memory:// looks and then writes: within this process, which is all that sees it, this makes one act of it."""


class ObjectStore(Remote):
    """A folder of a bucket.

    A name is taken by one conditional request (S3: If-None-Match), which the store answers for. Where it knows no such
    thing `single_writer` looks first and then writes: that is safe as long as nobody else writes.
    """

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        self.url = url
        scheme, _, path = url.partition("://")
        self._scheme = scheme.lower()
        self._base = path.rstrip("/")
        self._fs = _filesystem(self._scheme, url)
        self._single_writer = single_writer
        self._lock = _in_memory if self._scheme == "memory" else None
        self.retries = self._scheme in _RETRY

    def put(self, name: str, data: memoryview) -> bool:
        path = self._at(name)
        with remote_errors(self.url, f"writing {name} to"):
            if self._lock is not None:
                with self._lock:
                    return self._look_and_write(path, data)
            if self._single_writer:
                return self._look_and_write(path, data)
            try:
                self._write(path, data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                names = kinds(error)
                if names & {"PreconditionFailed", "412", "FileExistsError"}:  # or clearing up after that failed
                    return False
                if names & {"NotImplemented", "501"}:
                    raise no_condition(self.url) from None
                raise
        return True

    def _look_and_write(self, path: str, data: memoryview) -> bool:
        if self._fs.exists(path):
            return False
        self._write(path, data)
        return True

    def _write(self, path: str, data: memoryview, **options: Any) -> None:
        body: bytes | _Sliced = bytes(data) if self._scheme != "s3" or len(data) < 2 * _PART else _Sliced(data)
        if self._scheme == "s3":
            options |= {"chunksize": _PART, "max_concurrency": 4}
        elif self._scheme == "gs" and isinstance(body, bytes) and (body[-1:] == b"\r" or _BOUNDARY in body):
            options |= {"chunksize": len(body)}  # from that size on it is no part of a multipart body
        try:
            self._fs.pipe_file(path, body, **options)
        except FileNotFoundError as error:  # what a new file can miss
            raise no_bucket(self.url, error) from None

    def read(self, name: str, offset: int, size: int) -> bytes:
        path = self._at(name)
        if not size:  # there is no such range: a server may answer with the whole file
            return b""
        with remote_errors(self.url, f"reading {name} of"):
            try:
                found = self._fs.cat_file(path, start=offset, end=offset + size)
            except Exception as error:
                if kinds(error) & {"InvalidRange", "416"}:  # it ends before
                    return b""
                raise
        return bytes(found)

    def list(self, prefix: str) -> Iterator[RemoteFile]:
        with remote_errors(self.url, "listing"):
            try:
                if prefix.endswith("/") or not prefix:
                    found = self._fs.find(self._at(prefix.rstrip("/")), detail=True)
                else:
                    found = {"": self._fs.info(self._at(prefix))}
            except FileNotFoundError:
                return
        for info in found.values():
            if info.get("type", "file") == "file":
                name = str(info["name"]).strip("/")[len(self._base.strip("/")) :].lstrip("/")
                yield RemoteFile(name, int(info["size"]), _seconds(info))

    def delete(self, name: str) -> None:
        with remote_errors(self.url, f"removing {name} from"):
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def copy(self, source: str, target: str) -> None:
        with remote_errors(self.url, f"copying {source} within"):
            self._fs.cp_file(self._at(source), self._at(target))  # on the server: nothing travels

    def _at(self, name: str) -> str:
        return f"{self._base}/{check_remote_name(name)}" if name else self._base


def _filesystem(scheme: str, url: str) -> Any:
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra(f"{scheme}:// remotes need fsspec: pip install 'coral-core[remote]'") from error
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":  # s3fs asks again by itself, and so does who calls this
        options |= {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}
    with remote_errors(url, "opening"):
        try:
            return fsspec.filesystem(scheme, **options)
        except ImportError as error:
            package = _PACKAGES.get(scheme, "fsspec")
            raise MissingExtra(f"{scheme}:// remotes need {package}: pip install {package}") from error
        except ValueError as error:  # adlfs, without credentials
            raise denied(url, error) from None


class _Sliced:
    """Bytes of which only parts are ever copied: what s3fs asks of what it uploads in parts."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._data[part])


def _seconds(info: dict[str, Any]) -> float:
    """When a file was put, as its listing has it; now where that is not said: then it is young, and left alone."""
    for name in _MODIFIED:
        match info.get(name):
            case datetime() as found:
                return found.timestamp()
            case int() | float() as found:
                return float(found)
            case str() as found:
                return datetime.fromisoformat(found).timestamp()
    return time.time()
