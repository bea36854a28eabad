"""WeightTensor: a tensor's bits with their dtype and shape, whatever framework they came from."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coral._digest import Bytes, digests, tensor_id
from coral.errors import LimitExceeded, UnsafeInput, UnsupportedValue

__all__ = ["DTYPES", "Array", "DType", "WeightTensor", "check_name", "check_shape"]

Array = NDArray[np.generic]

MAX_RANK = 64
MAX_BYTES = 2**63 - 1
MAX_NAME = 1024


class DType(NamedTuple):
    """One entry of the closed list of dtypes: its code on disk, and the numpy dtype that carries its bits."""

    code: int
    carrier: str
    native: bool  # numpy has it; otherwise the carrier holds raw bits
    itemsize: int  # bytes
    numpy: np.dtype[np.generic]  # the carrier


def _dtype(code: int, carrier: str, native: bool) -> DType:
    return DType(code, carrier, native, np.dtype(carrier).itemsize, np.dtype(carrier))


DTYPES = MappingProxyType(
    {
        "float64": _dtype(1, "<f8", True),
        "float32": _dtype(2, "<f4", True),
        "float16": _dtype(3, "<f2", True),
        "bfloat16": _dtype(4, "<u2", False),
        "float8_e4m3fn": _dtype(5, "|u1", False),
        "float8_e4m3fnuz": _dtype(6, "|u1", False),
        "float8_e5m2": _dtype(7, "|u1", False),
        "float8_e5m2fnuz": _dtype(8, "|u1", False),
        "float8_e8m0fnu": _dtype(9, "|u1", False),
        "float4_e2m1fn_x2": _dtype(10, "|u1", False),
        "complex32": _dtype(16, "<u4", False),
        "complex64": _dtype(17, "<c8", True),
        "complex128": _dtype(18, "<c16", True),
        "int8": _dtype(32, "|i1", True),
        "int16": _dtype(33, "<i2", True),
        "int32": _dtype(34, "<i4", True),
        "int64": _dtype(35, "<i8", True),
        "uint8": _dtype(36, "|u1", True),
        "uint16": _dtype(37, "<u2", True),
        "uint32": _dtype(38, "<u4", True),
        "uint64": _dtype(39, "<u8", True),
        "bool": _dtype(40, "|b1", True),
    }
)
"""Every dtype coral stores, by the name PyTorch gives it. Codes are part of the format and never reused."""

DTYPE_BY_CODE = MappingProxyType({dtype.code: name for name, dtype in DTYPES.items()})


def check_name(name: object, what: str = "tensor name") -> str:
    """Return `name` if it may name a tensor: a non-empty str of valid UTF-8, at most 1,024 bytes, without NUL."""
    if not isinstance(name, str):
        raise UnsafeInput(f"a {what} must be a str, not {type(name).__name__}: {_shown(name)}")
    try:
        size = len(name) if name.isascii() else len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise UnsafeInput(f"the {what} {_shown(name)} is not valid UTF-8 (it has a lone surrogate)") from None
    if not size or "\0" in name:
        raise UnsafeInput(f"the {what} {_shown(name)} is {'empty' if not size else 'unsafe: it has a NUL character'}")
    if size > MAX_NAME:
        raise LimitExceeded(f"the {what} {name[:60]!r}... has {size} bytes; {MAX_NAME} is the limit")
    return name


def check_shape(shape: object, dtype: object) -> tuple[tuple[int, ...], int]:
    """Return (shape, bytes) for an untrusted shape of a known dtype."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsafeInput(f"unknown dtype {_shown(dtype)}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_RANK:
        raise UnsafeInput(f"a shape is a list of at most {MAX_RANK} sizes, not {_shown(shape)}")
    nbytes, largest = DTYPES[dtype].itemsize, 0
    for size in shape:
        if type(size) is not int or size < 0:  # bools and floats are not sizes
            raise UnsafeInput(f"a shape holds sizes of 0 or more, not {_shown(size)}")
        nbytes *= size  # Python ints: nothing wraps around
        largest = max(largest, size)
    if nbytes > MAX_BYTES or largest > MAX_BYTES:
        raise LimitExceeded(
            f"a tensor of shape {str(list(shape))[:200]} and dtype {dtype} is larger than 2^63 - 1 bytes"
        )
    return tuple(shape), nbytes


