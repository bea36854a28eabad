"""Whatever a training state is made of comes back as it was, in type and bit, and no JSON makes the reader stumble."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from coral import _json
from coral.errors import CoralError, CorruptObject
from coral.objects import Note, State, decode_commit, decode_tree
from coral.state import flatten, unflatten
from coral.weights import DTYPES, WeightTensor

trips = settings(max_examples=200, deadline=None)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack(">d", bits.to_bytes(8, "big"))[0])
NATIVE = [np.dtype(d.carrier) for d in DTYPES.values() if d.native]
ARRAYS = arrays.arrays(
    st.sampled_from(NATIVE), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), fill=st.nothing()
)
SCALARS = arrays.arrays(st.sampled_from(NATIVE), ()).map(lambda a: a[()])
RAW = st.binary(max_size=16).map(
    lambda data: WeightTensor(np.frombuffer(data[: len(data) // 2 * 2], np.uint16), dtype="bfloat16")
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**53 - 2, 2**53 + 2),
    FLOATS,
    st.sampled_from([0.0, -0.0, float("inf")]),
    TEXT,
    st.binary(max_size=8),
    ARRAYS,
    SCALARS,
    RAW,
)
KEYS = st.one_of(TEXT, st.integers(), TEXT.map("$".__add__), st.sampled_from(["$tuple", "$int", "$dict", "a/b", "a"]))
STATES = st.recursive(
    LEAVES,
    lambda child: st.one_of(
        st.lists(child, max_size=4), st.lists(child, max_size=4).map(tuple), st.dictionaries(KEYS, child, max_size=4)
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Whether two states are the same in type, order and bit."""
    if type(a) is not type(b):
        return False
    match a:
        case float():
            return struct.pack(">d", a) == struct.pack(">d", b)
        case np.ndarray() | np.generic():
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        case WeightTensor():
            return a.dtype == b.dtype and same(a.data, b.data)
        case list() | tuple():
            return len(a) == len(b) and all(map(same, a, b))
        case dict():
            return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@trips
@given(STATES)
def test_a_state_comes_back_as_it_was(value: Any) -> None:
    tensors: dict[str, WeightTensor] = {}
    data = _json.dumps(flatten(value, tensors), sort=False)
    found = unflatten(
        _json.loads(data, "test"), lambda name: WeightTensor(tensors[name].data.copy(), tensors[name].dtype)
    )
    assert same(found, value)


@trips
@given(STATES)
def test_flattening_twice_gives_the_same_bytes(value: Any) -> None:
    one: dict[str, WeightTensor] = {}
    two: dict[str, WeightTensor] = {}
    assert _json.dumps(flatten(value, one), sort=False) == _json.dumps(flatten(value, two), sort=False)
    assert list(one) == list(two)


TAGS = st.sampled_from(["$tuple", "$int", "$float", "$bytes", "$dict", "$array", "$scalar", "$tensor", "$new", "a", ""])
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
    ),
    lambda child: st.one_of(
        st.lists(child, max_size=3), st.dictionaries(st.one_of(TAGS, st.text(max_size=3)), child, max_size=3)
    ),
    max_leaves=12,
)


@trips
@given(JSON)
def test_no_json_makes_the_reader_stumble(value: Any) -> None:
    tensors = {"a": WeightTensor(np.ones(2)), "": WeightTensor(np.array(1.0))}
    try:
        unflatten(value, tensors.__getitem__)
    except CorruptObject:
        pass


def decode_note(data: bytes, commit: str) -> Note:
    return Note.decode(data, commit, "a note")


@trips
@given(st.one_of(st.binary(max_size=64), JSON.map(lambda value: json.dumps(value).encode())))
def test_no_bytes_make_a_decoder_stumble(data: bytes) -> None:
    for decode in (decode_tree, State.decode, decode_note, decode_commit):
        try:
            decode(data, "a" * 64)
        except CoralError:
            pass


ENTRY = {"dtype": "int8", "id": "a" * 64, "shape": [1]}
FIELDS: dict[str, Any] = {"message": "m", "metadata": {}, "metrics": {}, "nbytes": 0, "parents": [], "reasons": []}
FIELDS |= {"state": None, "time": 1.0, "training": {}, "tree": "a" * 64, "pruned": False, "value": None}
FIELDS |= {"tensors": {"n": ENTRY}, "commit": "a" * 64}
SHAPES = {
    decode_commit: [
        "message",
        "metadata",
        "metrics",
        "nbytes",
        "parents",
        "reasons",
        "state",
        "time",
        "training",
        "tree",
    ],
    decode_note: ["commit", "time", "metrics", "reasons", "pruned", "state", "training"],
    State.decode: ["tensors", "value"],
    decode_tree: ["tensors"],
}


@trips
@given(st.data())
def test_no_field_makes_a_decoder_stumble(data: st.DataObject) -> None:
    decode: Any = data.draw(st.sampled_from(list(SHAPES)))
    fields = {name: FIELDS[name] for name in SHAPES[decode]}
    huge = st.integers(min_value=10**310)
    fields[data.draw(st.sampled_from(SHAPES[decode]))] = data.draw(
        st.one_of(JSON, huge, st.dictionaries(TAGS, JSON, max_size=2))
    )
    try:
        decode(json.dumps(fields).encode(), "a" * 64)
    except CoralError:
        pass
