"""The strict reader and the canonical writer of JSON."""

from __future__ import annotations

import math

import pytest

from coral import _json
from coral.errors import CorruptObject, LimitExceeded, UnsafeInput


def test_one_form_for_one_value() -> None:
    assert _json.dumps({"b": [1, 2.5, None, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,null,true]}'.encode()
    assert _json.dumps({"b": 1, "a": 2}, sort=False) == b'{"b":1,"a":2}'


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 2**53, -(2**60), "\u2028", "", [], {}])
def test_round_trip(value: object) -> None:
    found = _json.loads(_json.dumps(value), "test")
    assert repr(found) == repr(value)


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["a", "\ud83d"]])
def test_lone_surrogates_are_not_written(value: object) -> None:
    with pytest.raises(UnsafeInput, match="surrogate"):
        _json.dumps(value)


def test_what_is_written_is_bounded() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(LimitExceeded, match="deep"):
        _json.dumps(deep)
    with pytest.raises(LimitExceeded, match="limit"):
        _json.dumps("x" * _json.MAX_BYTES)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _json.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1',
        b"{'a':1}",
        b'{"a":1}x',
        b"\xff",
        b'"\x01"',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'{"a":1,"a":1}',
        b'[{"b":{"a":1,"a":2}}]',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 5000,
        b"\xef\xbb\xbf{}",
        b"{}\0",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bad_json_is_a_corrupt_object_that_names_its_source(data: bytes) -> None:
    with pytest.raises(CorruptObject, match="the source"):
        _json.loads(data, "the source")


def test_what_is_read_is_bounded() -> None:
    with pytest.raises(CorruptObject, match="limit"):
        _json.loads(b" " * (_json.MAX_BYTES + 1), "test")


@pytest.mark.parametrize("text", [b'{"a":"\\ud800"}', b'{"\\uDFFF":1}', b'["\\ud83d\\u0041"]'])
def test_half_a_character_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptObject):
        _json.loads(text, "it")
    assert _json.loads(b'["\\ud83d\\ude00"]', "it") == ["\N{GRINNING FACE}"]
