"""Nested state with tensors in it."""

import numpy as np
import pytest
import torch

from coral import WeightTensor
from coral.errors import UnsupportedValue
from coral.integrations.pytorch._state import decode, encode, fresh

VALUE = {
    "plain": [None, True, 3, 2**70, 0.5, float("inf"), "text", b"bytes"],
    3: ("a", [1, (2,)]),
    "tensors": {0: torch.ones(2, dtype=torch.bfloat16), 1: [torch.tensor(7), None]},
    "array": np.arange(3),
}


def test_types_come_back_intact():
    back = decode(encode(VALUE, "state", fresh))
    assert list(back) == list(VALUE)
    assert back["plain"] == VALUE["plain"]
    assert [type(item) for item in back["plain"]] == [type(item) for item in VALUE["plain"]]
    assert back[3] == ("a", [1, (2,)])
    assert back["tensors"][0].dtype is torch.bfloat16
    assert back["tensors"][1][0].shape == ()
    assert back["tensors"][1][1] is None
    assert isinstance(back["array"], np.ndarray)


def test_a_repository_can_hold_it():
    from coral.state import flatten, unflatten

    tensors: dict[str, WeightTensor] = {}
    plain = flatten(encode(VALUE, "state", fresh), tensors)
    assert decode(unflatten(plain, tensors.__getitem__))["tensors"][0].dtype is torch.bfloat16


def test_neither_way_shares_memory():
    live = {"t": torch.zeros(2), "a": np.zeros(2), "l": [1]}
    encoded = encode(live, "state", fresh)
    decoded = decode(encoded)
    live["t"] += 1
    live["a"] += 1
    live["l"].append(2)
    decoded["t"] += 2
    decoded["a"] += 2
    assert encoded["t"].data.tolist() == encoded["a"].tolist() == [0, 0]
    assert encoded["l"] == [1]


@pytest.mark.parametrize("value", [{1, 2}, object(), torch.float32, lambda: None])
def test_what_would_need_pickle_is_named(value):
    with pytest.raises(UnsupportedValue, match=r"optimizer\.state\.0\.1 is a .*without pickle") as caught:
        encode({"state": {0: [1, value]}}, "optimizer", fresh)
    assert caught.value.path == "optimizer.state.0.1"


def test_a_tensor_that_cannot_be_stored_is_named():
    with pytest.raises(UnsupportedValue, match=r"optimizer\.m: .*dense"):
        encode({"m": torch.eye(2).to_sparse()}, "optimizer", fresh)
