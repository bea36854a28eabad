"""From a URL to a remote: which kinds there are, and what no URL may hold."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import SplitResult, unquote, urlsplit

from coral.errors import ConfigError, UnsafeInput
from coral.remotes._directory import DirectoryRemote
from coral.remotes._remote import Remote

__all__ = ["check_url", "open_remote", "schemes"]

GROUP = "coral.remotes"
_OBJECT_STORES = ("s3", "gs", "az", "memory")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,19}):/")
_PATHS = ("/", "./", "../", "~")
_LONGEST = 2048


def check_url(url: str | os.PathLike[str]) -> str:
    """A URL, or a folder's absolute path, as it may be stored; UnsafeInput for one with credentials, which stay unsaid.

    ConfigError for an unknown scheme, and for one with a single slash, which would be a folder's path.
    """
    text = os.fspath(url)
    if not isinstance(text, str) or not text or len(text) > _LONGEST or not text.isprintable():
        raise UnsafeInput("the URL of a remote is a str of printable characters, and not a long one")
    scheme = _scheme(text)
    if scheme is None:
        if "::" in text:
            raise UnsafeInput("chained URLs (with '::') are refused: name the one place that the remote is at")
        if not text.startswith(_PATHS) and not os.path.isabs(text):  # C:/ is absolute where there are drives
            _check_no_url(text)
        return os.path.abspath(os.path.expanduser(text))
    parts = _split(text, scheme)
    if "@" in parts.netloc or parts.query or parts.fragment or "::" in text:
        raise UnsafeInput(
            f"the URL of a remote holds no credentials, no '?', no '#' and no '::', and this {scheme}:// URL does: "
            "take them out; credentials come from the environment, or from the files that the store's own tools use"
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError("a file:// URL has an absolute path and no host: file:///mnt/backup/weights")
        if "\0" in unquote(parts.path):
            raise UnsafeInput("a file:// URL holds a NUL (%00), which no path can: take it out")
        return text
    if scheme not in schemes():
        raise ConfigError(
            f"{scheme}:// is not a kind of remote that is known here. There are: a folder, "
            f"{', '.join(f'{each}://' for each in schemes())}. Others come with packages of their own."
        )
    if not parts.netloc:
        raise ConfigError(f"a {scheme}:// URL names a bucket, or the like, and a folder: {scheme}://bucket/weights")
    return text.rstrip("/")


def _check_no_url(text: str) -> None:
    """That what begins with no scheme is a folder's path, and no URL that was written wrongly."""
    if "://" in text or "@" in text.partition(":")[2]:
        raise UnsafeInput(
            "what begins with no scheme is a folder, and this has '://' in it, or what looks like user:secret@host: "
            "take out credentials, and what stands before the scheme, as a blank or a quote. For a folder of that name "
            "write ./ before it"
        )
    if match := _ONE_SLASH.match(text):
        raise ConfigError(
            f"{match[1]}:/ with one slash begins no URL: write {match[1].lower()}://. For a folder of that name write "
            f"./{match[1]}:/"
        )


def _split(text: str, scheme: str) -> SplitResult:
    with suppress(ValueError):  # it would repeat a part of the URL
        return urlsplit(text)
    raise UnsafeInput(f"this {scheme}:// URL cannot be taken apart: correct what stands between '//' and the next '/'")


def open_remote(url: str | os.PathLike[str], *, single_writer: bool = False) -> Remote:
    """The remote at a URL; nothing is asked of it yet.

    `single_writer` is for object stores without a conditional put: the caller promises that nobody else writes. Raises
    UnsafeInput, ConfigError, MissingExtra.
    """
    text = check_url(url)
    scheme = _scheme(text)
    if scheme in _OBJECT_STORES:
        from coral.remotes._fsspec import ObjectStore  # the extra [remote]

        return ObjectStore(text, single_writer=single_writer)
    if single_writer:
        raise ConfigError(f"single_writer is for {', '.join(f'{each}://' for each in _OBJECT_STORES)}, not for {text}")
    if scheme is None or scheme == "file":
        return DirectoryRemote(text if scheme is None else unquote(urlsplit(text).path))
    return _plugged(scheme)(text)


def schemes() -> list[str]:
    """The kinds of URL that are known, those of other packages (entry points `coral.remotes`) among them."""
    return ["file", *_OBJECT_STORES, *sorted(_entry_points())]


def _scheme(text: str) -> str | None:
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def _entry_points() -> dict[str, Callable[[], Callable[[str], Remote]]]:
    from importlib.metadata import entry_points  # only who opens a remote waits for it

    return {entry.name: entry.load for entry in entry_points(group=GROUP) if entry.name not in _OBJECT_STORES}


def _plugged(scheme: str) -> Callable[[str], Remote]:
    return _entry_points()[scheme]()
