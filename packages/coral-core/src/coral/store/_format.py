"""Creating a repository, and recognising one."""

from __future__ import annotations

import errno
from contextlib import suppress

from coral import _json
from coral.errors import READ_ONLY, CorruptObject, NewerFormat, NotARepository, StorageError
from coral.filesystem import FileSystem
from coral.store._files import make_folder, put_if_absent, seal, unseal

FORMAT = 1
FOLDERS = ("tmp", "packs", "index", "notes", "intents", "trash", "refs", "refs/heads", "refs/tags", "refs/remotes")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


def open_or_create(fs: FileSystem, *, init: bool) -> None:
    """Make sure that there is a repository that this coral can use; create one if there is none and `init` says so."""
    try:
        check_format(fs)
        if init:
            _ensure_durable(fs)
    except (FileNotFoundError, NotADirectoryError):
        if not init:
            raise NotARepository(
                f"no coral repository at {fs.root}. Pass init=True to create one there.", path=fs.root
            ) from None
        _create(fs)
        check_format(fs)
    missing = set(FOLDERS) - set(fs.list("")) - {f"refs/{name}" for name in fs.list("refs")}
    for folder in sorted(missing):  # empty folders get lost when a repository is copied by some tools
        with suppress(OSError):
            make_folder(fs, folder, durable=True)


def _ensure_durable(fs: FileSystem) -> None:
    """Whoever made the repository may have died before it was durable."""
    try:
        fs.fsync_dir("")
    except OSError as error:
        if error.errno not in READ_ONLY:  # what cannot be written to can still be read
            raise


def _create(fs: FileSystem) -> None:
    """Make the folders, then the file that says it is a repository: until that is there, creating can be repeated."""
    try:
        fs.make_root()
        for folder in FOLDERS:
            make_folder(fs, folder, durable=False)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotARepository(f"{fs.root} is not a folder, or a file is in the way: {error}", path=fs.root) from error
    fs.fsync_dir("refs")
    fs.fsync_dir("")
    try:
        put_if_absent(fs, "format", seal(_json.dumps({"format": FORMAT})), durable=True)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StorageError(
                f"{fs.root} is on a filesystem without hard links, on which two writers could overwrite each other. "
                "Put the repository on another one.",
                errno=error.errno,
                filename=fs.root,
            ) from error
        raise


def check_format(fs: FileSystem) -> None:
    """Raise NewerFormat or CorruptObject where the repository is not of a format that this coral knows."""
    content = fs.read("format", 4096)
    found = _json.loads(unseal(content, "format"), "format")
    version = found.get("format") if isinstance(found, dict) else None
    if type(version) is not int or version < 1:
        raise CorruptObject("the file `format` does not say which format the repository has", path="format")
    if version > FORMAT:
        raise NewerFormat(
            f"{fs.root} has format {str(version)[:20]}; this coral reads up to {FORMAT}. Upgrade coral-core.",
            path=fs.root,
        )
