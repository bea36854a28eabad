"""Bytes of files on the Hub: whole, or by ranges; counted, asked for again where they were cut off, and checked."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # it is public, and says so nowhere

from coral.errors import CorruptObject, printable
from coral.integrations.huggingface._errors import NETWORK, hub_errors
from coral.integrations.huggingface._models import HubFile

__all__ = ["NoRanges", "Transfer"]

_log = logging.getLogger("coral")

_PAUSES = (0.2, 1.0, 4.0)
"""Seconds before it is asked again where nothing came; half of each by chance."""
_AGAIN = {408, 429, 500, 502, 503, 504}
_LONGEST = 60  # seconds that a server may have us wait
_NEAR = 64 << 10  # bytes between two ranges that are fetched with them: a request costs more
_PIECE = 32 << 20  # bytes of one request
_THREADS = 4


class NoRanges(Exception):
    """The server was asked for a range of a file, and gave something else."""


class Transfer:
    """Fetches files of a repository at one commit. `fetched` is how many bytes of files have come so far."""

    def __init__(self, repo_id: str, revision: str, *, endpoint: str, headers: dict[str, str]) -> None:
        self._repo_id = repo_id
        self._revision = revision
        self._endpoint = endpoint
        self._headers = {**headers, "Accept-Encoding": "identity"}  # ranges are of the file, not of what is sent for it
        self._lock = threading.Lock()
        self.fetched = 0

    def whole(self, file: HubFile, target: Path) -> None:
        """Fetch a file, in pieces where the server gives ranges, and compare it with its hash.

        Raises CorruptObject, and leaves nothing, where it is not what the Hub says it is.
        """
        try:
            self.ranges(file, [(0, file.size)], target)
        except NoRanges:
            with hub_errors(f"downloading {file.path} of {self._repo_id}", self._repo_id):
                self._fetch(file, None, target)
        problem = _difference(file, target)
        if problem:
            target.unlink()
            raise CorruptObject(
                f"{file.path} of {self._repo_id} is not what the Hub says it is: {problem}. Nothing of it is kept: try "
                "again.",
                path=file.path,
            )

    def ranges(self, file: HubFile, spans: Iterable[tuple[int, int]], target: Path) -> None:
        """Fetch spans of a file (first byte, the one after the last) to where they belong in a file of its size.

        What they hold is for the caller to check. Raises NoRanges.
        """
        with target.open("wb") as out:
            out.truncate(file.size)  # what is not fetched takes no space
        doing = hub_errors(f"downloading {file.path} of {self._repo_id}", self._repo_id)
        with doing, ThreadPoolExecutor(_THREADS) as threads:
            waiting = [threads.submit(self._fetch, file, span, target) for span in _pieces(spans)]
            try:
                for done in waiting:
                    done.result()
            finally:
                for left in waiting:
                    left.cancel()

    def _fetch(self, file: HubFile, span: tuple[int, int] | None, target: Path) -> None:
        """Fetch one span, or the whole file, and ask for the rest again as long as something comes."""
        tries, at = 0, span[0] if span else 0
        while True:
            before = at
            try:
                with target.open("r+b", buffering=0) as out:
                    out.seek(at)
                    for chunk in self._chunks(file, (at, span[1]) if span else None):
                        out.write(chunk)
                        at += len(chunk)
                return
            except NETWORK as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code not in _AGAIN:
                    raise
                tries = 1 if span and at > before else tries + 1
                if tries > len(_PAUSES):
                    raise
                _log.info("%s of %s was cut off: asking again", printable(file.path, lines=False), self._repo_id)
                time.sleep(_pause(error, tries))
                at = at if span else 0

    def _chunks(self, file: HubFile, span: tuple[int, int] | None) -> Iterator[bytes]:
        """What one request brings, which is exactly what was asked for, or ends in an error."""
        url = hf_hub_url(self._repo_id, file.path, revision=self._revision, endpoint=self._endpoint)
        headers = {**self._headers, "Range": f"bytes={span[0]}-{span[1] - 1}"} if span else self._headers
        left = span[1] - span[0] if span else file.size
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            if span:
                said = response.headers.get("Content-Range", "")
                if response.status_code != 206 or said != f"bytes {span[0]}-{span[1] - 1}/{file.size}":
                    raise NoRanges(f"{response.status_code} {said[:80]!r}")
            for chunk in response.iter_raw():
                with self._lock:
                    self.fetched += len(chunk)
                if len(chunk) > left:
                    raise CorruptObject(f"{file.path} of {self._repo_id} is longer than the Hub says", path=file.path)
                left -= len(chunk)
                yield chunk
        if left:
            raise ConnectionError(f"{left} bytes of {file.path} did not come")


def _pieces(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What to ask for: spans that lie near one another at once, long ones in pieces."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and begin - joined[-1][1] <= _NEAR:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    for begin, end in joined:
        for at in range(begin, end, _PIECE):
            yield at, min(at + _PIECE, end)


def _pause(error: Exception, tries: int) -> float:
    """Seconds to wait: what the server asks for, if that is not too long."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    if asked.isdecimal() and int(asked) <= _LONGEST:
        return int(asked)
    return _PAUSES[tries - 1] * (0.5 + random.random() / 2)


def _difference(file: HubFile, path: Path) -> str:
    """How a file differs from what is known of it; nothing where it does not."""
    if path.stat().st_size != file.size:
        return f"it has {path.stat().st_size} bytes, not {file.size}"
    with path.open("rb") as data:
        if file.sha256 is not None:
            return "" if hashlib.file_digest(data, "sha256").hexdigest() == file.sha256 else "its SHA-256 differs"
        if file.blob_id is not None:
            # git's id of a blob is a SHA-1 of this head and the bytes
            digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            while chunk := data.read(1 << 20):
                digest.update(chunk)
            return "" if digest.hexdigest() == file.blob_id else "its git id differs"
    return "the Hub gives no hash to check it by"
