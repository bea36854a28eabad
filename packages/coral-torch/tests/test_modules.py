"""Models to weights, and weights into models that are in use."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from coral import WeightTensor
from coral.errors import UnsupportedValue, WeightsMismatch
from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.integrations.pytorch import to_weight
from coral.integrations.pytorch._loading import load_weights
from coral.integrations.pytorch._modules import tied_groups, unwrapped


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class Extra(nn.Module):
    """A module with extra state of its own."""

    def __init__(self, extra):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def noise(model):
    """A copy of the model with other values in every parameter and buffer."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(torch.randint(2, 9, tensor.shape))
    return model


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_module_whose_state_dict_takes_no_options_is_named():
    class Own(nn.Linear):
        def state_dict(self):
            return super().state_dict()

    with pytest.raises(UnsupportedValue, match=r"Own\.state_dict takes no keep_vars"):
        Pt.model_to_weights(Own(2, 2))


def test_parameters_and_buffers_of_every_shape_come_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # which counts its batches in a 0-d buffer
    model.register_buffer("empty", torch.zeros(0, 3))
    other = noise(model)
    weights = Pt.model_to_weights(model)
    assert weights.keys() == model.state_dict().keys()
    assert weights["1.num_batches_tracked"].shape == ()
    report = Pt.weights_to_model(weights, other)
    assert same(model, other)
    assert report == {
        "loaded": list(weights),
        "missing": [],
        "unexpected": [],
        "mismatched": {},
        "matched": len(weights),
    }


def test_weights_are_copies():
    model = nn.Linear(2, 2)
    weights = Pt.model_to_weights(model)
    before = weights["weight"].data.copy()
    with torch.no_grad():
        model.weight.add_(1)
    assert np.array_equal(weights["weight"].data, before)


def test_loading_keeps_the_parameters_an_optimizer_holds():
    model = nn.Linear(2, 2)
    parameter = model.weight
    Pt.weights_to_model(Pt.model_to_weights(noise(model)), model)
    assert model.weight is parameter
    assert parameter.requires_grad


def test_the_model_does_not_share_memory_with_what_was_loaded():
    model = nn.Linear(2, 2)
    weights = Pt.model_to_weights(noise(model))
    before = weights["weight"].data.copy()
    Pt.weights_to_model(weights, model)
    with torch.no_grad():
        model.weight.add_(1)
    assert np.array_equal(weights["weight"].data, before)


def test_everything_that_does_not_fit_is_listed_and_nothing_is_touched():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model)
    weights = Pt.model_to_weights(noise(model))
    del weights["0.bias"]
    weights["more"] = WeightTensor(np.zeros(1, np.float32))
    weights["1.bias"] = WeightTensor(np.zeros(3, np.float32))
    weights["1.weight"] = WeightTensor(np.zeros((2, 2)))
    with pytest.raises(WeightsMismatch) as caught:
        Pt.weights_to_model(weights, model)
    assert caught.value.missing == ["0.bias"]
    assert caught.value.unexpected == ["more"]
    assert caught.value.mismatched == {
        "1.bias": ("float32 (2,)", "float32 (3,)"),
        "1.weight": ("float32 (2, 2)", "float64 (2, 2)"),
    }
    assert all(name in str(caught.value) for name in ["0.bias", "more", "1.bias", "1.weight"])
    assert same(model, before)


def test_without_strict_what_fits_is_loaded_and_the_rest_reported():
    model = nn.Linear(2, 2)
    other = noise(model)
    weights = {"weight": Pt.model_to_weights(other)["weight"], "more": WeightTensor(np.zeros(1))}
    report = Pt.weights_to_model(weights, model, strict=False)
    assert torch.equal(model.weight, other.weight)
    assert (report["loaded"], report["missing"], report["unexpected"]) == (["weight"], ["bias"], ["more"])


@pytest.mark.parametrize(("have", "got"), [((), (1,)), ((1,), ()), ((2, 3), (3, 2)), ((2, 3), (6,)), ((3, 2), (1, 2))])
def test_nothing_is_reshaped_or_broadcast(have, got):
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(have))})
    with pytest.raises(WeightsMismatch):
        Pt.weights_to_model({"w": WeightTensor(np.ones(got, np.float32))}, model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int32])
def test_nothing_is_cast(dtype):
    with pytest.raises(WeightsMismatch, match="weight"):
        Pt.weights_to_model({"weight": to_weight(torch.zeros(2, 2, dtype=dtype))}, nn.Linear(2, 2, bias=False))


