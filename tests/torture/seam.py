"""A filesystem around another one that lets every operation pass through one function, where faults are put in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coral.filesystem import FileStat, FileSystem, Origin, ReadFile, WriteFile


@dataclass(frozen=True, slots=True)
class Call:
    """An operation about to be done: `do` does it; a write's `part` does half of it, an fsync's `lose` none."""

    kind: str
    path: str
    do: Callable[[], Any]
    part: Callable[[], None] | None = None
    lose: Callable[[], None] | None = None


Around = Callable[[Call], Any]


class Seam:
    """A FileSystem whose operations, those of its open files too, all go through `around`."""

    def __init__(self, inner: FileSystem, around: Around) -> None:
        self.root = inner.root
        self._inner = inner
        self._around = around

    def _pass(self, kind: str, path: str, *args: Any) -> Any:
        return self._around(Call(kind, path, lambda: getattr(self._inner, kind)(path, *args)))

    def create(self, path: str) -> WriteFile:
        return _Write(self._pass("create", path), path, self._around)

    def open(self, path: str) -> ReadFile:
        return _Read(self._pass("open", path), path, self._around)

    def read(self, path: str, limit: int) -> bytes:
        return bytes(self._pass("read", path, limit))

    def stat(self, path: str) -> FileStat:
        return FileStat(*self._pass("stat", path))

    def list(self, path: str) -> list[str]:
        return list(self._pass("list", path))

    def mkdir(self, path: str) -> bool:
        return bool(self._pass("mkdir", path))

    def link(self, source: str, target: str) -> None:
        self._pass("link", source, target)

    def replace(self, source: str, target: str) -> None:
        self._pass("replace", source, target)

    def unlink(self, path: str) -> None:
        self._pass("unlink", path)

    def rmdir(self, path: str) -> None:
        self._pass("rmdir", path)

    def fsync_file(self, path: str) -> None:
        lose = getattr(self._inner, "fail_fsync", lambda _: None)
        self._around(Call("fsync_file", path, lambda: self._inner.fsync_file(path), lose=lambda: lose(path)))

    def fsync_dir(self, path: str) -> None:
        self._pass("fsync_dir", path)

    def make_root(self) -> None:
        self._around(Call("make_root", "", self._inner.make_root))

    def usage(self) -> int:
        return self._inner.usage()

    def free(self) -> int | None:
        return self._inner.free()

    def shared(self) -> bool:
        return self._inner.shared()

    def now(self) -> float:
        return self._inner.now()

    def origin(self) -> Origin:
        return self._inner.origin()

    def alive(self, origin: Origin) -> bool:
        return self._inner.alive(origin)


class _Write:
    def __init__(self, inner: WriteFile, path: str, around: Around) -> None:
        self._inner = inner
        self._path = path
        self._around = around
        self._closed = False

    def write(self, buffers: Sequence[Any]) -> None:
        data = b"".join(memoryview(b).cast("B") for b in buffers if len(b))
        do, half = (lambda: self._inner.write(buffers)), (lambda: self._inner.write([data[: len(data) // 2]]))
        self._around(Call("write", self._path, do, part=half))

    def fsync(self) -> None:
        lose = getattr(self._inner, "fail_fsync", lambda: None)
        self._around(Call("fsync", self._path, self._inner.fsync, lose=lose))

    def close(self) -> None:
        if self._closed:
            return self._inner.close()
        self._closed = True
        return self._around(Call("close", self._path, self._inner.close))  # type: ignore[no-any-return]


class _Read:
    def __init__(self, inner: ReadFile, path: str, around: Around) -> None:
        self.size = inner.size
        self._inner = inner
        self._path = path
        self._around = around

    def read_into(self, buffer: Any, offset: int) -> None:
        self._around(Call("read_into", self._path, lambda: self._inner.read_into(buffer, offset)))

    def region(self, offset: int, size: int) -> Any:
        return self._around(Call("region", self._path, lambda: self._inner.region(offset, size)))

    def view(self, offset: int, size: int) -> Any:
        return self._around(Call("view", self._path, lambda: self._inner.view(offset, size)))

    def close(self) -> None:
        self._inner.close()
