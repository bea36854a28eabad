"""Which URLs lead to a remote, and which are refused; no credential is ever said or kept."""

from __future__ import annotations

import ntpath
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from coral import Repository
from coral.errors import ConfigError, MissingExtra, RemoteDenied, RemoteNotFound, RemoteUnreachable, UnsafeInput
from coral.remotes import _opening
from coral.remotes._errors import remote_errors, without_secrets
from coral.remotes._opening import check_url, schemes

CANARY = "c4n4ryT0kenThatNobodyMayEverSee1234567890"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://me:{CANARY}@bucket/weights",
        f"s3://{CANARY}@bucket/weights",
        f"az://container/weights?sig={CANARY}",
        f"https://example.org/{CANARY}#{CANARY}",
        f"file:///mnt/x?token={CANARY}",
        f"simplecache::s3://bucket/{CANARY}",
    ],
)
def test_a_url_with_a_credential_is_refused_and_not_repeated(repo: Repository, commits, url: str, files_of) -> None:
    commits(1)
    before = files_of(repo.path)
    for use in (lambda: repo.add_remote("origin", url), lambda: repo.push(url), lambda: repo.fetch(url)):
        with pytest.raises((UnsafeInput, ConfigError)) as caught:
            use()
        assert CANARY not in str(caught.value)
    assert files_of(repo.path).keys() == before.keys()


@pytest.mark.parametrize("url", ["ftp://host/x", "S4://bucket/x", "http://host/x"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(repo: Repository, url: str) -> None:
    with pytest.raises(ConfigError, match=r"a folder, file://, s3://, gs://, az://"):
        repo.add_remote("origin", url)


@pytest.mark.parametrize("url", ["", "a\nb", "s3://" + "x" * 3000, "file://host/x", "file://relative", "s3://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises((UnsafeInput, ConfigError)):
        check_url(url)


@pytest.mark.parametrize("url", [f"s3:/bucket/{CANARY}", f"S3:/{CANARY}", Path("gs://bucket/weights"), "file:/mnt/x"])
def test_a_url_with_one_slash_is_not_taken_for_a_folder(repo: Repository, url: str | Path) -> None:
    with pytest.raises(ConfigError, match=r"(s3|gs|file)://.*\./") as caught:
        repo.add_remote("origin", url)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f" hf://user:{CANARY}@owner/name",
        f"'s3://AKIAKEY:{CANARY}@bucket/x'",
        f'"s3://{CANARY}@bucket/x"',
        f"\u00a0s3://{CANARY}@bucket/x",
        f"url=s3://bucket/{CANARY}",
        f"user:{CANARY}@host",
        f"user:{CANARY}@host/x",
        f"AKIAKEY:/a/{CANARY}@bucket/x",
        Path(f" hf://user:{CANARY}@owner/name"),
        f"s3://[{CANARY}]/x",
        f"s3://{CANARY}\u2100/x",
    ],
    ids=lambda url: ascii(str(url).replace(CANARY, "X")),
)
def test_what_has_a_credential_is_never_taken_for_a_folder(
    repo: Repository, url: str | Path, files_of, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_of(repo.path)
    with pytest.raises(UnsafeInput) as caught:
        repo.add_remote("origin", url)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        error = error.__cause__ or error.__context__
    assert files_of(repo.path).keys() == before.keys()


@pytest.mark.parametrize("url", ["/mnt/a:b@c", "./a:b@c", "../a:b@c", "./x s3://bucket", "a@b", "a b", "a@b:c"])
def test_what_says_that_it_is_a_path_is_one(url: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_url(url) == os.path.abspath(url)


@pytest.mark.parametrize("path", ["C:\\mnt\\a:b@c", "C:/mnt/weights", "D:\\weights"])
def test_a_path_on_a_drive_is_a_path_where_there_are_drives(path: str, monkeypatch) -> None:
    monkeypatch.setattr(_opening, "os", SimpleNamespace(path=ntpath, fspath=os.fspath))
    assert check_url(path) == ntpath.normpath(path)


def test_a_nul_in_a_file_url_is_refused(repo: Repository) -> None:
    with pytest.raises(UnsafeInput, match="NUL"):
        repo.add_remote("origin", "file:///mnt/a%00b")


@pytest.mark.parametrize("path", ["./s3:/x", "a/s3:/x", "/mnt/s3:/x", "s3:x", "s3", "1:/x"])
def test_a_path_with_a_colon_is_a_path(path: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_url(path) == os.path.abspath(path)


def test_a_path_is_stored_whole(repo: Repository, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repo.add_remote("origin", "./backup").url == str(tmp_path / "backup")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "HEAD", "a b"])
def test_an_unsafe_name_of_a_remote_is_refused(repo: Repository, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeInput):
        repo.add_remote(name, tmp_path)


def test_single_writer_is_for_object_stores(repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single_writer"):
        repo.add_remote("origin", tmp_path, single_writer=True)


def test_a_package_adds_a_kind_of_url(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(_opening, "_entry_points", lambda: {"jar": lambda: asked.append})
    assert "jar" in schemes()
    _opening.open_remote("jar://shelf/weights")
    assert asked == ["jar://shelf/weights"]


def test_without_fsspec_the_error_names_the_extra(repo: Repository, commits, monkeypatch) -> None:
    commits(1)
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"coral-core\[remote\]"):
        repo.push("s3://bucket/weights")


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{CANARY}@host/x",
        f"GET /x?X-Amz-Signature={CANARY}&y=1",
        f"Bearer {CANARY}",
        f"password={CANARY}",
        "hf_" + CANARY,
        "AKIA1234567890ABCDEF",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ],
)
def test_what_looks_like_a_credential_is_crossed_out(text: str) -> None:
    said = without_secrets(f"failed: {text} (403)")
    assert CANARY not in said
    assert "AKIA1" not in said
    assert "bPxRf" not in said
    assert said.startswith("failed: ")


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code}): sig={CANARY}")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (ClientError("InvalidAccessKeyId", 403), RemoteDenied, "renew"),
        (ClientError("ExpiredToken", 400), RemoteDenied, "renew"),
        (ClientError("NoSuchBucket", 404), RemoteNotFound, "create it"),
        (ClientError("SlowDown", 503), RemoteUnreachable, "try again"),
        (ClientError("TooManyRequests", 429), RemoteUnreachable, "try again"),
        (ClientError("InternalError", 500), RemoteUnreachable, "try again"),
        (TimeoutError("no answer"), RemoteUnreachable, "network"),
        (ConnectionRefusedError(111, "refused"), RemoteUnreachable, "network"),
        (PermissionError("forbidden"), RemoteDenied, "credentials"),
    ],
)
def test_each_failure_is_one_clear_error(error: Exception, kind: type, advice: str) -> None:
    with (
        pytest.raises(kind, match="writing x to s3://bucket/w failed") as caught,
        remote_errors("s3://bucket/w", "writing x to"),
    ):
        raise error
    assert advice in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None  # a traceback would show it
    assert caught.value.__suppress_context__
    assert caught.value.remote == "s3://bucket/w"


def test_a_file_that_is_not_there_is_no_failure() -> None:
    with pytest.raises(FileNotFoundError), remote_errors("s3://bucket/w", "reading x of"):
        raise FileNotFoundError("x")
