"""RemoteTests: what every kind of remote has to pass."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import UnsafeInput
from coral.remotes import Remote

_PACK = "packs/" + "ab" * 32 + ".pack"


class RemoteTests:
    """Proves a kind of remote: subclass it, and say how one is made.

        class TestMyRemote(RemoteTests):
            def make(self, folder: Path) -> str: ...

    `make` makes an empty place and returns the URL that leads to it; `folder` is there to be used. What `open` opens is
    another client of the same place each time.
    """

    def make(self, folder: Path) -> str:
        """Make an empty place; its URL."""
        raise NotImplementedError("say where a new remote is: see docs/remotes.md")

    def open(self, url: str) -> Remote:
        """Open the remote at a URL that `make` returned."""
        from coral.remotes import open_remote

        return open_remote(url)

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """An empty place."""
        return self.make(tmp_path)

    @pytest.fixture
    def remote(self, url: str) -> Remote:
        """A remote without a file."""
        return self.open(url)

    def test_what_is_put_can_be_read(self, remote: Remote) -> None:
        data = np.random.default_rng(0).bytes(3_000_000)
        assert remote.put(_PACK, memoryview(data)) is True
        remote.flush()
        assert remote.read(_PACK, 0, len(data)) == data
        assert remote.read(_PACK, 1_000_000, 70_000) == data[1_000_000:1_070_000]
        assert remote.get(_PACK, len(data)) == data

    def test_a_range_that_goes_beyond_the_end_has_what_there_is(self, remote: Remote) -> None:
        remote.put("format", memoryview(b"0123456789"))
        assert remote.read("format", 7, 100) == b"789"
        assert remote.read("format", 10, 100) == b""

    def test_a_range_without_a_byte_has_none(self, remote: Remote) -> None:
        """There is no such range in HTTP: a server that is asked for one may answer with the whole file."""
        remote.put("format", memoryview(b"0123456789"))
        for offset in (0, 5, 10):
            assert remote.read("format", offset, 0) == b""
            assert remote.read_array("format", offset, 0).size == 0

    def test_what_is_there_is_not_put_again(self, remote: Remote) -> None:
        assert remote.put("format", memoryview(b"first")) is True
        assert remote.put("format", memoryview(b"second")) is False
        assert remote.put("format", memoryview(b"first")) is False
        assert remote.read("format", 0, 100) == b"first"

    def test_of_many_who_put_at_once_one_is_first(self, url: str) -> None:
        """The promise that all refs rest on; each of them is a client of its own."""
        count, rounds = 6, 8
        clients = [self.open(url) for _ in range(count)]
        with ThreadPoolExecutor(count) as threads:
            for entry in range(1, rounds + 1):
                name, gate = f"refs/heads/main/{entry:010d}", threading.Barrier(count)

                def put(number: int, name: str = name, gate: threading.Barrier = gate) -> bool:
                    gate.wait()
                    return clients[number].put(name, memoryview(b"%d" % number))

                told = list(threads.map(put, range(count)))
                assert told.count(True) == 1, f"{told.count(True)} of {count} were told that they were first"
                assert clients[0].read(name, 0, 10) == b"%d" % told.index(True)

    def test_a_folder_lists_what_is_in_it_and_below(self, remote: Remote) -> None:
        names = ["refs/heads/main/0000000001", "refs/heads/exp%2Fa/0000000001", "refs/tags/a/0000000001", "format"]
        for size, name in enumerate(names, 1):
            remote.put(name, memoryview(b"x" * size))
        remote.flush()
        assert {file.name: file.size for file in remote.list("refs/heads/")} == {names[0]: 1, names[1]: 2}
        assert {file.name for file in remote.list("")} == set(names)
        assert [file.name for file in remote.list("format")] == ["format"]
        assert list(remote.list("refs/remotes/")) == list(remote.list("refs/heads/mai")) == []

    def test_what_is_deleted_is_gone(self, remote: Remote) -> None:
        remote.put("format", memoryview(b"x"))
        remote.delete("format")
        remote.delete("format")
        remote.flush()
        assert list(remote.list("format")) == []
        with pytest.raises(FileNotFoundError):
            remote.read("format", 0, 10)
        assert remote.put("format", memoryview(b"y")) is True

    def test_what_was_never_there_is_not_found(self, remote: Remote) -> None:
        with pytest.raises(FileNotFoundError):
            remote.read("refs/heads/main/0000000001", 0, 10)
        with pytest.raises(FileNotFoundError):
            remote.copy(_PACK, "trash/a/" + "ab" * 32 + ".pack")

    def test_a_copy_has_the_same_content(self, remote: Remote) -> None:
        remote.put(_PACK, memoryview(b"content"))
        remote.copy(_PACK, "trash/a/b.pack")
        remote.delete(_PACK)
        assert remote.read("trash/a/b.pack", 0, 100) == b"content"

    @pytest.mark.parametrize(
        "name", ["../x", "packs/../../x", "/etc/x", "packs//x", "a/./b", ".hidden/x", "a\\b", "a\0b"]
    )
    def test_a_name_that_leads_elsewhere_is_refused(self, remote: Remote, name: str) -> None:
        for ask in (
            lambda: remote.put(name, memoryview(b"x")),
            lambda: remote.read(name, 0, 1),
            lambda: remote.delete(name),
        ):
            with pytest.raises(UnsafeInput):
                ask()

    def test_a_repository_goes_there_and_comes_back(self, url: str, tmp_path: Path) -> None:
        repo = Repository(tmp_path / "ours", init=True, durability="fast")
        weights = np.random.default_rng(1).standard_normal((100, 100)).astype(np.float32)
        ids = [repo.commit({"w": weights + np.float32(step * 1e-6)}, f"step {step}") for step in range(3)]
        repo.annotate(ids[0], metrics={"loss": 0.5})
        repo.tag("paper", ids[1])
        repo.push(url)
        assert repo.push(url).bytes_sent == 0
        found = Repository.clone(url, tmp_path / "theirs", durability="fast")
        assert (found.branches(), found.tags()) == (repo.branches(), repo.tags())
        assert found.show(ids[0]).metrics == {"loss": 0.5}
        for id in ids:
            assert found.load(id)["w"].data.tobytes() == repo.load(id)["w"].data.tobytes()
        repo.prune(ids[0])
        repo.push(url, prune=True)
        assert Repository.clone(url, tmp_path / "again", durability="fast").fsck().ok
