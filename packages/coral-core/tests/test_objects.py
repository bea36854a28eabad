"""Trees, states, notes and commits: canonical bytes, strict reading, notes merged in."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from coral._digest import object_id
from coral.errors import CorruptObject, NewerFormat, UnsafeInput, UnsupportedValue
from coral.objects import (
    Note,
    State,
    TensorEntry,
    clean_metrics,
    clean_weights,
    decode_commit,
    decode_tree,
    encode_commit,
    encode_tree,
    is_id,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
FIELDS: dict[str, Any] = {
    "parents": [B],
    "tree": C,
    "state": None,
    "message": "first é",
    "time": 1.5,
    "nbytes": 12,
    "metadata": {"lr": 0.1, "tags": ("x",)},
    "training": {
        "step": 10,
        "run": "r",
        "epoch": 0,
        "experiment": "e",
        "previous": B,
        "resumed_from": C,
        "exact": False,
    },
    "metrics": {"loss": math.nan},
    "reasons": ["step", "best"],
}


def test_the_bytes_of_a_commit_are_part_of_the_format() -> None:
    data = encode_commit(**FIELDS)
    assert object_id("commit", data) == "cc338b40269217d7a0a383ec6ea308fecbb2172a07dd8c3432777c7a5059393e"


def test_the_bytes_of_a_tree_are_part_of_the_format() -> None:
    tree = {"b": TensorEntry("float32", (2, 3), 24, A), "a": TensorEntry("int64", (), 8, B)}
    data = encode_tree(tree)
    assert data == (
        f'{{"tensors":{{"a":{{"dtype":"int64","id":"{B}","shape":[]}},'
        f'"b":{{"dtype":"float32","id":"{A}","shape":[2,3]}}}}}}'.encode()
    )
    assert decode_tree(data, "t") == tree


def test_a_commit_comes_back() -> None:
    data = encode_commit(**FIELDS)
    commit = decode_commit(data, A)
    assert (commit.id, commit.parents, commit.tree, commit.state) == (A, (B,), C, None)
    assert (commit.message, commit.time, commit.nbytes) == ("first é", 1.5, 12)
    assert commit.metadata == {"lr": 0.1, "tags": ("x",)}
    assert math.isnan(commit.metrics["loss"])
    assert commit.reasons == ("best", "step")
    assert (commit.step, commit.epoch, commit.run, commit.experiment) == (10, 0, "r", "e")
    assert (commit.previous, commit.resumed_from, commit.exact, commit.pruned) == (B, C, False, False)


def test_a_commit_without_a_run() -> None:
    commit = decode_commit(encode_commit(**{**FIELDS, "training": {}, "state": A}), A)
    assert (commit.step, commit.epoch, commit.run, commit.experiment, commit.previous) == (None,) * 5
    assert commit.exact
    assert commit.state == A


def test_a_commit_with_the_largest_numbers_can_be_shown() -> None:
    numbers = (-((1 << 14_284) - 1), {(1 << 14_284) - 1: 0})
    commit = decode_commit(encode_commit(**{**FIELDS, "metadata": {"x": numbers}}), A)
    assert commit.metadata == {"x": numbers}
    assert str(numbers) in repr(commit)
    with pytest.raises(UnsupportedValue, match="an int at x"):
        encode_commit(**{**FIELDS, "training": {"x": 1 << 14_284}})


def test_a_commits_mappings_cannot_be_changed() -> None:
    commit = decode_commit(encode_commit(**FIELDS), A)
    with pytest.raises(TypeError):
        commit.metrics["x"] = 1.0  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        {"parents": ["x"]},
        {"parents": [1]},
        {"parents": None},
        {"parents": B},
        {"tree": "x"},
        {"tree": A.upper()},
        {"tree": None},
        {"state": "x"},
        {"state": 1},
        {"message": 1},
        {"message": None},
        {"time": "1"},
        {"time": True},
        {"time": 10**400},
        {"nbytes": 1.5},
        {"nbytes": True},
        {"metadata": []},
        {"metadata": {"$tuple": []}},
        {"metadata": {"a": {"$array": "x"}}},
        {"training": {"$x": 1}},
        {"metrics": {"a": "1"}},
        {"metrics": {"a": True}},
        {"metrics": {"a": None}},
        {"reasons": [1]},
        {"reasons": "best"},
        {"extra": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_malformed_commit(change: dict[str, Any]) -> None:
    fields = json.loads(encode_commit(**FIELDS)) | change
    with pytest.raises(CorruptObject):
        decode_commit(json.dumps(fields).encode(), A)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_commit_with_a_field_missing(field: str) -> None:
    fields = json.loads(encode_commit(**FIELDS))
    del fields[field]
    with pytest.raises(CorruptObject):
        decode_commit(json.dumps(fields).encode(), A)


@pytest.mark.parametrize("text", ["", "[]", "1", '{"tree":', "null"])
def test_what_is_no_object_at_all(text: str) -> None:
    for decode in (decode_tree, State.decode, decode_commit, lambda data, id: Note.decode(data, id, "n")):
        with pytest.raises(CorruptObject):
            decode(text.encode(), A)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"dtype": "float32", "id": A},
        {"dtype": "float32", "id": A, "shape": "3"},
        {"dtype": "float32", "id": A, "shape": [-1]},
        {"dtype": "float32", "id": A, "shape": [True]},
        {"dtype": "float32", "id": A, "shape": [1.0]},
        {"dtype": "float32", "id": A, "shape": [2**63]},
        {"dtype": "float32", "id": A, "shape": [2**32, 2**32]},
        {"dtype": "float32", "id": A, "shape": [1] * 65},
        {"dtype": "object", "id": A, "shape": []},
        {"dtype": "float32", "id": A[:-1], "shape": []},
        {"dtype": "float32", "id": A.upper(), "shape": []},
        {"dtype": "float32", "id": "../" + A[3:], "shape": []},
        {"dtype": "float32", "id": A, "shape": [], "more": 1},
        [],
        None,
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_malformed_tree(entry: Any) -> None:
    for decode, fields in ((decode_tree, {}), (State.decode, {"value": None})):
        with pytest.raises(CorruptObject):
            decode(json.dumps({"tensors": {"n": entry}, **fields}).encode(), "what")


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 1025])
def test_a_tree_with_an_unsafe_name(name: str) -> None:
    entry = {"dtype": "int8", "id": A, "shape": []}
    with pytest.raises(CorruptObject):
        decode_tree(json.dumps({"tensors": {name: entry}}).encode(), "what")


def test_tensors_in_pieces_are_for_a_newer_coral() -> None:
    with pytest.raises(NewerFormat):
        decode_tree(json.dumps({"tensors": {"n": {"pieces": []}}}).encode(), "what")


def test_a_state_keeps_the_order_of_keys() -> None:
    state = State({"z": 1, "a": 2}, {"t": TensorEntry("int8", (1,), 1, A)})
    assert (
        state.encode()
        == f'{{"tensors":{{"t":{{"dtype":"int8","id":"{A}","shape":[1]}}}},"value":{{"z":1,"a":2}}}}'.encode()
    )
    assert State.decode(state.encode(), "s") == state


def test_notes_come_back() -> None:
    note = Note({"loss": math.inf}, frozenset({"best", "late"}), True, A, {"step": 3, "t": (1,)}, 2.5)
    assert Note.decode(note.encode(B), B, "n") == note
    assert Note.decode(Note(time=1.0).encode(B), B, "n") == Note(time=1.0)
    text = f'{{"commit":"{B}","time":1,"from the future":[]}}'
    assert Note.decode(text.encode(), B, "n") == Note(time=1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"commit": B},
        {"commit": None},
        {"time": "1"},
        {"time": None},
        {"time": 10**400},
        {"state": "x"},
        {"state": 5},
        {"pruned": 1},
        {"metrics": []},
        {"metrics": {"a": "b"}},
        {"reasons": "x"},
        {"reasons": [1]},
        {"training": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_malformed_note(change: dict[str, Any]) -> None:
    fields = {"commit": A, "time": 1.0}
    Note.decode(json.dumps(fields).encode(), A, "n")
    with pytest.raises(CorruptObject):
        Note.decode(json.dumps(fields | change).encode(), A, "n")


def test_notes_are_merged_by_their_time() -> None:
    commit = decode_commit(encode_commit(**FIELDS), A)
    late = Note({"loss": 3.0}, frozenset({"x"}), state=B, training={"step": 11}, time=2.0)
    early = Note({"loss": 2.0, "acc": 1.0}, frozenset({"y"}), True, state=C, training={"step": 12}, time=1.0)
    found = commit.annotated([late, early])
    assert found.metrics == {"loss": 3.0, "acc": 1.0}
    assert found.reasons == ("best", "step", "x", "y")
    assert (found.pruned, found.state, found.step) == (True, B, 11)
    assert commit.annotated([]) is commit
    assert commit.metrics.keys() == {"loss"}


@pytest.mark.parametrize("text", [A, "0123456789abcdef" * 4])
def test_ids(text: str) -> None:
    assert is_id(text)
    for bad in (text[:-1], text + "0", text.upper().replace("0", "G"), text[:-1] + "\n", 5, None, text.encode()):
        assert not is_id(bad)


def test_metrics_are_floats() -> None:
    found = clean_metrics({"a": 1, "b": np.float32(0.5), "c": np.array(2.0), "d": math.nan})
    assert all(type(value) is float for value in found.values())
    assert found["b"] == 0.5


@pytest.mark.parametrize(
    "value", [None, "x", "0.5", b"1", True, [1], object(), 1j, np.ones(2), 10**400], ids=lambda v: str(v)[:20]
)
def test_a_metric_that_is_no_number(value: object) -> None:
    with pytest.raises(UnsafeInput, match="'loss'"):
        clean_metrics({"loss": value})


def test_an_error_in_weights_names_the_tensor() -> None:
    with pytest.raises(TypeError, match=r"tensor 'layer\.x'"):
        clean_weights({"layer.x": np.array(["a"])})
