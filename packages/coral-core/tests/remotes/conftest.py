"""A remote in memory, and what can go wrong with each of its requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import RemoteDenied, RemoteUnreachable
from coral.remotes import Remote, RemoteFile, _opening, _patient
from coral.remotes._filesystem import RemoteFileSystem

Arrays = dict[str, np.ndarray]


class MemoryRemote(Remote):
    """Files in a dict. `fault(number, kind)` is asked before each request what is to go wrong with it, if anything."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.url = "test://memory"
        self.files = dict(files or {})
        self.requests: list[tuple[str, str]] = []
        self.received = 0  # bytes of files that came here
        self.sent = 0
        self.fault: Callable[[int, str], str | None] = lambda number, kind: None
        self._late: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def put(self, name: str, data: memoryview) -> bool:
        content = bytes(data)

        def do() -> bool:
            self.received += len(content)
            if name in self.files:
                return False
            self.files[name] = content
            return True

        return self._request("put", name, do)

    def read(self, name: str, offset: int, size: int) -> bytes:
        def do() -> bytes:
            if name not in self.files:
                raise FileNotFoundError(name)
            found = self.files[name][offset : offset + size]
            self.sent += len(found)
            return found

        return self._request("read", name, do)

    def list(self, prefix: str) -> Iterable[RemoteFile]:
        def do() -> list[RemoteFile]:
            whole = not prefix or prefix.endswith("/")
            return [
                RemoteFile(name, len(data), 0.0)
                for name, data in sorted(self.files.items())
                if (name.startswith(prefix) if whole else name == prefix)
            ]

        return self._request("list", prefix, do)

    def delete(self, name: str) -> None:
        self._request("delete", name, lambda: self.files.pop(name, None))

    def _request(self, kind: str, name: str, do: Callable[[], object]):
        with self._lock:
            number = len(self.requests)
            self.requests.append((kind, name))
            for late in self._late:
                late()
            self._late = []
            match self.fault(number, kind):
                case "error":
                    raise RemoteUnreachable("500, says the test", remote=self.url)
                case "denied":
                    raise RemoteDenied("403, says the test", remote=self.url)
                case "killed":
                    raise KeyboardInterrupt
                case "lost":
                    do()
                    raise RemoteUnreachable("no answer came, says the test", remote=self.url)
                case "late":
                    self._late.append(do)
                    raise RemoteUnreachable("it took too long, says the test", remote=self.url)
                case "twice":
                    do()
                    return do()
                case "truncated" if kind == "read":
                    found = do()
                    return found[: len(found) // 2]
                case "wrong" if kind == "read":
                    found = bytearray(do())
                    if found:
                        found[len(found) // 2] ^= 4
                    return bytes(found)
                case _:
                    return do()


@pytest.fixture(scope="session")
def memory_remote() -> type[MemoryRemote]:
    return MemoryRemote


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> MemoryRemote:
    """What `test://memory` leads to; it is asked again without a pause."""
    found = MemoryRemote()
    monkeypatch.setattr(_opening, "_entry_points", lambda: {"test": lambda: lambda url: found})
    monkeypatch.setattr(_patient, "_PAUSES", (0.0, 0.0, 0.0))
    return found


@pytest.fixture
def there(remote: MemoryRemote) -> Callable[[], Repository]:
    """Opens what the remote in memory holds as a repository, without its faults."""

    def open_it() -> Repository:
        calm = MemoryRemote()
        calm.files = remote.files
        return Repository(RemoteFileSystem(calm))

    return open_it


@pytest.fixture(scope="session")
def trained() -> Callable[[int], Arrays]:
    """Weights after some updates: most of the bits stay, and one tensor stays as it is."""
    rng = np.random.default_rng(11)
    layer, frozen = rng.standard_normal((120, 100)).astype(np.float32), rng.standard_normal((30, 50))

    def make(step: int) -> Arrays:
        noise = np.random.default_rng(step).standard_normal(layer.shape).astype(np.float32)
        return {"layer": layer + noise * np.float32(1e-6 * step), "frozen": frozen, "step": np.array(step)}

    return make


@pytest.fixture
def commits(repo: Repository, trained: Callable[[int], Arrays]) -> Callable[..., list[str]]:
    """Commits the weights after some steps, with a state; returns the commits' ids."""

    def do(*steps: int, to: Repository | None = None, branch: str | None = None) -> list[str]:
        state = {"momentum": np.arange(2000.0)}
        return [
            (to or repo).commit(trained(step), f"step {step}", branch, state={**state, "step": step}) for step in steps
        ]

    return do


@pytest.fixture
def same(assert_bits: Callable[..., None]) -> Callable[..., None]:
    """Asserts that a repository is whole, and has the commits of another one that are not pruned, bit by bit."""

    def check(found: Repository, expected: Repository, *ids: str, notes: bool = True) -> None:
        assert found.fsck().problems == []
        for id in ids:
            assert_bits(dict(found.load(id)), dict(expected.load(id)))
            assert found.load_state(id)["step"] == expected.load_state(id)["step"]
            assert not notes or found.show(id).metrics == expected.show(id).metrics

    return check


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder for the other side."""
    return tmp_path / "other"
