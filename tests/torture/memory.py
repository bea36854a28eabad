"""A filesystem in memory behind coral's seam, which writes down every change made to it.

Inodes hold data, folders map names to inodes, and `trace` lists the operations that a loss of power could undo:
`crash` makes from it every state that a disk could be left in.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from coral.errors import CorruptObject
from coral.filesystem import FileStat, Origin

ROOT = 0
PAGE = 4096


class Op(NamedTuple):
    """One step of a trace. `folder` and `name` say which entry is set, `source` which one a replace takes away.

    kinds: create mkdir link replace unlink (entries), write fsync fsync_failed (an inode), fsync_dir (a folder), and
    mark, which is no operation: `inode` many steps of the scenario have been acknowledged here.
    """

    kind: str
    inode: int = -1
    folder: int = -1
    name: str = ""
    data: bytes = b""
    source: tuple[int, str] = (-1, "")


class Tree(NamedTuple):
    """All that a filesystem holds: the entries of each folder and the bytes of each file, by inode; 0 is the root."""

    folders: dict[int, dict[str, int]]
    files: dict[int, bytes]


class _File:
    __slots__ = ("inode", "mtime", "parts")

    def __init__(self, inode: int, data: bytes, mtime: float) -> None:
        self.inode = inode
        self.parts = [data] if data else []
        self.mtime = mtime

    @property
    def data(self) -> bytes:
        if len(self.parts) > 1:
            self.parts = [b"".join(self.parts)]
        return self.parts[0] if self.parts else b""


class _Folder:
    __slots__ = ("entries", "inode", "mtime")

    def __init__(self, inode: int, mtime: float) -> None:
        self.inode = inode
        self.entries: dict[str, _File | _Folder] = {}
        self.mtime = mtime


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


class MemoryFileSystem:
    """Coral's FileSystem on nothing but memory. `clock` is what `now` tells.

    `boot` changes with each loss of power, `pid` with each process that dies.
    """

    def __init__(self, *, clock: float = 1_700_000_000.0, boot: str = "boot-1") -> None:
        self.root = "memory"
        self.clock = clock
        self.boot = boot
        self.pid = 1
        self.trace: list[Op] = []
        self._next = ROOT + 1
        self._root = _Folder(ROOT, clock)

    @classmethod
    def of(cls, tree: Tree, *, clock: float = 1_700_000_000.0, boot: str = "boot-1") -> Self:
        """A filesystem that holds what of a tree can be reached from its root; bytes are shared, never changed."""
        self = cls(clock=clock, boot=boot)
        self._next = max([*tree.folders, *tree.files]) + 1
        files: dict[int, _File] = {}
        todo = [self._root]
        while todo:
            folder = todo.pop()
            for name, inode in tree.folders[folder.inode].items():
                if inode in tree.folders:
                    below = _Folder(inode, clock)
                    folder.entries[name] = below
                    todo.append(below)
                    continue
                if inode not in files:
                    files[inode] = _File(inode, tree.files[inode], clock)
                folder.entries[name] = files[inode]
        return self

    def tree(self) -> Tree:
        """What is there now."""
        tree = Tree({}, {})
        todo = [self._root]
        while todo:
            folder = todo.pop()
            tree.folders[folder.inode] = {name: node.inode for name, node in folder.entries.items()}
            for node in folder.entries.values():
                if isinstance(node, _Folder):
                    todo.append(node)
                else:
                    tree.files[node.inode] = node.data
        return tree

    def copy(self) -> MemoryFileSystem:
        """Another filesystem that holds the same, with an empty trace."""
        other = MemoryFileSystem.of(self.tree(), clock=self.clock, boot=self.boot)
        other.pid = self.pid
        return other

    def fingerprint(self, *folders: str) -> int:
        """A number that is the same for filesystems that hold the same in some folders below the root."""
        found: list[object] = []
        todo = [(at, node) for at in folders if (node := self._root.entries.get(at))]
        while todo:
            at, node = todo.pop()
            if isinstance(node, _File):
                found.append((at, hash(node.data)))
            else:
                found.append(at)
                todo += [(f"{at}/{name}", child) for name, child in node.entries.items()]
        return hash(frozenset(found))

    def paths(self) -> list[str]:
        """The path of every file, sorted."""
        found, todo = [], [("", self._root)]
        while todo:
            at, folder = todo.pop()
            for name, node in folder.entries.items():
                path = f"{at}/{name}" if at else name
                if isinstance(node, _Folder):
                    todo.append((path, node))
                else:
                    found.append(path)
        return sorted(found)

    def data(self, path: str) -> bytes:
        """The bytes of a file."""
        return self._file(path).data

    def damage(self, path: str, data: bytes) -> None:
        """Put other bytes into a file behind everybody's back: no operation, not in the trace."""
        self._file(path).parts = [data]

    def mark(self, acknowledged: int) -> None:
        """Note in the trace how many steps of a scenario have been acknowledged by now."""
        self.trace.append(Op("mark", acknowledged))

    # ---- the seam

    def create(self, path: str) -> MemoryWriteFile:
        folder, name = self._place(path)
        if name in folder.entries:
            raise _error(errno.EEXIST, path)
        file = _File(self._next, b"", self.clock)
        self._next += 1
        folder.entries[name] = file
        self.trace.append(Op("create", file.inode, folder.inode, name))
        return MemoryWriteFile(self, file)

    def open(self, path: str) -> MemoryReadFile:
        return MemoryReadFile(self._file(path), path)

    def read(self, path: str, limit: int) -> bytes:
        data = self._file(path).data
        if len(data) > limit:
            raise CorruptObject(f"{path} has {len(data)} bytes, {limit} is the limit", path=path)
        return data

    def stat(self, path: str) -> FileStat:
        node = self._node(path)
        return FileStat(len(node.data) if isinstance(node, _File) else 0, node.mtime)

    def list(self, path: str) -> list[str]:
        try:
            return list(self._folder(path).entries)
        except FileNotFoundError:
            return []

    def mkdir(self, path: str) -> bool:
        if not path:
            return False
        parent, name = self._place(path)
        if name in parent.entries:
            if isinstance(parent.entries[name], _File):
                raise _error(errno.EEXIST, path)
            return False
        made = _Folder(self._next, self.clock)
        self._next += 1
        parent.entries[name] = made
        self.trace.append(Op("mkdir", made.inode, parent.inode, name))
        return True

    def link(self, source: str, target: str) -> None:
        file = self._file(source)
        folder, name = self._place(target)
        if name in folder.entries:
            raise _error(errno.EEXIST, target)
        folder.entries[name] = file
        self.trace.append(Op("link", file.inode, folder.inode, name))

    def replace(self, source: str, target: str) -> None:
        node = self._node(source)
        old, old_name = self._place(source)
        folder, name = self._place(target)
        there = folder.entries.get(name)
        if isinstance(there, _Folder) and (isinstance(node, _File) or there.entries):
            raise _error(errno.EISDIR if isinstance(node, _File) else errno.ENOTEMPTY, target)
        if isinstance(there, _File) and isinstance(node, _Folder):
            raise _error(errno.ENOTDIR, target)
        if there is node:
            return  # two names of one file: POSIX does nothing
        del old.entries[old_name]
        folder.entries[name] = node
        self.trace.append(Op("replace", node.inode, folder.inode, name, source=(old.inode, old_name)))

    def unlink(self, path: str) -> None:
        file = self._file(path)
        folder, name = self._place(path)
        del folder.entries[name]
        self.trace.append(Op("unlink", file.inode, folder.inode, name))

    def rmdir(self, path: str) -> None:
        if self._folder(path).entries:
            raise _error(errno.ENOTEMPTY, path)
        folder, name = self._place(path)
        del folder.entries[name]
        self.trace.append(Op("unlink", -1, folder.inode, name))

    def free(self) -> int | None:
        return None

    def shared(self) -> bool:
        return False

    def fsync_file(self, path: str) -> None:
        self.trace.append(Op("fsync", self._file(path).inode))

    def fail_fsync(self, path: str) -> None:
        """What a failed fsync leaves: the pages are marked clean though they never reached the disk."""
        self.trace.append(Op("fsync_failed", self._file(path).inode))

    def fsync_dir(self, path: str) -> None:
        self.trace.append(Op("fsync_dir", folder=self._folder(path).inode))

    def make_root(self) -> None:
        pass  # the root was always there

    def usage(self) -> int:
        return sum(len(data) for data in self.tree().files.values())

    def now(self) -> float:
        return self.clock

    def origin(self) -> Origin:
        return Origin("memory", self.boot, self.pid)

    def alive(self, origin: Origin) -> bool:
        return origin == self.origin()  # one machine, one process at a time

    # ---- paths

    def _node(self, path: str) -> _File | _Folder:
        node: _File | _Folder = self._root
        for name in path.split("/") if path else ():
            if not isinstance(node, _Folder):
                raise _error(errno.ENOTDIR, path)
            found = node.entries.get(name)
            if found is None:
                raise _error(errno.ENOENT, path)
            node = found
        return node

    def _file(self, path: str) -> _File:
        node = self._node(path)
        if isinstance(node, _Folder):
            raise _error(errno.EISDIR, path)
        return node

    def _folder(self, path: str) -> _Folder:
        node = self._node(path)
        if isinstance(node, _File):
            raise _error(errno.ENOTDIR, path)
        return node

    def _place(self, path: str) -> tuple[_Folder, str]:
        parent, _, name = path.rpartition("/")
        if not name or name in {".", ".."} or len(name.encode()) > 255:
            raise _error(errno.EINVAL, path)
        return self._folder(parent), name


