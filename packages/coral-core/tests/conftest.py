"""What the tests of coral-core share. Test files do not import each other: helpers come as fixtures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral._json import loads
from coral.filesystem import FileSystem, LocalFileSystem
from coral.store._format import open_or_create

MAKING = frozenset({"create", "mkdir", "write", "link", "replace"})
"""The operations that take space, or that a read-only filesystem refuses."""


class Around:
    """A FileSystem that tells `before(kind, path)` of each operation, those of files being written too."""

    def __init__(self, inner: FileSystem, before: Callable[[str, str], None]) -> None:
        self._inner = inner
        self._before = before
        self.root = inner.root

    def __getattr__(self, kind: str) -> Any:
        do = getattr(self._inner, kind)

        def told(*args: Any) -> Any:
            self._before(kind, str(args[-1]) if kind in ("link", "replace") else str(args[0]) if args else "")
            found = do(*args)
            return _AroundFile(found, args[0], self._before) if kind == "create" else found

        return told


class _AroundFile:
    def __init__(self, inner: Any, path: str, before: Callable[[str, str], None]) -> None:
        self._inner, self._path, self._before = inner, path, before

    def write(self, buffers: Sequence[Any]) -> None:
        self._before("write", self._path)
        self._inner.write(buffers)

    def fsync(self) -> None:
        self._before("fsync", self._path)
        self._inner.fsync()

    def close(self) -> None:
        self._inner.close()


class Failing:
    """Raises OSError(code) at the `at`th operation of `kinds`, and at all later ones unless `once`."""

    def __init__(self, code: int, *, at: int = 0, kinds: frozenset[str] = MAKING, once: bool = False) -> None:
        self.code, self.at, self.kinds, self.once = code, at, kinds, once
        self.count = 0

    def __call__(self, kind: str, path: str) -> None:
        if kind in self.kinds:
            number, self.count = self.count, self.count + 1
            if number == self.at or (number > self.at and not self.once):
                raise OSError(self.code, os.strerror(self.code), path)


@pytest.fixture(scope="session")
def around() -> type[Around]:
    return Around


@pytest.fixture(scope="session")
def failing() -> type[Failing]:
    return Failing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `repo` lies."""
    return tmp_path / "repo"


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository to copy: making one waits for the disk."""
    found = tmp_path_factory.mktemp("empty") / "repo"
    open_or_create(LocalFileSystem(found), init=True)
    return found


@pytest.fixture
def fs(folder: Path, empty: Path) -> LocalFileSystem:
    """The filesystem of an empty repository."""
    shutil.copytree(empty, folder)
    return LocalFileSystem(folder)


@pytest.fixture
def repo(fs: LocalFileSystem) -> Repository:
    """An empty repository that does not wait for the disk."""
    return Repository(fs.root, durability="fast")


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, np.ndarray]]:
    """Makes a few tensors that differ by `seed`; `big` is more than a block, so that it is mapped."""

    def make(seed: int = 0, *, big: bool = False) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        found = {
            "layer.weight": rng.standard_normal((5, 7)).astype(np.float32),
            "layer.bias": rng.standard_normal(5),
            "steps": np.array(seed, np.int64),
        }
        if big:
            found["big"] = rng.standard_normal(300_001).astype(np.float32)
        return found

    return make


@pytest.fixture(scope="session")
def assert_bits() -> Callable[[Any, Any], None]:
    """Asserts that two arrays, or mappings of them, are the same in type, shape and every bit."""

    def check(found: Any, expected: Any) -> None:
        if isinstance(expected, Mapping):
            assert sorted(found) == sorted(expected)
            for name in expected:
                check(found[name], expected[name])
            return
        found, expected = (getattr(x, "data", x) if not isinstance(x, np.ndarray) else x for x in (found, expected))
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()

    return check


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with what is in it."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return read


@pytest.fixture
def unchanged(folder: Path, files_of: Callable[[Path], dict[str, bytes]]) -> Iterator[Callable[[], None]]:
    """A check that nothing changed in `folder` since it was last called; it runs once more when the test ends."""
    known: list[dict[str, bytes]] = []

    def check() -> None:
        found = files_of(folder)
        if known:
            assert found == known[0]
            assert Repository(folder).fsck().ok
        known[:] = [found]

    yield check
    check()


@pytest.fixture(scope="session")
def flip() -> Callable[..., None]:
    """Flips one bit of a file."""

    def do(path: Path, at: int, bit: int = 0) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << bit
        path.write_bytes(data)

    return do


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts another Python process on a piece of code."""

    def run(code: str, *args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, env=_environment(), text=True, **pipes)

    return run


@pytest.fixture(scope="session")
def python(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Any]:
    """Runs a piece of code in another process; returns what it printed, as JSON."""

    def run(code: str, *args: object) -> Any:
        process = start(code, *args)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return loads(out.encode(), "output") if out.strip() else None

    return run
