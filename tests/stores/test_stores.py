"""gs:// and az:// through gcsfs and adlfs, against servers of Google Cloud Storage and of Azure Blob Storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests.remotes.breaking import breaking
from tests.remotes.broken import push_and_pull
from tests.remotes.servers import free_port
from tests.stores.conftest import SECRET, Store

from coral import Repository
from coral.errors import Diverged, NotARepository, RemoteDenied, RemoteNotFound, RemoteUnreachable
from coral.remotes import open_remote
from coral.testing import RemoteTests

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp, of both clients
BOTH = pytest.mark.parametrize("store", ["gs", "az"], indirect=True)


@BOTH
class TestStores(RemoteTests):
    @pytest.fixture
    def url(self, store: Store, tmp_path: Path) -> str:
        return store.url(tmp_path.name)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    found = Repository(tmp_path / "repo", init=True, durability="fast")
    found.commit({"w": np.arange(5000, dtype=np.float32)}, "first")
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the clients ask again without a pause."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _, *more: sleep(0, *more))


@BOTH
def test_a_file_in_many_parts_is_put_once(store: Store, tmp_path: Path) -> None:
    remote = open_remote(store.url(tmp_path.name))
    data = np.random.default_rng(0).bytes(60 << 20)
    assert remote.put("packs/x.pack", memoryview(data)) is True
    assert remote.put("packs/x.pack", memoryview(bytes(60 << 20))) is False
    assert remote.read("packs/x.pack", 0, len(data)) == data


@BOTH
@pytest.mark.parametrize("content", [b"x\r", b"\r", b"x\n--==0==\ny", b"x\r\n", b"\r\n" * 3])
def test_what_a_multipart_body_could_mistake_is_kept(store: Store, tmp_path: Path, content: bytes) -> None:
    remote = open_remote(store.url(tmp_path.name))
    assert remote.put("packs/x.pack", memoryview(content)) is True
    assert remote.put("packs/x.pack", memoryview(content)) is False
    assert remote.read("packs/x.pack", 0, 100) == content


@BOTH
def test_of_two_who_push_one_wins_and_the_other_after_a_pull(store: Store, repo: Repository, tmp_path: Path) -> None:
    repo.add_remote("origin", store.url(tmp_path.name))
    repo.push()
    second = Repository.clone(store.url(tmp_path.name), tmp_path / "second", durability="fast")
    theirs, ours = second.commit({"w": np.ones(5000, np.float32)}, "theirs"), repo.commit({"w": np.zeros(3)}, "ours")
    second.push()
    with pytest.raises(Diverged, match="somebody else has pushed"):
        repo.push()
    repo.pull(merge="ours")
    repo.push()
    second.pull()
    assert {commit.id for commit in second.log()} >= {theirs, ours}
    assert second.fsck().ok


@BOTH
def test_a_missing_bucket_is_named(store: Store, repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(RemoteNotFound, match="create it"):
        repo.push(f"{store.scheme}://no-such-bucket/x")
    with pytest.raises((RemoteNotFound, NotARepository), match="no-such-bucket"):
        Repository.clone(f"{store.scheme}://no-such-bucket/x", tmp_path / "clone")


@BOTH
def test_a_missing_repository_is_named(store: Store, repo: Repository) -> None:
    with pytest.raises(NotARepository, match=f"{store.scheme}://bucket/nothing"):
        repo.fetch(store.url("nothing"))


@BOTH
@pytest.mark.usefixtures("at_once")
def test_no_network_is_one_clear_error(store: Store, repo: Repository, monkeypatch) -> None:
    for name, value in store.environment(f"http://127.0.0.1:{free_port()}").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RemoteUnreachable, match="network"):
        repo.push(store.url("x"))


@BOTH
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("code", ["401", "403"])
def test_what_is_not_allowed_is_one_clear_error(store: Store, repo: Repository, monkeypatch, code: str) -> None:
    with breaking(store.server) as (url, between):
        for name, value in store.environment(url).items():
            monkeypatch.setenv(name, value)
        between.begin(lambda number: code)
        with pytest.raises(RemoteDenied, match="credentials") as caught:
            repo.push(store.url("x"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("store", ["az"], indirect=True)
def test_missing_and_wrong_credentials_are_one_clear_error(store: Store, repo: Repository, monkeypatch) -> None:
    for name, value in store.environment(store.server, key="d3Jvbmc=").items():
        monkeypatch.setenv(name, value)
        with pytest.raises(RemoteDenied, match="credentials"):
            repo.push(store.url("x"))
        monkeypatch.delenv(name)
    with pytest.raises(RemoteDenied, match="credentials"):
        repo.push(store.url("x"))


@BOTH
def test_no_secret_is_ever_written(store: Store, repo: Repository, tmp_path: Path) -> None:
    repo.add_remote("origin", store.url(tmp_path.name))
    repo.push()
    remote = open_remote(store.url(tmp_path.name))
    written = [path.read_bytes() for path in repo.path.rglob("*") if path.is_file()]
    written += [remote.get(file.name, 1 << 30) for file in remote.list("")]
    assert len(written) > 8
    assert not [data for data in written if SECRET.encode() in data]


@BOTH
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_requests_of_a_push_and_a_pull_broken(store: Store, tmp_path: Path, monkeypatch, every: int) -> None:
    with breaking(store.server) as (url, between):
        for name, value in store.environment(url).items():
            monkeypatch.setenv(name, value)
        assert push_and_pull(between, store.url(tmp_path.name), tmp_path, every) > 40 / every
