"""Weights into models that have memory, or have none yet."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from coral.errors import ConfigError, UnsupportedValue, WeightsMismatch
from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.integrations.pytorch import load_from_repo, load_into_model, save_model_to_coral, stream_load_model
from coral.integrations.pytorch._loading import load_weights


class Everything(nn.Module):
    """Tied and expanded, 0-d, empty and subclassed; a submodule that keeps its parameters in a list besides."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.lstm = nn.LSTM(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.own = Own(torch.zeros(2), requires_grad=False)
        self.own.note = "kept"
        self.register_buffer("ids", torch.arange(2).expand(3, -1))
        self.register_buffer("none", torch.zeros(0, 2))


class Own(nn.Parameter):
    """A parameter of a class of its own."""


class Cached(nn.Module):
    """A buffer that is in no state_dict."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("table", torch.ones(2), persistent=False)


def filled(model):
    """The model with other numbers in every parameter and buffer."""
    for name, tensor in model.state_dict().items():
        tensor = tensor[:1] if name == "ids" else tensor  # torch refuses to write into what is expanded
        tensor.copy_(torch.arange(7.0, 7 + tensor.numel()).reshape(tensor.shape))
    return model


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def on_meta(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_a_model_on_the_meta_device_gets_memory(device):
    model, wanted = on_meta(Everything), filled(Everything())
    held = model.own
    report = load_into_model(model, Pt.model_to_weights(wanted), device=device)
    assert report["loaded"] == list(wanted.state_dict())
    assert same(model, wanted)
    assert model.head.weight is model.embed.weight
    assert len(list(model.parameters())) == len(list(wanted.parameters()))
    assert isinstance(model.embed.weight, nn.Parameter)
    assert (type(model.own), model.own.note, model.own.requires_grad) == (Own, "kept", False)
    assert held.is_meta
    x = torch.randn(4, 1, 3)
    assert torch.equal(model.lstm(x)[0], wanted.lstm(x)[0])


def test_such_a_model_shares_no_memory_with_the_weights():
    weights = Pt.model_to_weights(nn.Linear(2, 2))
    before = weights["weight"].data.copy()
    model = on_meta(lambda: nn.Linear(2, 2))
    load_into_model(model, weights)
    with torch.no_grad():
        model.weight.add_(1)
    assert np.array_equal(weights["weight"].data, before)


def test_what_has_memory_keeps_it_and_what_has_none_gets_it():
    model = nn.Sequential(nn.Linear(2, 2), on_meta(lambda: nn.Linear(2, 2)))
    kept, wanted = model[0].weight, filled(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    load_into_model(model, Pt.model_to_weights(wanted))
    assert model[0].weight is kept
    assert same(model, wanted)


def test_what_is_tied_on_the_meta_device_needs_one_name_and_takes_one_value():
    weights = Pt.model_to_weights(filled(Everything()))
    first = weights.pop("embed.weight")
    model = on_meta(Everything)
    assert load_into_model(model, weights)["missing"] == []
    assert model.embed.weight is model.head.weight
    assert np.array_equal(model.embed.weight.detach(), first.data)
    weights["embed.weight"] = Pt.model_to_weights(nn.Embedding(5, 3))["weight"]
    model = on_meta(Everything)
    with pytest.raises(WeightsMismatch, match=r"head\.weight: the model has it tied to embed\.weight"):
        load_into_model(model, weights)
    assert model.embed.weight.is_meta


def test_a_strict_load_that_fails_leaves_the_model_on_the_meta_device():
    weights = Pt.model_to_weights(nn.Linear(2, 2))
    del weights["bias"]
    model = on_meta(lambda: nn.Linear(2, 2))
    with pytest.raises(WeightsMismatch, match="missing: bias"):
        load_into_model(model, weights, device="cpu")
    assert model.weight.is_meta


def test_nothing_is_left_on_the_meta_device_silently():
    weights = Pt.model_to_weights(nn.Linear(2, 2))
    del weights["bias"]
    model = on_meta(lambda: nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="still on the meta device, without data: bias") as warned:
        assert load_into_model(model, weights, strict=False)["missing"] == ["bias"]
    assert warned[0].filename == __file__
    assert not model.weight.is_meta


def test_a_buffer_that_no_weights_can_fill_is_refused():
    weights = Pt.model_to_weights(Cached())
    model = on_meta(Cached)
    with pytest.raises(UnsupportedValue, match=r"no state_dict has.*table"):
        load_into_model(model, weights)
    assert model.fc.weight.is_meta
    model.table = torch.ones(2)
    assert load_into_model(model, weights)["matched"] == 2
    model = on_meta(Cached)
    with pytest.warns(UserWarning, match="without data: table"):
        load_into_model(model, weights, strict=False)


def test_compiled_parts_and_prefixes_are_understood():
    wanted = filled(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.ReLU())
    assert list(model.state_dict()) == ["0._orig_mod.weight", "0._orig_mod.bias"]
    load_into_model(model, Pt.model_to_weights(wanted))
    assert torch.equal(model[0].weight, wanted[0].weight)
    back = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    load_into_model(back, {f"module.{name}": tensor for name, tensor in model.state_dict().items()})
    assert same(back, wanted)


@pytest.mark.parametrize(
    "kind", [lambda t: t, lambda t: t.numpy(), lambda t: Pt.model_to_weights(nn.ParameterList([t]))["0"]]
)
def test_weights_may_be_tensors_or_arrays_too(kind):
    model = nn.Linear(2, 1, bias=False)
    load_into_model(model, {"weight": kind(torch.ones(1, 2))})
    assert model.weight.tolist() == [[1, 1]]


def test_all_that_does_not_fit_is_listed_by_its_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model)
    weights = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(1, 2), "more": torch.ones(1)}
    key_map = {"a.weight": "0.weight", "a.bias": "0.bias", "more": "most"}
    with pytest.raises(WeightsMismatch) as caught:
        load_into_model(model, weights, key_map=key_map, device="cpu")
    assert caught.value.missing == ["1.weight", "1.bias"]
    assert caught.value.unexpected == ["more"]
    assert caught.value.mismatched == {"0.bias": ("float32 (2,)", "float32 (1, 2)")}
    assert same(model, before)
    report = load_into_model(model, weights, strict=False, key_map=key_map)
    assert (report["loaded"], report["matched"]) == (["0.weight"], 1)
    assert report["mismatched"].keys() == {"0.bias"}


def test_two_weights_under_one_name_are_refused_even_if_not_strict():
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    with pytest.raises(ConfigError, match="a and b as weight"):
        load_into_model(model, {"a": torch.ones(2, 2), "b": torch.zeros(2, 2)}, False, [("[ab]", "weight")])
    assert torch.equal(model.weight, before)


class Transposed(nn.Module):
    """Version 1 of it kept its weight transposed."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.inner = nn.Linear(2, 2)

    def _load_from_state_dict(self, state, prefix, local_metadata, *rest):
        if (local_metadata.get("version") or 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"].t().contiguous()
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_weights_are_of_the_version_that_the_module_is(meta, stream, repo):
    wanted = nn.Sequential(Transposed())
    model = on_meta(lambda: nn.Sequential(Transposed())) if meta else nn.Sequential(Transposed())
    save_model_to_coral(wanted, repo, "saved")
    if stream:
        stream_load_model(model, repo)
    else:
        load_from_repo(model, repo)
    assert same(model, wanted)


def test_weights_of_a_known_older_version_are_migrated():
    wanted = nn.Sequential(Transposed())
    model = nn.Sequential(Transposed())
    load_weights(model, Pt.model_to_weights(wanted), versions={})
    assert torch.equal(model[0].weight, wanted[0].weight.t())
    assert torch.equal(model[0].inner.weight, wanted[0].inner.weight)


class Dropping(nn.Linear):
    """A module that does not take its bias."""

    def _load_from_state_dict(self, state, prefix, *rest):
        state.pop(prefix + "bias", None)
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.filterwarnings("ignore:still on the meta device")
def test_what_a_hook_drops_is_not_loaded(meta, stream, repo):
    def make():
        return nn.Sequential(Dropping(2, 2))

    save_model_to_coral(make(), repo, "saved")
    load = stream_load_model if stream else load_from_repo
    with pytest.raises(WeightsMismatch, match=r"0\.bias: the model has a hook that dropped it"):
        load(on_meta(make) if meta else make(), repo)
    report = load(on_meta(make) if meta else make(), repo, strict=False)
    assert (report["loaded"], report["missing"], report["matched"]) == (["0.weight"], ["0.bias"], 1)


def test_a_module_with_a_load_state_dict_of_its_own_is_loaded_by_it():
    class Own(nn.Linear):
        def load_state_dict(self, state, strict=True):
            super().load_state_dict(state, strict=strict)

    model, wanted = Own(2, 2), filled(Own(2, 2))
    assert load_into_model(model, Pt.model_to_weights(wanted))["matched"] == 2
    assert same(model, wanted)
