"""Packs: what is written is read back, mapped where it is large; every malformed field is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral._digest import BLOCK, sha256
from coral.errors import CoralError, CorruptObject, NewerFormat
from coral.filesystem import LocalFileSystem
from coral.store import _pack, _pack_writer
from coral.store._chain import Chain, Stored, read_tensors
from coral.store._pack import MAPPED, Directory, directory_of, path_of, read_directory
from coral.weights import WeightTensor

HEAD = _pack.DIRECTORY.size
ROW = _pack.ENTRY.itemsize


def at(row: int, field: str) -> int:
    """Where a field of an entry lies in a directory."""
    return HEAD + row * ROW + int(_pack.ENTRY.fields[field][1])  # type: ignore[index]


@pytest.fixture
def tensors() -> list[Any]:
    return [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.zeros((0, 4), np.int8),
        np.array(7, np.int64),
        WeightTensor(np.arange(5, dtype=np.uint16), dtype="bfloat16"),
        np.random.default_rng(0).standard_normal(300_001).astype(np.float32),
        np.ones(3, np.bool_),
    ]


@pytest.fixture
def directory_bytes(fs: LocalFileSystem, write_pack: Callable[..., Directory], folder: Any) -> bytearray:
    """The directory of a pack with a float32 tensor of shape (2, 3) and a tree."""
    found = write_pack(fs, [np.arange(6, dtype=np.float32).reshape(2, 3)], [("tree", b"{}")])
    data = (folder / path_of(found.name)).read_bytes()
    offset, size = struct.unpack_from("<QQ", data, len(data) - 56)
    return bytearray(data[offset : offset + size])


def test_what_is_written_is_read_back(
    fs: LocalFileSystem, tensors: list[Any], write_pack: Callable[..., Directory], read_all: Callable[..., Any]
) -> None:
    objects = [("tree", b"a tree"), ("state", b"x" * 70), ("commit", b"a commit")]
    written = write_pack(fs, tensors, objects)
    found = read_all(fs.open(path_of(written.name)), written.name)
    expected = [t if isinstance(t, WeightTensor) else WeightTensor(t) for t in tensors]
    assert list(found.values()) == [t.bytes().tobytes() for t in expected] + [payload for _, payload in objects]
    directory = read_directory(fs, written.name)
    assert [entry.kind for entry in directory.entries()] == ["tensor"] * 6 + ["tree", "state", "commit"]
    for entry, tensor in zip(directory.entries(), expected, strict=False):
        assert (entry.id, entry.dtype, entry.shape, entry.nbytes) == (
            tensor.id,
            tensor.dtype,
            tensor.shape,
            tensor.nbytes,
        )
        assert entry.offset % (4096 if entry.size >= BLOCK else 64) == 0
        assert (entry.codec, entry.base) == (0, None)


def test_a_pack_is_named_by_its_directory(
    fs: LocalFileSystem, write_pack: Callable[..., Directory], folder: Any
) -> None:
    found = write_pack(fs, [np.ones(3)], [("tree", b"{}")])
    data = (folder / path_of(found.name)).read_bytes()
    offset, size = struct.unpack_from("<QQ", data, len(data) - 56)
    assert sha256(data[offset : offset + size]).hex() == found.name
    assert write_pack(fs, [np.ones(3)], [("tree", b"{}")]).name == found.name


def test_an_empty_pack(fs: LocalFileSystem, write_pack: Callable[..., Directory], read_all: Callable[..., Any]) -> None:
    found = write_pack(fs)
    assert len(read_directory(fs, found.name)) == 0
    assert read_all(fs.open(path_of(found.name)), found.name) == {}


def test_an_object_is_written_once(fs: LocalFileSystem, write_pack: Callable[..., Directory]) -> None:
    assert len(write_pack(fs, [], [("tree", b"{}"), ("tree", b"{}"), ("state", b"{}")])) == 2


def test_flags_are_kept(fs: LocalFileSystem, write_pack: Callable[..., Directory]) -> None:
    assert read_directory(fs, write_pack(fs, [], [("tree", b"1")], flags=1).name).flags == 1
    assert read_directory(fs, write_pack(fs, [], [("tree", b"1")]).name).flags == 0


def test_a_directory_larger_than_one_read(
    fs: LocalFileSystem, write_pack: Callable[..., Directory], read_all: Callable[..., Any]
) -> None:
    found = write_pack(fs, [], [("tree", str(n).encode()) for n in range(1500)])
    assert list(read_all(fs.open(path_of(found.name)), found.name).values()) == [str(n).encode() for n in range(1500)]


def test_large_tensors_are_mapped_and_small_ones_are_not(
    fs: LocalFileSystem, tensors: list[Any], write_pack: Callable[..., Directory]
) -> None:
    written = write_pack(fs, tensors)
    file = fs.open(path_of(written.name))
    directory = directory_of(file, written.name)
    for entry in directory.entries():
        (data,) = read_tensors([Chain([Stored(directory, file, entry)])])
        assert data is not None
        assert data.flags.writeable
        assert data.flags.owndata == (entry.size < MAPPED)


def test_a_pack_under_a_false_name(fs: LocalFileSystem, write_pack: Callable[..., Directory]) -> None:
    found = write_pack(fs, [np.ones(3)])
    fs.replace(path_of(found.name), path_of("0" * 64))
    with pytest.raises(CorruptObject, match="named by"):
        read_directory(fs, "0" * 64)


@pytest.mark.parametrize(
    ("where", "form", "value", "error"),
    [
        (0, "<8s", b"CORALDX\n", CorruptObject),
        (8, "<I", 2, NewerFormat),
        (16, "<I", 1, CorruptObject),
        (16, "<I", 3, CorruptObject),
        (16, "<I", 0, CorruptObject),
        (16, "<I", 2**32 - 1, CorruptObject),
        (at(0, "kind"), "<B", 0, CorruptObject),
        (at(0, "kind"), "<B", 2, CorruptObject),
        (at(0, "kind"), "<B", 9, CorruptObject),
        (at(1, "kind"), "<B", 1, CorruptObject),
        (at(0, "codec"), "<B", 1, CorruptObject),
        (at(0, "codec"), "<B", 99, NewerFormat),
        (at(0, "dtype"), "<B", 0, NewerFormat),
        (at(0, "dtype"), "<B", 250, NewerFormat),
        (at(0, "dtype"), "<B", 1, CorruptObject),
        (at(0, "rank"), "<B", 0, CorruptObject),
        (at(0, "rank"), "<B", 3, CorruptObject),
        (at(0, "rank"), "<B", 65, CorruptObject),
        (at(0, "rank"), "<B", 255, CorruptObject),
        (at(0, "offset"), "<Q", 2**64 - 1, CorruptObject),
        (at(0, "offset"), "<Q", 2**63 - 1, CorruptObject),
        (at(0, "offset"), "<Q", 10**6, CorruptObject),
        (at(0, "size"), "<Q", 2**64 - 1, CorruptObject),
        (at(0, "size"), "<Q", 2**63 - 1, CorruptObject),
        (at(0, "size"), "<Q", 0, CorruptObject),
        (at(0, "size"), "<Q", 23, CorruptObject),
        (at(0, "nbytes"), "<Q", 2**64 - 1, CorruptObject),
        (at(0, "nbytes"), "<Q", 2**63 - 1, CorruptObject),
        (at(0, "nbytes"), "<Q", 2**40, CorruptObject),
        (at(0, "nbytes"), "<Q", 23, CorruptObject),
        (at(1, "nbytes"), "<Q", 2**50, CorruptObject),
        (HEAD + 2 * ROW, "<Q", 5, CorruptObject),
        (HEAD + 2 * ROW, "<Q", 2**63, CorruptObject),
    ],
)
def test_a_malformed_field(
    directory_bytes: bytearray, where: int, form: str, value: Any, error: type[CoralError]
) -> None:
    list(Directory("0" * 64, bytes(directory_bytes), 1000).entries())
    struct.pack_into(form, directory_bytes, where, value)
    with pytest.raises(error):
        list(Directory("0" * 64, bytes(directory_bytes), 1000).entries())


def test_a_directory_of_another_length(directory_bytes: bytearray) -> None:
    data = bytes(directory_bytes)
    for bad in (data + b"\0", data[:-1], data[: HEAD + ROW], data[:HEAD], data[: HEAD - 1], b""):
        with pytest.raises(CorruptObject):
            Directory("0" * 64, bad, 1000)


def test_an_entry_beyond_the_data(directory_bytes: bytearray) -> None:
    with pytest.raises(CorruptObject, match="outside"):
        Directory("0" * 64, bytes(directory_bytes), 60)


def test_a_pack_of_a_newer_version_is_told_from_a_damaged_one(
    fs: LocalFileSystem, write_pack: Callable[..., Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_pack, _pack_writer):
        monkeypatch.setattr(module, "VERSION", 2)
    name = write_pack(fs, [np.arange(6)]).name
    monkeypatch.undo()
    with pytest.raises(NewerFormat, match="Upgrade"):
        read_directory(fs, name)