def _shown(value: object) -> str:
    """A value of a stranger's in a message: short, whatever it is."""
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value[:60] if isinstance(value, str) else value)[:80]


class WeightTensor:
    """A tensor as coral sees it: bits, a dtype by name, a shape.

    `data` is an ndarray of `shape` in the dtype's carrier: the numpy dtype of that name where there is one, else raw
    bits (uint16 for bfloat16, uint8 for float8 and float4, uint32 for complex32). A tensor that comes from a
    repository reads its data when `data` is first asked for, checks it, and raises CorruptObject if it is not what
    was stored.

        WeightTensor(np.ones((2, 3), np.float32))
        WeightTensor(bits, dtype="bfloat16")        # bits: uint16
    """

    __slots__ = ("_data", "_id", "_read", "dtype", "nbytes", "shape")

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    def __init__(self, data: Array | np.generic, dtype: str | None = None) -> None:
        if isinstance(data, np.generic):
            data = np.asarray(data)
        if not isinstance(data, np.ndarray) or isinstance(data, np.ma.MaskedArray):
            raise UnsupportedValue(f"a WeightTensor holds a numpy array, not {type(data).__name__}")
        if dtype is None:
            dtype = data.dtype.name
            if dtype not in DTYPES or not DTYPES[dtype].native:
                raise UnsupportedValue(f"numpy dtype {data.dtype} cannot be stored; convert it to one of {_natives()}")
        elif dtype not in DTYPES:
            raise UnsupportedValue(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
        carrier = np.dtype(DTYPES[dtype].carrier)
        if data.dtype.newbyteorder("=") != carrier.newbyteorder("="):
            raise UnsupportedValue(f"{dtype} is carried as {carrier.name}, not as {data.dtype}")
        self.dtype = dtype
        self.shape, self.nbytes = check_shape(data.shape, dtype)
        self._data: Array | None = data.astype(carrier, copy=False)
        self._id: str | None = None
        self._read: Callable[[], Array] | None = None

    @classmethod
    def stored(
        cls, dtype: str, shape: tuple[int, ...], nbytes: int, id: str, read: Callable[[], Array]
    ) -> WeightTensor:
        """A tensor of a checked dtype, shape and size, whose data `read` fetches when asked for."""
        self = cls.__new__(cls)
        self.dtype, self.shape, self.nbytes = dtype, shape, nbytes
        self._data, self._id, self._read = None, id, read
        return self

    @property
    def data(self) -> Array:
        """The bits: an ndarray of `shape` in the dtype's carrier; writable, and nobody else's."""
        if self._data is None:
            assert self._read is not None
            self._data = self._read()
        return self._data

    @property
    def id(self) -> str:
        """64 hex digits: SHA-256 over dtype, shape and the SHA-256 of each 1 MiB block. Computed once, then kept."""
        if self._id is None:
            self._id = tensor_id(self.dtype, self.shape, digests(self.bytes()))
        return self._id

    def renewed(self) -> WeightTensor:
        """The same memory, of which nothing is known any more: for a buffer that holds another tensor each time."""
        return WeightTensor._of(self.dtype, self.shape, self.nbytes, self.data)

    @classmethod
    def _of(cls, dtype: str, shape: tuple[int, ...], nbytes: int, data: Array) -> WeightTensor:
        self = cls.__new__(cls)
        self.dtype, self.shape, self.nbytes = dtype, shape, nbytes
        self._data, self._id, self._read = data, None, None
        return self

    @property
    def contiguous(self) -> bool:
        """Whether `bytes` gives a view rather than a copy."""
        return self.data.flags.c_contiguous

    def bytes(self) -> Bytes:
        """The bits as a flat uint8 array, little-endian and in C order; a view where the data is contiguous."""
        return np.ascontiguousarray(self.data).reshape(-1).view(np.uint8)

    def __repr__(self) -> str:
        return f"WeightTensor({self.dtype}, shape={self.shape})"


def _natives() -> str:
    return ", ".join(name for name, dtype in DTYPES.items() if dtype.native)
