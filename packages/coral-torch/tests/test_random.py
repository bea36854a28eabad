"""Random generators go on where they were."""

import random

import numpy as np
import pytest
import torch

from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.integrations.pytorch._random import generator_state, set_generator_state
from coral.state import flatten, unflatten


def stored(state):
    tensors = {}
    plain = flatten(state, tensors)
    return unflatten(plain, tensors.__getitem__)


def draw():
    return [
        random.random(),
        random.gauss(),  # keeps the second of a pair for the next call
        np.random.rand(),  # noqa: NPY002
        np.random.standard_normal(),  # noqa: NPY002, the same
        *torch.rand(3).tolist(),
        *torch.randn(20).tolist(),
    ]


def test_the_global_generators_go_on_exactly():
    draw()
    state = stored(Pt.get_random_state())
    expected = [draw(), draw()]
    Pt.set_random_state(state)
    assert [draw(), draw()] == expected
    Pt.set_random_state(state)  # more than once
    assert draw() == expected[0]


def test_the_state_is_a_copy():
    state = Pt.get_random_state()
    before = state["numpy"]["state"]["key"].copy(), state["torch"].data.copy(), state["python"]["words"].copy()
    draw()
    Pt.set_random_state(state)
    draw()
    after = state["numpy"]["state"]["key"], state["torch"].data, state["python"]["words"]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_taking_the_state_draws_nothing():
    state = Pt.get_random_state()
    expected = draw()
    Pt.set_random_state(state)
    Pt.get_random_state()
    assert draw() == expected


def test_state_of_gpus_that_are_not_here_is_warned_of(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    state = Pt.get_random_state()
    with pytest.warns(UserWarning, match="of 2 CUDA devices was saved; 0 are here"):
        Pt.set_random_state({**state, "cuda": [state["torch"], state["torch"]]})
    with pytest.warns(UserWarning, match="MPS"):
        Pt.set_random_state({**state, "mps": state["torch"]})


GENERATORS = {
    "random.Random": (lambda: random.Random(1), lambda g: g.gauss()),
    "PCG64": (lambda: np.random.default_rng(1), lambda g: g.normal()),
    "MT19937": (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.normal()),
    "Philox": (lambda: np.random.Generator(np.random.Philox(1)), lambda g: g.normal()),
    "BitGenerator": (lambda: np.random.SFC64(1), lambda g: int(g.random_raw())),
    "RandomState": (lambda: np.random.RandomState(1), lambda g: g.normal()),
    "torch.Generator": (
        lambda: torch.Generator().manual_seed(1),
        lambda g: torch.randn(3, generator=g).tolist(),
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_the_user_go_on_exactly(name):
    make, pull = GENERATORS[name]
    generator = make()
    pull(generator)
    state = stored(generator_state(generator))
    expected = [pull(generator) for _ in range(3)]
    for target in [generator, make()]:
        set_generator_state(target, state)
        assert [pull(target) for _ in range(3)] == expected
