"""WeightTensor, and the checks of names and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coral import WeightTensor
from coral.errors import LimitExceeded, UnsafeInput, UnsupportedValue
from coral.weights import DTYPE_BY_CODE, DTYPES, MAX_BYTES, check_name, check_shape


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.native])
def test_a_native_dtype_is_known_by_its_own_name(name: str) -> None:
    tensor = WeightTensor(np.zeros((2, 3), np.dtype(name)))
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (name, (2, 3), 6 * np.dtype(name).itemsize)


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if not dtype.native])
def test_a_foreign_dtype_is_carried_as_raw_bits(name: str) -> None:
    bits = np.arange(6, dtype=DTYPES[name].carrier)
    tensor = WeightTensor(bits, dtype=name)
    assert tensor.dtype == name
    assert tensor.data is bits
    assert tensor.nbytes == bits.nbytes


def test_codes_and_item_sizes_are_part_of_the_format() -> None:
    assert {name: (dtype.code, dtype.itemsize) for name, dtype in DTYPES.items()} == {
        "float64": (1, 8),
        "float32": (2, 4),
        "float16": (3, 2),
        "bfloat16": (4, 2),
        "float8_e4m3fn": (5, 1),
        "float8_e4m3fnuz": (6, 1),
        "float8_e5m2": (7, 1),
        "float8_e5m2fnuz": (8, 1),
        "float8_e8m0fnu": (9, 1),
        "float4_e2m1fn_x2": (10, 1),
        "complex32": (16, 4),
        "complex64": (17, 8),
        "complex128": (18, 16),
        "int8": (32, 1),
        "int16": (33, 2),
        "int32": (34, 4),
        "int64": (35, 8),
        "uint8": (36, 1),
        "uint16": (37, 2),
        "uint32": (38, 4),
        "uint64": (39, 8),
        "bool": (40, 1),
    }
    assert len(DTYPE_BY_CODE) == len(DTYPES)


@pytest.mark.parametrize(
    "data",
    [
        np.array([None]),
        np.array(["a"]),
        np.array([b"a"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([1], "m8[s]"),
        np.zeros(1, [("a", "f4")]),
        np.zeros(1, np.longdouble),
        np.zeros(1, "V4"),
        [1.0],
        1.0,
        None,
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused(data: Any) -> None:
    with pytest.raises(UnsupportedValue):
        WeightTensor(data)


def test_a_masked_array_is_refused() -> None:
    """Its mask would be lost."""
    with pytest.raises(UnsupportedValue):
        WeightTensor(np.ma.array([1.0, 2.0], mask=[False, True]))


@pytest.mark.parametrize(
    ("dtype", "carrier"), [("bfloat16", "f4"), ("float32", "f8"), ("complex32", "u2"), ("x", "f4")]
)
def test_the_carrier_must_fit_the_dtype(dtype: str, carrier: str) -> None:
    with pytest.raises(UnsupportedValue):
        WeightTensor(np.zeros(2, carrier), dtype=dtype)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "u8", "c8", "c16"])
def test_big_endian_input_keeps_its_bits(kind: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, 64 * np.dtype(kind).itemsize, np.uint8)  # NaN payloads among them
    little = raw.view("<" + kind)
    width = np.dtype(kind).itemsize // (2 if kind[0] == "c" else 1)
    big = raw.reshape(-1, width)[:, ::-1].copy().reshape(-1).view(">" + kind)
    assert WeightTensor(big).bytes().tobytes() == little.tobytes()
    assert WeightTensor(big).id == WeightTensor(little).id


def test_bytes_are_in_c_order_whatever_the_strides() -> None:
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    for view in (base.T, base[::2], base[:, ::-1], np.asfortranarray(base), np.broadcast_to(base[0], (3, 6))):
        assert WeightTensor(view).bytes().tobytes() == view.tobytes("C")
        assert WeightTensor(view).id == WeightTensor(view.copy()).id


def test_bytes_of_contiguous_data_are_a_view() -> None:
    data = np.ones(10, np.float32)
    assert np.shares_memory(WeightTensor(data).bytes(), data)


@pytest.mark.parametrize("data", [np.float32(2.5), np.array(2.5), np.zeros((0, 3), np.int8), np.zeros((3, 0, 2))])
def test_scalars_and_empty_tensors(data: Any) -> None:
    tensor = WeightTensor(data)
    assert tensor.shape == data.shape
    assert tensor.bytes().tobytes() == data.tobytes()


def test_ids_are_part_of_the_format() -> None:
    small = WeightTensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    large = WeightTensor(np.arange(600_000, dtype=np.float32))
    assert small.id == "25ec19bb30b02f704012e7b5d29ee99fa198f106c844edba3e261881eb4ec195"
    assert large.id == "9bea05ccda55af1459caede0aa8ec267199445284dc24676c8fa05faa2a5057f"


def test_the_id_depends_on_bits_dtype_and_shape() -> None:
    data = np.arange(6, dtype=np.uint8)
    ids = {
        WeightTensor(data).id,
        WeightTensor(data.reshape(2, 3)).id,
        WeightTensor(data.reshape(3, 2)).id,
        WeightTensor(data.view(np.int8)).id,
        WeightTensor(data, dtype="float8_e5m2").id,
        WeightTensor(data[::-1].copy()).id,
        WeightTensor(np.array(0, np.uint8)).id,
        WeightTensor(np.array([0], np.uint8)).id,
    }
    assert len(ids) == 8
    assert WeightTensor(np.array(0.0)).id != WeightTensor(np.array(-0.0)).id


@pytest.mark.parametrize("name", ["a", "layers.0/weight", "π", "x" * 1024, "é" * 512, "..", "/etc/passwd", "a\nb", " "])
def test_names_are_data(name: str) -> None:
    assert check_name(name) == name


LONG = ["x" * 20_000 + "\0", "\ud800" * 20_000, ["x"] * 20_000]


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", 1, None, b"a", ("a",), *LONG], ids=lambda name: repr(name)[:20])
def test_unsafe_names(name: object) -> None:
    with pytest.raises(UnsafeInput, match="tensor name") as caught:
        check_name(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["x" * 1025, "é" * 513])
def test_names_have_a_limit(name: str) -> None:
    with pytest.raises(LimitExceeded, match="1024"):
        check_name(name)


def test_shapes() -> None:
    assert check_shape([2, 3], "float32") == ((2, 3), 24)
    assert check_shape([], "float64") == ((), 8)
    assert check_shape([0, 2**40], "uint8") == ((0, 2**40), 0)
    assert check_shape([1] * 64, "uint8") == ((1,) * 64, 1)


@pytest.mark.parametrize("shape", [[-1], [1.0], [True], ["1"], "12", None, {}, [1] * 65, 3, [None]])
def test_shapes_that_are_none(shape: object) -> None:
    with pytest.raises(UnsafeInput):
        check_shape(shape, "float32")


@pytest.mark.parametrize("shape", [[2**32, 2**32], [2**63], [0, 2**63], [2**62, 2], [2**31] * 64])
def test_shapes_never_wrap_around(shape: list[int]) -> None:
    with pytest.raises(LimitExceeded):
        check_shape(shape, "uint8")
    assert MAX_BYTES == 2**63 - 1


def test_an_unknown_dtype_is_never_looked_up() -> None:
    with pytest.raises(UnsafeInput, match="unknown dtype"):
        check_shape([1], "object")


def test_a_stored_tensor_is_read_once_and_only_when_asked_for() -> None:
    reads: list[int] = []

    def read() -> Any:
        reads.append(1)
        return np.ones(3)

    tensor = WeightTensor.stored("float64", (3,), 24, "0" * 64, read)
    assert (tensor.shape, tensor.nbytes, tensor.id, reads) == ((3,), 24, "0" * 64, [])
    assert tensor.data is tensor.data
    assert reads == [1]
    assert repr(tensor) == "WeightTensor(float64, shape=(3,))"
