"""Means over an epoch, without waiting for a device at each step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from coral.errors import UnsupportedValue
from coral.integrations.pytorch._metrics import MeanMetrics, not_finite, numbers_of, to_floats


@pytest.fixture
def reads(monkeypatch):
    """The calls that wait for a device."""
    calls = []
    for name in ["item", "tolist", "__float__", "__bool__", "cpu", "numpy"]:
        real = getattr(torch.Tensor, name)

        def counted(self, *args, _name=name, _real=real, **kwargs):
            calls.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return calls


def test_means_of_numbers_and_tensors():
    means = MeanMetrics()
    for value in [1, 2, 6]:
        means.add({"loss": torch.tensor(float(value), requires_grad=True), "n": value, "np": np.float32(value)})
    means.add({"rare": torch.tensor([4], dtype=torch.int32)})
    assert means.means() == {"loss": 3.0, "n": 3.0, "np": 3.0, "rare": 4.0}


def test_a_metric_may_be_a_tensor_now_and_a_number_then():
    means = MeanMetrics()
    means.add({"loss": 1.0})
    means.add({"loss": torch.tensor(2.0)})
    assert means.means() == {"loss": 1.5}


def test_steps_wait_for_no_device_and_the_mean_waits_once(reads):
    means = MeanMetrics()
    for _ in range(10):
        metrics = {"loss": torch.tensor(1.0), "accuracy": torch.tensor(0.5), "n": 3}
        means.add(metrics)
        numbers_of(metrics)
    assert reads == []
    assert means.means() == {"loss": 1.0, "accuracy": 0.5, "n": 3.0}
    assert reads == ["tolist"]


def test_sums_do_not_hold_on_to_the_graph_or_to_the_tensor():
    means = MeanMetrics()
    parameter = nn.Parameter(torch.tensor(1.0))
    means.add({"loss": parameter * 2})
    means.add({"loss": parameter})
    assert not means.state_dict()["tensors"]["loss"].requires_grad
    with torch.no_grad():
        parameter.fill_(9)
    assert means.means() == {"loss": 1.5}


def test_many_small_values_are_summed_without_losing_digits():
    means = MeanMetrics()
    value = torch.tensor(0.1)
    for _ in range(2000):
        means.add({"loss": value})
    assert means.means()["loss"] == pytest.approx(value.double().item(), rel=1e-12)


def test_sums_go_on_from_saved_ones():
    means, other = MeanMetrics(), MeanMetrics()
    means.add({"loss": torch.tensor(1.0), "n": 1})
    other.load_state_dict(means.state_dict())
    other.add({"loss": torch.tensor(2.0), "n": 2})
    assert other.means() == {"loss": 1.5, "n": 1.5}
    assert means.means() == {"loss": 1.0, "n": 1.0}


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(0), torch.tensor(1j), "0.5", [1.0], None])
def test_what_is_no_number_is_named(value):
    with pytest.raises(UnsupportedValue, match="metric 'accuracy'"):
        MeanMetrics().add({"accuracy": value})
    with pytest.raises(UnsupportedValue, match="metric 'accuracy'"):
        to_floats({"accuracy": value})


def test_not_finite_metrics_are_found():
    assert list(not_finite({"a": 1.0, "b": math.nan, "c": math.inf})) == ["b", "c"]


def test_floats_keep_their_order():
    assert list(to_floats({"b": torch.tensor(1), "a": 2, "c": np.float64(3)}).items()) == [("b", 1), ("a", 2), ("c", 3)]
