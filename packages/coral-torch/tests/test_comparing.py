"""How a model differs from weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from coral.errors import UnsupportedValue
from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.integrations.pytorch import compare_model_weights
from coral.integrations.pytorch._tensors import NAMES


def one(tensor):
    model = nn.Module()
    model.register_buffer("w", tensor)
    return model


def cosine(mine, its):
    return compare_model_weights(one(mine), {"w": its})["similarity"]["w"]


def test_a_model_is_identical_to_its_own_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = list(model.state_dict())
    assert compare_model_weights(model, Pt.model_to_weights(model)) == {
        "identical": names,
        "modified": [],
        "model_only": [],
        "coral_only": [],
        "similarity": dict.fromkeys(names, 1.0),
        "is_identical": True,
    }


def test_every_difference_is_found():
    model = nn.ParameterDict(
        {"a": torch.ones(2), "b": torch.tensor([3.0, 4.0]), "c": torch.ones(2), "d": torch.ones(3)}
    )
    weights = {"a": torch.ones(2), "b": torch.tensor([4.0, 3.0]), "d": torch.ones(1, 3), "e": torch.ones(1)}
    found = compare_model_weights(model, weights)
    assert (found["identical"], found["modified"]) == (["a"], ["b", "d"])
    assert (found["model_only"], found["coral_only"], found["is_identical"]) == (["c"], ["e"], False)
    assert found["similarity"] == {"a": 1.0, "b": pytest.approx(24 / 25)}  # those of another shape have none


@pytest.mark.parametrize(("mine", "its"), [(torch.zeros(1), -torch.zeros(1)), (torch.ones(2), torch.ones(2).double())])
def test_equal_numbers_of_other_bits_are_modified(mine, its):
    found = compare_model_weights(one(mine), {"w": its})
    assert (found["modified"], found["similarity"], found["is_identical"]) == (["w"], {"w": 1.0}, False)


def test_a_weight_more_or_less_is_not_identical():
    assert not compare_model_weights(one(torch.ones(1)), {"w": torch.ones(1), "x": torch.ones(1)})["is_identical"]
    assert not compare_model_weights(one(torch.ones(1)), {})["is_identical"]


def test_a_nan_is_identical_to_itself_and_alike_to_nothing():
    nan = torch.tensor([math.nan, 1.0])
    assert compare_model_weights(one(nan), {"w": nan.clone()})["is_identical"]
    assert math.isnan(cosine(nan, torch.ones(2)))


def test_the_cosine_is_that_of_all_elements():
    mine, its = torch.randn(3, 1 << 20), torch.randn(3, 1 << 20)  # of several pieces
    a, b = mine.double().flatten(), its.double().flatten()
    assert cosine(mine, its) == pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-12)
    assert cosine(mine, -mine) == pytest.approx(-1)
    assert cosine(torch.zeros(2), torch.ones(2)) == 0.0


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_the_cosine_of_the_smallest_and_of_the_largest_is_one(size):
    mine = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert cosine(mine * size, mine) == pytest.approx(1)


def test_the_cosine_of_complex_weights_is_that_of_their_parts():
    assert cosine(torch.tensor([3 + 4j]), torch.tensor([4 + 3j])) == pytest.approx(24 / 25)


@pytest.mark.parametrize("dtype", NAMES)
def test_weights_of_every_dtype_are_compared(dtype):
    bits = torch.ones(16, dtype=torch.uint8)
    mine, its = bits.view(dtype), (bits + bits).view(dtype) if dtype is not torch.bool else ~bits.view(dtype)
    found = compare_model_weights(one(mine), {"w": its})
    assert found["modified"] == ["w"]
    assert found["similarity"].keys() == ({"w"} if NAMES[dtype] != "float4_e2m1fn_x2" else set())  # it has no numbers


def test_one_name_of_a_tied_weight_is_enough_here_too():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    found = compare_model_weights(model, {"module.b.weight": model["a"].weight.detach().numpy().copy()})
    assert found["identical"] == ["a.weight", "b.weight"]
    assert found["is_identical"]


def test_a_model_without_memory_cannot_be_compared():
    with pytest.raises(UnsupportedValue, match="weight"):
        compare_model_weights(nn.Linear(1, 1, device="meta"), {"weight": np.ones((1, 1), np.float32)})