class MemoryWriteFile:
    def __init__(self, fs: MemoryFileSystem, file: _File) -> None:
        self._fs = fs
        self._file = file
        self._open = True

    def write(self, buffers: Sequence[object]) -> None:
        self._check()
        data = b"".join(memoryview(b).cast("B") for b in buffers if len(b))  # type: ignore[arg-type]
        if data:
            self._file.parts.append(data)
            self._file.mtime = self._fs.clock
            self._fs.trace.append(Op("write", self._file.inode, data=data))

    def fsync(self) -> None:
        self._check()
        self._fs.trace.append(Op("fsync", self._file.inode))

    def fail_fsync(self) -> None:
        """As MemoryFileSystem.fail_fsync."""
        self._fs.trace.append(Op("fsync_failed", self._file.inode))

    def close(self) -> None:
        self._open = False

    def _check(self) -> None:
        if not self._open:
            raise _error(errno.EBADF, "")


class MemoryReadFile:
    def __init__(self, file: _File, path: str) -> None:
        self._file = file
        self._path = path
        self.size = len(file.data)

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        data = self._file.data[offset : offset + buffer.nbytes]
        if len(data) < buffer.nbytes:
            raise EOFError(f"{self._path} ends at byte {offset + len(data)}")
        if data:
            memoryview(buffer).cast("B")[:] = data

    def region(self, offset: int, size: int) -> np.ndarray | None:
        if offset % PAGE or offset + size > self.size or not size:
            return None
        return np.frombuffer(bytearray(self._file.data[offset : offset + size]), np.uint8)

    def view(self, offset: int, size: int) -> np.ndarray | None:
        if offset % PAGE or offset + size > self.size or not size:
            return None
        return np.frombuffer(self._file.data, np.uint8, size, offset)

    def close(self) -> None:
        pass
