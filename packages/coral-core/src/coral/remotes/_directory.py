"""A remote in a folder: `file:///mnt/backup/weights`, or just the path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from coral._digest import Bytes
from coral.filesystem import LocalFileSystem
from coral.remotes._remote import Remote, RemoteFile, check_remote_name
from coral.store._files import temporary

__all__ = ["DirectoryRemote"]


class DirectoryRemote(Remote):
    """A folder on this machine, or mounted on it. It can be opened as a repository, too."""

    def __init__(self, path: str) -> None:
        self._fs = LocalFileSystem(path)
        self.url = self._fs.root
        self.shared = self._fs.shared()
        self._made: set[str] = set()

    def put(self, name: str, data: memoryview) -> bool:
        folder = check_remote_name(name).rpartition("/")[0]
        self._make("tmp")
        self._make(folder)
        with temporary(self._fs) as (source, file):
            file.write([np.frombuffer(data, np.uint8)])
            file.fsync()
            try:
                self._fs.link(source, name)
            except FileExistsError:
                return False
        self._fs.fsync_dir(folder)
        return True

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self.read_array(name, offset, size).tobytes()

    def read_array(self, name: str, offset: int, size: int) -> Bytes:
        file = self._fs.open(check_remote_name(name))
        try:
            buffer = np.empty(max(min(size, file.size - offset), 0), np.uint8)
            file.read_into(buffer, offset)
            return buffer
        finally:
            file.close()

    def list(self, prefix: str) -> Iterator[RemoteFile]:
        if prefix and not prefix.endswith("/"):
            with suppress(FileNotFoundError, NotADirectoryError):
                size, modified = self._fs.stat(check_remote_name(prefix))
                yield RemoteFile(prefix, size, modified)
            return
        folders = [prefix]
        while folders:
            at = folders.pop()
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(os.path.join(self._fs.root, at)) as found:
                for each in found:
                    if each.is_dir(follow_symlinks=False):
                        folders.append(f"{at}{each.name}/")
                    else:
                        with suppress(FileNotFoundError):  # removed since it was listed
                            stat = each.stat(follow_symlinks=False)
                            yield RemoteFile(at + each.name, stat.st_size, stat.st_mtime)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.unlink(check_remote_name(name))

    def copy(self, source: str, target: str) -> None:
        folder = check_remote_name(target).rpartition("/")[0]
        self._make(folder)
        with suppress(FileExistsError):
            self._fs.link(check_remote_name(source), target)
        self._fs.fsync_dir(folder)

    def _make(self, folder: str) -> None:
        """Make a folder and those above it, durably: whoever made them may have died before that."""
        if folder in self._made:
            return
        if not folder:
            self._fs.make_root()
        else:
            above = folder.rpartition("/")[0]
            self._make(above)
            self._fs.mkdir(folder)
            self._fs.fsync_dir(above)
        self._made.add(folder)
