"""A token that is planted wherever one may be comes out nowhere: in no file, no log, no error, no output."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import CoralError

CANARY = "c4n4ryT0kenThatNobodyMayEverSee1234567890"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
    "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip
URLS = (
    f"s3://key:{CANARY}@bucket/weights", f"s3://{CANARY}@bucket/w", f"az://c/w?sig={CANARY}", f"gs://b/w#{CANARY}",
    f"https://user:{CANARY}@example.org/x", f"simplecache::s3://b/{CANARY}", f"file://{CANARY}@host/x",
    f"hf://user:{CANARY}@a/b", f"ftp://{CANARY}@host/x", f"s3://b/w::zip://{CANARY}",
    f" hf://user:{CANARY}@a/b", f"'s3://key:{CANARY}@b/w'", f"user:{CANARY}@host/x", f"user:{CANARY}@host",
    f"s3://[{CANARY}]/x",
)  # fmt: skip


def nowhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert CANARY not in path.name
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repo", init=True, durability="fast")
    made.commit({"a": np.ones(3)})
    return made


@pytest.mark.parametrize("url", URLS, ids=lambda url: url.replace(CANARY, "X"))
def test_a_token_in_a_url(
    repo: Repository,
    url: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    for attempt in (
        lambda: repo.add_remote("origin", url),
        lambda: repo.push(url),
        lambda: repo.fetch(url),
        lambda: repo.pull(url),
        lambda: Repository.clone(url, tmp_path / "clone"),
    ):
        with pytest.raises(CoralError) as caught:
            attempt()
        error: BaseException | None = caught.value
        while error is not None:
            assert CANARY not in str(error) + repr(error)
            error = error.__cause__ or error.__context__
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capfd.readouterr())
    nowhere(tmp_path)


COMMANDS = (
    ["push", "REPO"], ["push", "REPO", "nowhere"], ["push", "REPO", "/proc/nothing/x"], ["push", "REPO", URLS[0]],
    ["push", "REPO", "--due"], ["fsck", "REPO"], ["fsck", "REPO", "--repair"], ["gc", "REPO"], ["repack", "REPO"],
    ["fsck", "REPO/nothing"], ["--version"], ["push", "REPO", "s3://127.0.0.1/x"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command).replace(CANARY, "X"))
def test_a_token_in_the_environment(repo: Repository, command: list[str], tmp_path: Path) -> None:
    (repo.path / "packs" / "junk").write_bytes(b"so that fsck has something to say")
    paths = os.pathsep.join(path for path in sys.path if path)
    home = {"HOME": str(tmp_path / "home"), "AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    environment = {**os.environ, **dict.fromkeys(VARIABLES, CANARY), **home, "PYTHONPATH": paths}
    words = [word.replace("REPO", str(repo.path)) for word in command]
    code = (  # what botocore logs of its own when it is debugged is the signed request
        "import logging, os, sys; logging.basicConfig(level=20); logging.getLogger('coral').setLevel(10)\n"
        "sys.excepthook = lambda *_: os._exit(99)\n"
        "from coral.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1, 4, 8)
    assert CANARY not in done.stdout + done.stderr
    nowhere(tmp_path)


def test_the_canary_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"token={CANARY}")
    with pytest.raises(AssertionError):
        nowhere(tmp_path)
    try:
        raise ValueError(CANARY)
    except ValueError:
        assert CANARY in traceback.format_exc()
