"""The safetensors format, read as what a stranger may have written, and written.

A file is the size of its header (u64), the header (JSON: dtype, shape, begin and end of each tensor), then the tensors'
bytes without a gap. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coral import WeightTensor
from coral.errors import CoralError, UnsafeInput, UnsupportedValue
from coral.weights import DTYPES, MAX_BYTES, check_name, check_shape

__all__ = ["Place", "as_tensor", "parse_header", "read_header", "write_file"]

_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes; the limit of the format

_CODES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip
_CODE_OF = {dtype: code for code, dtype in _CODES.items()}


class Place(NamedTuple):
    """A tensor in a file: its dtype by coral's name, its shape, and the bytes of the file that it takes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def read_header(path: Path, what: str) -> dict[str, Place]:
    """Where the tensors of a file lie, in the order of its bytes; `what` names the file in errors.

    Raises UnsafeInput where the header is none, or says what is not so; UnsupportedValue for a dtype that coral lacks.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise _lies(what, f"it has {len(head)} bytes, not even the 8 that a file begins with")
        (length,) = struct.unpack("<Q", head)
        if length > min(_MAX_HEADER, size - 8):
            raise _lies(what, f"it says that its header has {length} bytes, and has {size} in all")
        text = file.read(length)
    return parse_header(text, size, what)


def parse_header(text: bytes, size: int, what: str) -> dict[str, Place]:
    """Where the tensors of a file of `size` bytes lie, by the text of its header; raises what `read_header` does."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _lies(what, f"its header is not what the format asks for: {error}") from error
    if not isinstance(header, dict):
        raise _lies(what, f"its header is a {type(header).__name__}, not an object")
    extra = header.pop(_METADATA, {})
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise _lies(what, f"its {_METADATA} is not texts by name")
    start = 8 + len(text)
    places = {_name(name, what): _place(name, entry, start, what) for name, entry in header.items()}
    return _without_gaps(places, start, size, what)


def _name(name: str, what: str) -> str:
    try:
        return check_name(name)
    except UnsafeInput as error:
        raise _lies(what, str(error)) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _place(name: str, entry: object, start: int, what: str) -> Place:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end], **rest} if (
            type(begin) is int and type(end) is int and not rest
        ):
            pass
        case _:
            raise _lies(what, f"tensor {name[:200]!r} has not a dtype, a shape and two data_offsets, and nothing else")
    if code not in _CODES:
        raise UnsupportedValue(f"{what}: tensor {name!r} has dtype {code[:40]!r}, which coral cannot store", path=name)
    try:
        sizes, nbytes = check_shape(shape, _CODES[code])
    except CoralError as error:
        raise _lies(what, f"tensor {name!r}: {error}") from error
    if max(abs(begin), abs(end)) > MAX_BYTES:
        raise _lies(what, f"tensor {name!r} is said to lie beyond byte 2^63 - 1")
    if end - begin != nbytes:
        raise _lies(
            what, f"tensor {name!r} takes {nbytes} bytes, and is said to lie from {str(begin)[:20]} to {str(end)[:20]}"
        )
    return Place(_CODES[code], sizes, start + begin, nbytes)


def _without_gaps(places: Mapping[str, Place], start: int, size: int, what: str) -> dict[str, Place]:
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].begin, item[1].nbytes)))
    at = start
    for name, place in ordered.items():
        if place.begin != at:
            raise _lies(what, f"tensor {name!r} begins at byte {place.begin}, and what is before it ends at {at}")
        at += place.nbytes
    if at != size:
        raise _lies(what, f"its tensors end at byte {at}, and it has {size}")
    return ordered


def _lies(what: str, why: str) -> UnsafeInput:
    return UnsafeInput(f"{what} is no sound safetensors file: {why}. Nothing of it was used.")


def as_tensor(data: np.ndarray[Any, np.dtype[np.uint8]], place: Place) -> WeightTensor:
    """A tensor whose bytes are those of `data`, which holds the file from its first byte on."""
    dtype = DTYPES[place.dtype]
    part = data[place.begin : place.begin + place.nbytes]
    return WeightTensor(part.view(dtype.numpy).reshape(place.shape), place.dtype)


def write_file(
    path: Path, weights: Iterable[tuple[str, WeightTensor]], seen: Callable[[str, WeightTensor, Place], None]
) -> None:
    """Write tensors as a safetensors file, in their order; `seen` is called with each, read, and where it lies.

    Raises UnsupportedValue, before anything is written, for a dtype that the format has no name for, or for a tensor
    whose name is not a tensor's there.
    """
    tensors = list(weights)
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}  # without it transformers does not open the file
    at = 0
    for name, tensor in tensors:
        if tensor.dtype not in _CODE_OF:
            raise UnsupportedValue(f"safetensors has no dtype for {tensor.dtype}, that of {name!r}", path=name)
        if name == _METADATA:
            raise UnsupportedValue(f"safetensors has no tensor of the name {name!r}: rename it", path=name)
        span = [at, at + tensor.nbytes]
        header[name] = {"dtype": _CODE_OF[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    at = 8 + len(text)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            file.write(tensor.bytes())
            seen(name, tensor, Place(tensor.dtype, tensor.shape, at, tensor.nbytes))
            at += tensor.nbytes
