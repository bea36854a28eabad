"""Small files: put only where nothing is, and known to be what was written."""

from __future__ import annotations

import pytest

from coral.errors import CorruptObject
from coral.filesystem import LocalFileSystem
from coral.store._files import make_folder, nonce, put_if_absent, seal, temporary, unseal


def test_put_if_absent(fs: LocalFileSystem) -> None:
    assert put_if_absent(fs, "notes/x", b"one", durable=True)
    assert not put_if_absent(fs, "notes/x", b"two", durable=False)
    assert put_if_absent(fs, "notes/x", b"one", durable=False)  # that is what this call would have made
    assert fs.read("notes/x", 10) == b"one"
    assert fs.list("tmp") == []


def test_a_temporary_file_is_gone_after_an_error(fs: LocalFileSystem) -> None:
    def fail() -> None:
        with temporary(fs) as (path, file):
            file.write([b"x"])
            assert fs.list("tmp") == [path[4:]]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert fs.list("tmp") == []


def test_a_folder_is_made_once(fs: LocalFileSystem) -> None:
    for durable in (True, False, True):
        make_folder(fs, "notes/y", durable=durable)
    assert fs.list("notes") == ["y"]


def test_nonces_differ() -> None:
    assert len({nonce() for _ in range(100)}) == 100


@pytest.mark.parametrize("data", [b"", b"x", b"\n", b"a\nb\n", bytes(range(256))])
def test_seals(data: bytes) -> None:
    sealed = seal(data)
    assert unseal(sealed, "p") == data
    for size in range(len(sealed)):
        with pytest.raises(CorruptObject, match="p is torn"):
            unseal(sealed[:size], "p")
    for at in range(len(sealed)):
        with pytest.raises(CorruptObject):
            unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], "p")