def test_tied_weights_have_both_names_and_stay_tied():
    model = Tied()
    assert tied_groups(model.state_dict()) == [["embed.weight", "head.weight"]]
    weights = Pt.model_to_weights(noise(model))
    assert weights.keys() == {"embed.weight", "head.weight"}
    Pt.weights_to_model(weights, model)
    assert model.head.weight is model.embed.weight
    assert np.array_equal(model.head.weight.detach().numpy(), weights["embed.weight"].data)


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_one_name_of_a_tied_weight_is_enough(name):
    model, other = Tied(), noise(Tied())
    report = Pt.weights_to_model({name: Pt.model_to_weights(other)[name]}, model)
    assert same(model, other)
    assert (report["missing"], report["matched"]) == ([], 1)


def test_a_tied_weight_cannot_be_given_two_values():
    weights = Pt.model_to_weights(Tied())
    weights["head.weight"] = Pt.model_to_weights(noise(Tied()))["head.weight"]
    with pytest.raises(WeightsMismatch, match=r"tied to embed\.weight"):
        Pt.weights_to_model(weights, Tied())


def test_a_tied_nan_is_equal_to_itself():
    model = Tied()
    with torch.no_grad():
        model.embed.weight[0, 0] = torch.nan
    assert Pt.weights_to_model(Pt.model_to_weights(model), Tied())["matched"] == 2


def test_an_extra_state_that_is_a_tensor_is_a_weight():
    weights = Pt.model_to_weights(Extra(torch.tensor([7, 8])))
    assert weights.keys() == {"w", "_extra_state"}
    model = Extra(torch.tensor([0]))  # of another shape: its setter is asked, not its shape
    Pt.weights_to_model(weights, model)
    assert model.extra.tolist() == [7, 8]


def test_another_extra_state_is_left_out_of_weights_with_a_warning():
    with pytest.warns(UserWarning, match="left out: _extra_state"):
        weights = Pt.model_to_weights(Extra({"a": 1}))
    assert weights.keys() == {"w"}
    model = Extra({"a": 2})
    with pytest.warns(UserWarning, match="keeps its own: _extra_state"):
        Pt.weights_to_model(weights, model)
    assert model.extra == {"a": 2}


def test_extra_state_from_the_training_state_is_set():
    model = Extra({"a": 2})
    load_weights(model, {"w": to_weight(torch.ones(2))}, extra={"_extra_state": {"a": 1}})
    assert model.extra == {"a": 1}
    with pytest.raises(WeightsMismatch, match="missing: _extra_state"):
        load_weights(model, {"w": to_weight(torch.ones(2))}, extra={})


def test_wrappers_add_nothing_to_the_names():
    model = nn.Linear(2, 2)
    compiled = torch.compile(nn.DataParallel(model), backend="eager")
    assert unwrapped(compiled) is model
    assert Pt.model_to_weights(compiled).keys() == {"weight", "bias"}
    other = noise(model)
    Pt.weights_to_model(Pt.model_to_weights(other), compiled)
    assert same(model, other)


def expanded(values):
    model = nn.Module()
    model.register_buffer("ids", torch.tensor(values).expand(3, -1))
    return model


def test_an_expanded_buffer_comes_back():
    model = expanded([1, 2])
    Pt.weights_to_model(Pt.model_to_weights(expanded([8, 9])), model)
    assert model.ids.tolist() == [[8, 9]] * 3
    with pytest.raises(WeightsMismatch, match=r"ids: .*expanded along dimension 0"):
        Pt.weights_to_model({"ids": to_weight(torch.arange(6).reshape(3, 2))}, model)


def test_a_strided_parameter_keeps_its_strides():
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(3, 2).t())})
    values = torch.arange(6.0).reshape(2, 3)
    Pt.weights_to_model({"w": to_weight(values)}, model)
    assert torch.equal(model["w"].detach(), values)
    assert model["w"].stride() == (1, 2)


def test_a_parameter_of_a_class_of_its_own_comes_back():
    class Mine(nn.Parameter):
        pass

    model = nn.Module()
    model.w = Mine(torch.zeros(2))
    Pt.weights_to_model({"w": to_weight(torch.ones(2))}, model)
    assert type(model.w) is Mine
    assert model.w.tolist() == [1, 1]


def test_reparametrised_weights_come_back():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    other = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    Pt.weights_to_model(Pt.model_to_weights(model), other)
    assert same(model, other)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2, device="meta"), lambda: nn.LazyLinear(2)])
def test_a_model_without_memory_is_refused_both_ways(make):
    with pytest.raises(UnsupportedValue, match="weight"):
        Pt.model_to_weights(make())
    with pytest.raises(UnsupportedValue, match="weight"):  # load_state_dict would say that all keys matched
        Pt.weights_to_model(Pt.model_to_weights(nn.Linear(2, 2)), make())
