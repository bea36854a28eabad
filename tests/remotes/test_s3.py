"""The object store remote against a real S3 server process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.remotes.breaking import breaking
from tests.remotes.broken import push_and_pull
from tests.remotes.servers import free_port, serving

from coral import Repository
from coral.errors import (
    CommitPruned,
    ConfigError,
    Diverged,
    NotARepository,
    RemoteDenied,
    RemoteNotFound,
    RemoteUnreachable,
)
from coral.remotes import DuePush, Pushed, Remote, add_due, open_remote
from coral.testing import RemoteTests

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")

CANARY = "c4n4ry" * 7


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that was started for these tests."""
    port = free_port()
    with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as url:
        yield url


@pytest.fixture(autouse=True)
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket, and an environment that leads to it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIACANARY0000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    if not fs.exists("bucket"):
        fs.mkdir("bucket")


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    found = Repository(tmp_path / "repo", init=True, durability="fast")
    found.commit({"w": np.arange(5000, dtype=np.float32)}, "first")
    return found


class TestS3(RemoteTests):
    def make(self, folder: Path) -> str:
        return f"s3://bucket/{folder.name}"


class TestMemory(RemoteTests):
    def make(self, folder: Path) -> str:
        return f"memory://tests/{folder.name}"


class TestSingleWriter(RemoteTests):
    def make(self, folder: Path) -> str:
        return f"s3://bucket/single/{folder.name}"

    def open(self, url: str) -> Remote:
        return open_remote(url, single_writer=True)

    def test_of_many_who_put_at_once_one_is_first(self, url: str) -> None:
        pytest.skip("that is what a single writer promises not to do")


def test_a_file_in_many_parts_is_put_once(tmp_path: Path) -> None:
    """From 32 MiB on it is uploaded in parts, and the condition is on the last request."""
    remote = open_remote(f"s3://bucket/{tmp_path.name}")
    data = np.random.default_rng(0).bytes(40 << 20)
    assert remote.put("packs/x.pack", memoryview(data)) is True
    assert remote.put("packs/x.pack", memoryview(bytes(40 << 20))) is False
    assert remote.read("packs/x.pack", 0, len(data)) == data


def test_a_tensor_without_elements_comes_too(repo: Repository, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, 9 << 20, np.uint8)
    repo.commit({"a": large, "b": np.empty((0, 3)), "c": large[::-1].copy()}, "second")
    repo.push(url := f"s3://bucket/{tmp_path.name}")
    found = Repository.clone(url, tmp_path / "clone", durability="fast").load()
    assert found["b"].data.shape == (0, 3)
    assert np.array_equal(found["c"].data, large[::-1])


def test_without_a_condition_a_single_writer_pushes_and_nobody_else(repo, tmp_path: Path, monkeypatch) -> None:
    """A store that takes no notice of `If-None-Match`, as old ones do."""
    pipe = s3fs.S3FileSystem.pipe_file
    monkeypatch.setattr(
        s3fs.S3FileSystem, "pipe_file", lambda self, path, value, mode="", **more: pipe(self, path, value, **more)
    )
    url = f"s3://bucket/{tmp_path.name}"
    for where in (url, url):
        with pytest.raises(ConfigError, match="without a conditional put"):
            repo.push(where)
    repo.add_remote("origin", url, single_writer=True)
    for step in range(2):
        repo.commit({"w": np.full(10, step)}, "more")
        repo.push()
    assert Repository.clone(url, tmp_path / "clone", single_writer=True).branches() == repo.branches()
    repo.remove_remote("origin")
    repo.add_remote("origin", url)
    repo.commit({"w": np.zeros(10)}, "more")
    for where in ("origin", url, "origin"):
        with pytest.raises(ConfigError, match="single_writer=True"):
            repo.push(where)


