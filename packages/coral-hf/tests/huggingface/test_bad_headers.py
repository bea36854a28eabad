"""The corpus of bad input: safetensors files. CASES: name -> (file, error, part of its message)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from coral.errors import CoralError, UnsafeInput, UnsupportedValue
from coral.integrations.huggingface._safetensors import read_header

X = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(entries: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def x(**changes: Any) -> bytes:
    return file({"x": X | changes})


def without(field: str) -> bytes:
    return file({"x": {name: value for name, value in X.items() if name != field}})


CASES: dict[str, tuple[bytes, type[CoralError], str]] = {
    "no bytes": (b"", UnsafeInput, "it has 0 bytes"),
    "3 bytes": (b"123", UnsafeInput, "it has 3 bytes"),
    "a header of 2^60 bytes": (file({}, length=1 << 60), UnsafeInput, "says that its header has"),
    "a header of 2^64 - 1 bytes": (file({}, length=(1 << 64) - 1), UnsafeInput, "says that its header has"),
    "a header beyond the end": (file({}, length=500), UnsafeInput, "says that its header has 500"),
    "a header of no bytes": (file(b""), UnsafeInput, "not what the format asks for"),
    "a header that is a list": (file([1]), UnsafeInput, "is a list"),
    "a header that is null": (file(b"null"), UnsafeInput, "is a NoneType"),
    "a header that is no UTF-8": (file(b'{"\xff":1}'), UnsafeInput, "not what the format asks for"),
    "a header that is nested deeply": (file(b"[" * 100_000), UnsafeInput, "not what the format asks for"),
    "a header with 5,000 digits": (file(b"1" * 5000), UnsafeInput, "4300 digits"),
    "a header that ends early": (file(b'{"x":'), UnsafeInput, "not what the format asks for"),
    "a header that goes on": (file(b"{}{}"), UnsafeInput, "Extra data"),
    "a name twice": (file(b'{"x":1,"x":2}'), UnsafeInput, "twice"),
    "a field twice": (file(b'{"x":{"dtype":"F32","dtype":"F32"}}'), UnsafeInput, "twice"),
    "a pickle": (b"\x80\x04\x95" + bytes(30), UnsafeInput, "says that its header has"),
    "a tensor that is a number": (file({"x": 3}), UnsafeInput, "tensor 'x' has not"),
    "a tensor without a dtype": (without("dtype"), UnsafeInput, "tensor 'x' has not"),
    "a tensor without a shape": (without("shape"), UnsafeInput, "tensor 'x' has not"),
    "a tensor without offsets": (without("data_offsets"), UnsafeInput, "tensor 'x' has not"),
    "a tensor with a field more": (x(more=1), UnsafeInput, "nothing else"),
    "an unknown dtype": (x(dtype="F6_E2M3"), UnsupportedValue, "dtype 'F6_E2M3'"),
    "a dtype in small letters": (x(dtype="f32"), UnsupportedValue, "dtype 'f32'"),
    "a numpy dtype": (x(dtype="<f4"), UnsupportedValue, "dtype '<f4'"),
    "a dtype that clears the screen": (x(dtype="\x1b[2J"), UnsupportedValue, "\\x1b[2J"),
    "a dtype that is a number": (x(dtype=1), UnsafeInput, "tensor 'x' has not"),
    "a shape that is a number": (x(shape=2), UnsafeInput, "tensor 'x' has not"),
    "a shape of other bytes": (x(shape=[3]), UnsafeInput, "takes 12 bytes"),
    "a negative size": (x(shape=[-2]), UnsafeInput, "sizes of 0 or more"),
    "a size of 2.0": (x(shape=[2.0]), UnsafeInput, "sizes of 0 or more"),
    "a size that is true": (x(shape=[True, 2]), UnsafeInput, "sizes of 0 or more"),
    "a rank of 65": (x(shape=[1] * 65), UnsafeInput, "at most 64"),
    "a shape that wraps around": (x(shape=[1 << 32, 1 << 32]), UnsafeInput, "larger than 2^63"),
    "a shape of 4,000 digits": (x(shape=[10**4000]), UnsafeInput, "larger than 2^63"),
    "one offset": (x(data_offsets=[0]), UnsafeInput, "tensor 'x' has not"),
    "three offsets": (x(data_offsets=[0, 8, 8]), UnsafeInput, "tensor 'x' has not"),
    "an offset that is false": (x(data_offsets=[False, 8]), UnsafeInput, "tensor 'x' has not"),
    "an offset that is 8.0": (x(data_offsets=[0, 8.0]), UnsafeInput, "tensor 'x' has not"),
    "a negative offset": (x(data_offsets=[-4, 4]), UnsafeInput, "begins at byte"),
    "offsets that go backwards": (x(data_offsets=[8, 0]), UnsafeInput, "from 8 to 0"),
    "an offset of 4,000 digits": (x(data_offsets=[0, 10**4000]), UnsafeInput, "is said to lie"),
    "offsets of 4,300 digits": (
        x(shape=[0], data_offsets=[10**4300 - 1, 10**4300 - 1]),
        UnsafeInput,
        "'x' is said to lie beyond",
    ),
    "negative offsets of 4,300 digits": (
        x(shape=[0], data_offsets=[1 - 10**4300, 1 - 10**4300]),
        UnsafeInput,
        "'x' is said to lie beyond",
    ),
    "offsets of 2^63": (x(shape=[0], data_offsets=[1 << 63, 1 << 63]), UnsafeInput, "'x' is said to lie beyond"),
    "a hole before": (x(data_offsets=[8, 16]), UnsafeInput, "begins at byte"),
    "a tensor behind the end": (x(data_offsets=[0, 80], shape=[20]), UnsafeInput, "end at byte"),
    "bytes behind": (file({"x": X}, data=bytes(9)), UnsafeInput, "and it has"),
    "bytes too few": (file({"x": X}, data=bytes(7)), UnsafeInput, "and it has"),
    "two tensors in one place": (file({"x": X, "y": X}), UnsafeInput, "begins at byte"),
    "two that overlap": (file({"x": X, "y": X | {"data_offsets": [4, 12]}}, bytes(12)), UnsafeInput, "begins at byte"),
    "a hole between": (file({"x": X, "y": X | {"data_offsets": [12, 20]}}, bytes(20)), UnsafeInput, "begins at byte"),
    "an empty name": (file({"": X}), UnsafeInput, "is empty"),
    "a NUL in a name": (file({"a\0b": X}), UnsafeInput, "NUL"),
    "half a character in a name": (file(b'{"\\ud800":1}'), UnsafeInput, "lone surrogate"),
    "a name of 1,025 bytes": (file({"x" * 1025: X}), UnsafeInput, "1024 is the limit"),
    "a bad tensor whose name clears the screen": (file({"\x1b[2J": 1}), UnsafeInput, "'\\x1b[2J'"),
    "a bad tensor whose name turns writing": (file({"\u202e": 1}), UnsafeInput, "'\\u202e'"),
    "metadata that is a list": (file({"__metadata__": []}, b""), UnsafeInput, "__metadata__"),
    "metadata with a number": (file({"__metadata__": {"a": 1}}, b""), UnsafeInput, "__metadata__"),
    "metadata that is null": (file({"__metadata__": None}, b""), UnsafeInput, "__metadata__"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_not_what_it_should_be(name: str, tmp_path: Path) -> None:
    content, error, part = CASES[name]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CoralError) as caught:
        read_header(tmp_path / "model.safetensors", "a/b/model.safetensors")
    assert type(caught.value) is error
    said = str(caught.value)
    assert part in said
    assert "a/b/model.safetensors" in said
    assert said.isprintable()
    assert len(said) < 2500


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    """The cases differ from it in one thing each."""
    (tmp_path / "x").write_bytes(file({"x": X, "__metadata__": {"format": "pt"}}))
    assert [*read_header(tmp_path / "x", "x")] == ["x"]


def test_there_are_as_many_as_are_claimed() -> None:
    assert len(CASES) >= 50
