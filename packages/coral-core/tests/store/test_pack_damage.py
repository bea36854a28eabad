"""Damaged packs: cut off anywhere, or with any bit flipped, they are refused or read as they were."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral._digest import BLOCK
from coral.errors import CorruptObject
from coral.filesystem import LocalFileSystem, ReadFile
from coral.store._chain import Chain, Stored, read_tensors
from coral.store._pack import Directory, directory_of, path_of


@pytest.fixture
def pack(fs: LocalFileSystem, folder: Path, write_pack: Callable[..., Directory]) -> tuple[str, bytes]:
    tensors = [np.arange(5, dtype=np.float32), np.array([1, 2], np.uint8), np.zeros(0)]
    name = write_pack(fs, tensors, [("tree", b'{"tensors":{}}'), ("commit", b"commit")]).name
    return name, (folder / path_of(name)).read_bytes()


def test_cut_off_anywhere(pack: tuple[str, bytes], memory_file: Any) -> None:
    name, data = pack
    for size in range(len(data)):
        with pytest.raises(CorruptObject):
            directory_of(memory_file(data[:size]), name)


def test_with_bytes_added(pack: tuple[str, bytes], memory_file: Any) -> None:
    name, data = pack
    for more in (b"\0", b"\0" * 64, data[-64:]):
        with pytest.raises(CorruptObject):
            directory_of(memory_file(data + more), name)


def test_any_bit_flipped(pack: tuple[str, bytes], memory_file: Any, read_all: Callable[..., Any]) -> None:
    name, data = pack
    good = read_all(memory_file(data), name)
    gaps = bytearray(b"\1" * len(data))  # where nothing is: a flip there is harmless
    directory = directory_of(memory_file(data), name)
    end = struct.unpack_from("<Q", data, len(data) - 56)[0]
    for start, size in [(0, 16), (end, len(data) - end), *((e.offset, e.size) for e in directory.entries())]:
        gaps[start : start + size] = bytes(size)
    for at in range(len(data)):
        for bit in (at % 8, (at + 3) % 8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            file = memory_file(bytes(damaged))
            if gaps[at]:
                assert read_all(file, name) == good
            else:
                with pytest.raises(CorruptObject):
                    read_all(file, name)


@pytest.mark.parametrize(
    "trailer",
    [
        (b"CORALTX\n", 0, 0, 0),
        (b"CORALTR\n", 1, 0, 0),
        (b"CORALTR\n", 0, 1, 0),
        (b"CORALTR\n", -64, 64, 0),
        (b"CORALTR\n", 2**63, 0, 0),
        (b"CORALTR\n", 0, 0, 1),
    ],
)
def test_a_sealed_trailer_that_lies(
    pack: tuple[str, bytes], memory_file: Any, trailer: tuple[bytes, int, int, int]
) -> None:
    name, data = pack
    offset, size, digest = struct.unpack_from("<QQ32s", data, len(data) - 56)
    magic, more, longer, other = trailer
    body = struct.pack(
        "<8sQQ32sI", magic, (offset + more) % 2**64, (size + longer) % 2**64, digest[other:] + bytes(other), 0
    )
    with pytest.raises(CorruptObject):
        directory_of(memory_file(data[:-64] + body + struct.pack("<I", zlib.crc32(body))), name)


def first(file: ReadFile, name: str) -> Chain:
    """The first tensor of an open pack."""
    directory = directory_of(file, name)
    return Chain([Stored(directory, file, directory.entry(0))])


@pytest.mark.parametrize("at", [0, 1000, BLOCK - 1, BLOCK, 2 * BLOCK + 5, 3 * BLOCK + 99])
def test_a_large_tensor_is_checked_block_by_block(
    fs: LocalFileSystem, folder: Path, write_pack: Callable[..., Directory], flip: Callable[..., None], at: int
) -> None:
    found = write_pack(fs, [np.zeros(3 * BLOCK + 100, np.uint8)])
    flip(folder / path_of(found.name), found.entry(0).offset + at)
    file = fs.open(path_of(found.name))
    chain = first(file, found.name)
    assert read_tensors([chain]) == [None]
    with pytest.raises(CorruptObject, match=rf"at byte {at // BLOCK * BLOCK}$"):
        chain.verify()


def test_swapped_pages_are_found(fs: LocalFileSystem, folder: Path, write_pack: Callable[..., Directory]) -> None:
    found = write_pack(fs, [np.random.default_rng(0).integers(0, 255, BLOCK, np.uint8)])
    path, start = folder / path_of(found.name), found.entry(0).offset
    data = bytearray(path.read_bytes())
    one, two = slice(start, start + 4096), slice(start + 4096, start + 8192)
    data[one], data[two] = data[two], data[one]
    path.write_bytes(data)
    file = fs.open(path_of(found.name))
    assert read_tensors([first(file, found.name)]) == [None]


def test_verify_goes_by_sha256_where_the_folded_sum_agrees(
    fs: LocalFileSystem, folder: Path, write_pack: Callable[..., Directory]
) -> None:
    """Two rows of 4,072 bytes that changed places have the same folded sum."""
    data = np.random.default_rng(0).integers(0, 255, 3 * 4072, np.uint8)
    found = write_pack(fs, [data])
    path, start = folder / path_of(found.name), found.entry(0).offset
    raw = bytearray(path.read_bytes())
    raw[start : start + 8144] = raw[start + 4072 : start + 8144] + raw[start : start + 4072]
    path.write_bytes(raw)
    file = fs.open(path_of(found.name))
    chain = first(file, found.name)
    (read,) = read_tensors([chain])
    assert read is not None
    assert read.tobytes() != data.tobytes()
    with pytest.raises(CorruptObject, match="SHA-256"):
        chain.verify()