def test_two_machines_share_a_branch(repo: Repository, tmp_path: Path) -> None:
    url = f"s3://bucket/{tmp_path.name}"
    repo.push(url)
    code = (
        "import sys; from coral import Repository; import numpy as np\n"
        "repo = Repository.clone(sys.argv[1], sys.argv[2])\n"
        "repo.commit({'w': np.ones(3)}, 'theirs'); print(repo.push())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code, url, str(tmp_path / "second")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    repo.pull(url)
    assert [commit.message for commit in repo.log()] == ["theirs", "first"]


def test_of_two_who_push_one_wins_and_the_other_after_a_pull(repo: Repository, tmp_path: Path) -> None:
    url = f"s3://bucket/{tmp_path.name}"
    repo.add_remote("origin", url)
    repo.push()
    second = Repository.clone(url, tmp_path / "second", durability="fast")
    theirs, ours = second.commit({"w": np.ones(5000, np.float32)}, "theirs"), repo.commit({"w": np.zeros(3)}, "ours")
    second.push()
    with pytest.raises(Diverged, match="somebody else has pushed"):
        repo.push()
    assert Repository.clone(url, tmp_path / "third", durability="fast").resolve("main") == theirs
    repo.pull(merge="ours")
    repo.push()
    second.pull()
    assert {commit.id for commit in second.log()} >= {theirs, ours}
    assert second.load()["w"].data.tolist() == [0, 0, 0]
    assert second.fsck().ok


def test_what_a_run_prunes_is_pruned_there_at_the_next_push(repo: Repository, tmp_path: Path) -> None:
    url = f"s3://bucket/{tmp_path.name}"
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(30_000) for _ in range(3)]
    ids = [repo.commit({"w": array}, "more") for array in arrays]
    repo.push(url)
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    before = fs.du(f"bucket/{tmp_path.name}")
    repo.prune(ids[1])
    add_due(repo.store.fs, DuePush.checked(url, "main", prune=True))
    (done,) = repo.push_due().values()
    assert isinstance(done, Pushed)
    assert done.bytes_freed > 200_000
    assert fs.du(f"bucket/{tmp_path.name}") < before - 200_000
    found = Repository.clone(url, tmp_path / "clone", durability="fast")
    assert found.fsck().ok
    with pytest.raises(CommitPruned):
        found.load(ids[1])
    assert found.load(ids[2])["w"].data.tolist() == arrays[2].tolist()


def test_a_missing_bucket_is_named(repo: Repository, tmp_path: Path) -> None:
    for use in (
        lambda: repo.push("s3://no-such-bucket/x"),
        lambda: Repository.clone("s3://no-such-bucket/x", tmp_path / "c"),
    ):
        with pytest.raises(RemoteNotFound, match="create it"):
            use()


def test_a_missing_repository_is_named(repo: Repository) -> None:
    with pytest.raises(NotARepository, match="s3://bucket/nothing"):
        repo.fetch("s3://bucket/nothing")


def test_no_network_is_one_clear_error(repo: Repository, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("coral.remotes._patient._PAUSES", (0.0,))
    with pytest.raises(RemoteUnreachable, match="network"):
        repo.push("s3://bucket/x")


def test_missing_credentials_are_one_clear_error(repo: Repository, monkeypatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(RemoteDenied, match="credentials"):
        repo.push("s3://bucket/x")


def test_no_secret_is_ever_written(repo: Repository, tmp_path: Path) -> None:
    repo.add_remote("origin", f"s3://bucket/{tmp_path.name}")
    repo.push()
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    written = [path.read_bytes() for path in repo.path.rglob("*") if path.is_file()]
    written += [fs.cat_file(path) for path in fs.find(f"bucket/{tmp_path.name}")]
    assert len(written) > 8
    assert not [data for data in written if CANARY.encode() in data or b"AKIACANARY" in data]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_requests_of_a_push_and_a_pull_broken(server: str, tmp_path: Path, monkeypatch, every: int) -> None:
    """By day one request in so many is broken, the kinds taking turns; at night every one in every way."""
    monkeypatch.setattr("coral.remotes._patient._PAUSES", (0.0,))
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with breaking(server) as (url, between):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        cases = push_and_pull(between, f"s3://bucket/{tmp_path.name}", tmp_path, every)
    assert cases > 40 / every
