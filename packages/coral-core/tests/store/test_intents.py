"""Intents: they hold while their process lives, or, from another host, while they are young."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coral import _json
from coral.filesystem import LocalFileSystem
from coral.store import intent, needed
from coral.store._files import seal

A, B = "a" * 64, "b" * 64


@pytest.fixture
def announce(fs: LocalFileSystem, folder: Path) -> Callable[..., Path]:
    """Writes the intent of another process."""

    def write(age: float = 0.0, **fields: Any) -> Path:
        content = {**fs.origin()._asdict(), "kind": "commit", "time": fs.now(), "needs": [A], **fields}
        path = folder / "intents" / "theirs"
        path.write_bytes(seal(_json.dumps(content)))
        os.utime(path, (fs.now() - age, fs.now() - age))
        return path

    return write


class TenYearsAhead(LocalFileSystem):
    """A machine whose clock is wrong; files are stamped by another one."""

    def now(self) -> float:
        return super().now() + 10 * 365 * 86400.0


def test_a_clock_that_is_wrong_makes_no_intent_old(folder: Path, announce: Callable[..., Path]) -> None:
    announce(host="another")
    ahead = TenYearsAhead(folder)
    assert needed(ahead) == {A}
    assert ahead.list("tmp") == []
    announce(host="another", age=15 * 86400)
    assert needed(ahead) == set()


def test_an_intent_holds_while_its_block_runs(fs: LocalFileSystem) -> None:
    assert needed(fs) == set()
    with intent(fs, "commit", [A]), intent(fs, "repack", [B, "not an id"]):
        assert needed(fs) == {A, B}
    assert needed(fs) == set()
    assert fs.list("intents") == []


def test_an_intent_is_dropped_when_its_block_fails(fs: LocalFileSystem) -> None:
    with pytest.raises(KeyError), intent(fs, "commit", [A]):
        raise KeyError
    assert fs.list("intents") == []


def test_a_living_process(fs: LocalFileSystem, announce: Callable[..., Path]) -> None:
    announce(pid=os.getpid(), age=10 * 365 * 86400)
    assert needed(fs) == {A}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        announce(pid=other.pid)
        assert needed(fs) == {A}
        other.communicate(b"\n")
    assert needed(fs) == set()


def test_a_process_that_is_gone(fs: LocalFileSystem, announce: Callable[..., Path]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    announce(pid=gone.pid)
    assert needed(fs) == set()


def test_a_process_of_an_earlier_boot(fs: LocalFileSystem, announce: Callable[..., Path]) -> None:
    announce(boot="before")
    assert needed(fs) == set()


@pytest.mark.parametrize(("days", "holds"), [(0, True), (13, True), (15, False), (-1, True), (3650, False)])
def test_another_host(fs: LocalFileSystem, announce: Callable[..., Path], days: float, holds: bool) -> None:
    announce(host="elsewhere", boot="x", pid=1, age=days * 86400)
    assert needed(fs) == ({A} if holds else set())


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "1"},
        {"host": 5},
        {"needs": "x"},
        {"needs": [5, None, "../x"]},
        {"pid": 2**40},
        {"pid": 2**70},
        {"boot": None},
    ],
    ids=str,
)
def test_an_intent_that_makes_no_sense(
    fs: LocalFileSystem, announce: Callable[..., Path], fields: dict[str, Any]
) -> None:
    announce(**fields)
    assert needed(fs) == set()


@pytest.mark.parametrize("content", [b"", b"junk", b"{}\n"])
def test_an_intent_that_is_being_written(fs: LocalFileSystem, folder: Path, content: bytes) -> None:
    (folder / "intents" / "x").write_bytes(content)
    with intent(fs, "commit", [B]):
        assert needed(fs) == {B}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_intent_at_all(fs: LocalFileSystem, folder: Path, kind: str) -> None:
    path = folder / "intents" / "x"
    match kind:
        case "link":
            path.symlink_to(folder / "format")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    with intent(fs, "commit", [B]):
        assert needed(fs) == {B}
