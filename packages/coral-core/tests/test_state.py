"""Nested training state: types and bits come back as they were, and nothing else comes in."""

from __future__ import annotations

import collections
import datetime
import enum
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral import _json
from coral.errors import CoralError, CorruptObject, LimitExceeded, UnsupportedValue
from coral.state import flatten, plain, unflatten
from coral.weights import WeightTensor


def through(value: Any) -> Any:
    """The value after a trip through its bytes."""
    tensors: dict[str, WeightTensor] = {}
    data = _json.dumps(flatten(value, tensors), sort=False)
    return unflatten(_json.loads(data, "test"), tensors.__getitem__)


def nan(bits: int) -> float:
    return struct.unpack(">d", bits.to_bytes(8, "big"))[0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        1,
        -7,
        2**53 - 1,
        2**53,
        -(2**53),
        2**64 - 1,
        -(2**200),
        0.0,
        1.5,
        0.1,
        5e-324,
        "",
        "text π \n \x00 ",
        b"",
        b"\x00\xff",
        [],
        [1, [2, []]],
        (),
        (1,),
        ((), [()]),
        {},
        {"a": 1, "b": {"c": (1, 2.0)}},
        {0: "int", 1: {2: [3]}},
        {"0": "str", 0: "int"},
        {"$tuple": [1]},
        {"$": 1, "x": {"$int": "5"}},
        {2**70: 1, -1: 2},
    ],
    ids=repr,
)
def test_values_come_back_as_they_were(value: Any) -> None:
    found = through(value)
    assert repr(found) == repr(value)
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "bits", [0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000001, 0xFFF8DEADBEEF0001, 1 << 63]
)
def test_floats_keep_every_bit(bits: int) -> None:
    assert struct.pack(">d", through({"x": nan(bits)})["x"]) == bits.to_bytes(8, "big")


@pytest.mark.parametrize("bits", [52, 53, 54, 64, 14_284, 14_290, 100_000])
def test_an_int_that_can_be_written_can_be_read(bits: int) -> None:
    """Python itself refuses to print more than 4,300 digits."""
    for value in (1 << bits, -(1 << bits), (1 << bits) - 1, 1 - (1 << bits)):
        assert through([value]) == [value]


def test_the_order_of_keys_is_kept() -> None:
    value = {"z": 1, "a": 2, "m": {5: 0, 3: 1}}
    found = through(value)
    assert list(found) == ["z", "a", "m"]
    assert list(found["m"]) == [5, 3]


@pytest.mark.parametrize(
    "scalar",
    [np.float32(1.1), np.float64(0.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1 + 2j)],
    ids=lambda s: s.dtype.name,
)
def test_numpy_scalars_keep_their_type(scalar: np.generic) -> None:
    found = through([scalar])[0]
    assert type(found) is type(scalar)
    assert found.tobytes() == scalar.tobytes()


def test_arrays_and_tensors(assert_bits: Callable[..., None]) -> None:
    value = {
        "exp_avg": np.array([1.5, np.nan, -0.0], np.float32),
        "empty": np.zeros((0, 2), np.int16),
        "zero_d": np.array(3, np.int64),
        "strided": np.arange(12).reshape(3, 4).T,
        "bf16": WeightTensor(np.array([1, 0x7FC1], np.uint16), dtype="bfloat16"),
    }
    found = through({"state": {0: value}})["state"][0]
    for name in ("exp_avg", "empty", "zero_d", "strided"):
        assert type(found[name]) is np.ndarray
        assert_bits(found[name], value[name])
    assert isinstance(found["bf16"], WeightTensor)
    assert found["bf16"].dtype == "bfloat16"
    assert_bits(found["bf16"], value["bf16"])


def test_tensors_are_named_by_where_they_stand_and_never_clash() -> None:
    tensors: dict[str, WeightTensor] = {}
    flatten({"a/b": np.array(1), "a": {"b": np.array(2)}, "a/b#2": np.array(3), "\0": np.array(4)}, tensors)
    assert {name: int(t.data) for name, t in tensors.items()} == {"a/b": 1, "a/b#2": 2, "a/b#2#3": 3, "value": 4}


def test_names_of_tensors_are_short_however_deep_they_stand() -> None:
    tensors: dict[str, WeightTensor] = {}
    flatten({"é" * 1000: [np.array(1), np.array(2)]}, tensors)
    assert len(tensors) == 2
    assert all(len(name.encode()) <= 1024 for name in tensors)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"opt": {"fn": print}}, "opt/fn"),
        ({"a": [1, (2, {3})]}, "a/1/1"),
        (object(), "the top"),
        ({"t": datetime.timedelta(1)}, "t"),
        ({"e": Colour.RED}, "e"),
        ({"c": 1j}, "c"),
        ({"d": collections.deque()}, "d"),
        ({"x": {"y": {1.5: 0}}}, "x/y"),
        ({"x": {None: 0}}, "x"),
        ({"x": {True: 0}}, "x"),
        ({"x": {(1, 2): 0}}, "x"),
        ({"a": np.array([None])}, "a"),
        ({"a": np.array(["x"])}, "a"),
        ({"a": np.longdouble(1)}, "a"),
        ({"a": np.str_("x")}, "a"),
        ({"a": np.datetime64("2020")}, "a"),
        ({"a": bytearray(b"x")}, "a"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_stored_is_named_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(UnsupportedValue, match="at " + path) as caught:
        flatten(value, {})
    assert caught.value.path == path


def test_a_value_that_contains_itself() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = [loop]
    with pytest.raises(LimitExceeded, match="contain itself"):
        flatten(loop, {})


def test_plain_values_hold_no_tensors() -> None:
    with pytest.raises(UnsupportedValue) as caught:
        flatten({"a": [np.array(1)]}, None)
    assert caught.value.path == "a/0"


BAD = [
    '{"$tuple":1}',
    '{"$tuple":[],"x":1}',
    '{"$int":5}',
    '{"$int":"x"}',
    '{"$int":""}',
    '{"$int":"-"}',
    '{"$int":"0x1f"}',
    '{"$int":"1_0"}',
    '{"$int":" 1"}',
    '{"$int":"FF"}',
    '{"$int":"1\\n"}',
    '{"$float":"00"}',
    '{"$float":"zz"}',
    '{"$bytes":"*"}',
    '{"$bytes":"a"}',
    '{"$bytes":"\\u00e9"}',
    '{"$dict":[[1]]}',
    '{"$dict":[1]}',
    '{"$dict":[[1,2,3]]}',
    '{"$dict":[[[],2]]}',
    '{"$dict":[[true,2]]}',
    '{"$dict":[[1.5,2]]}',
    '{"$dict":{}}',
    '{"$array":"gone"}',
    '{"$array":1}',
    '{"$scalar":"two"}',
    '{"$tensor":"gone"}',
    '{"$unknown":1}',
    '{"a":{"$x":[]}}',
    '{"$":1}',
]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:24])
def test_tags_that_make_no_sense(text: str) -> None:
    tensors = {"two": WeightTensor(np.ones(2))}
    with pytest.raises(CorruptObject, match="some state"):
        unflatten(json.loads(text), tensors.__getitem__, "some state")


def test_state_that_is_nested_deeply_is_no_foreign_error() -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    with pytest.raises(CoralError):
        unflatten(value, {}.__getitem__)


def test_plain_wants_a_mapping() -> None:
    assert plain({"a": {"$int": "1f"}}, "x") == {"a": 31}
    for bad in ([], 1, {"$tuple": []}, {"a": {"$array": "n"}}):
        with pytest.raises(CorruptObject):
            plain(bad, "x")
