"""The state of optimizers, schedulers and scalers: exact, a copy, and storable."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from coral.errors import UnsupportedValue, WeightsMismatch
from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.integrations.pytorch._optimizers import is_cast_by_loading
from coral.state import flatten, unflatten


def stored(state):
    """The state as a repository would give it back."""
    tensors = {}
    plain = flatten(state, tensors)
    return unflatten(plain, tensors.__getitem__)


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        batch = torch.randn(8, 3, generator=generator).to(dtype)

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def same(one, other):
    """Equal in type and value, tensors bit for bit."""
    match one:
        case torch.Tensor():
            return type(other) is type(one) and one.dtype == other.dtype and torch.equal(one, other)
        case dict():
            return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
        case list() | tuple():
            return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
        case _:
            return type(one) is type(other) and one == other


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "Adam with a tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "Adam, fused": lambda p: torch.optim.Adam(p, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4, line_search_fn="strong_wolfe"),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True),
    "Adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on_exactly(name):
    model = model_of()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    other_optimizer = OPTIMIZERS[name](other.parameters())
    Pt.load_optimizer_state(other_optimizer, stored(Pt.save_optimizer_state(optimizer)))
    assert same(optimizer.state_dict(), other_optimizer.state_dict())
    train(model, optimizer, 3, seed=1)
    train(other, other_optimizer, 3, seed=1)
    assert same(optimizer.state_dict(), other_optimizer.state_dict())
    assert same(list(model.parameters()), list(other.parameters()))


def test_neither_saved_nor_loaded_state_is_that_of_the_live_optimizer():
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    state = Pt.save_optimizer_state(optimizer)
    before = state["state"][0]["exp_avg"].data.copy()
    train(model, optimizer, 1)
    assert (state["state"][0]["exp_avg"].data == before).all()
    Pt.load_optimizer_state(optimizer, state)
    train(model, optimizer, 1)
    assert (state["state"][0]["exp_avg"].data == before).all()


def test_integer_keys_stay_integers_and_tensors_stay_tensors():
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    Pt.load_optimizer_state(optimizer, stored(Pt.save_optimizer_state(optimizer)))
    assert list(optimizer.state_dict()["state"]) == [0, 1, 2, 3]
    assert isinstance(optimizer.state_dict()["state"][0]["exp_avg"], torch.Tensor)


def test_groups_and_names_come_back():
    model = model_of()

    def make():
        named = list(model.named_parameters())
        return torch.optim.SGD([{"params": named[:2], "lr": 0.5}, {"params": named[2:]}], lr=0.1, momentum=0.9)

    optimizer = make()
    optimizer.param_groups[1]["lr"] = 0.25
    train(model, optimizer, 1)
    other = make()
    Pt.load_optimizer_state(other, stored(Pt.save_optimizer_state(optimizer)))
    assert same(optimizer.state_dict(), other.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.25]


class FullPrecision(torch.optim.Optimizer):
    """An optimizer whose state has other types than its parameters."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure):
        closure()
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["m"] = state.get("m", 0) + parameter.grad.float() / 3
            state["quantised"] = [torch.tensor([1, 2], dtype=torch.uint8)]
            state["mode"] = "warm"


def test_state_of_another_dtype_than_the_parameter_is_not_cast():
    # torch's own load_state_dict makes bfloat16 of the float32 moments of a bfloat16 parameter
    model = model_of(torch.bfloat16)
    optimizer = FullPrecision(model.parameters())
    train(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    Pt.load_optimizer_state(optimizer, stored(Pt.save_optimizer_state(optimizer)))
    assert same(saved, optimizer.state_dict())
    assert optimizer.state_dict()["state"][0]["m"].dtype is torch.float32


def test_what_a_hook_of_the_users_makes_of_the_state_is_loaded():
    """As in torch's documentation of such hooks: names tell which parameter the state is of, whatever their order."""
    one, other = (nn.Parameter(torch.ones(2, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = FullPrecision([one, other])
    one.grad, other.grad = torch.ones_like(one), torch.full_like(other, 7.0)
    optimizer.step(lambda: None)
    state = stored(Pt.save_optimizer_state(optimizer))
    again = FullPrecision([other, one])

    def swapped(_, state):
        return {**state, "state": {0: state["state"][1], 1: state["state"][0]}}

    again.register_load_state_dict_pre_hook(swapped)
    Pt.load_optimizer_state(again, state)
    assert all(same(again.state[each]["m"], optimizer.state[each]["m"]) for each in (one, other))


def test_an_optimizer_that_loads_in_its_own_way_keeps_its_dtypes():
    class Own(FullPrecision):
        def load_state_dict(self, state_dict):
            for index, parameter in enumerate(self.param_groups[0]["params"]):
                saved = state_dict["state"][index]
                self.state[parameter] = {**saved, "m": saved["m"].to(parameter.dtype)}

    model = model_of(torch.bfloat16)
    optimizer = Own(model.parameters())
    train(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    Pt.load_optimizer_state(optimizer, stored(Pt.save_optimizer_state(optimizer)))
    assert same(saved, optimizer.state_dict())


def test_state_that_loading_alone_would_cast_is_known():
    model, narrow = model_of(torch.bfloat16), model_of(torch.bfloat16)
    wide, adam = FullPrecision(model.parameters()), torch.optim.Adam(narrow.parameters())
    train(model, wide, 1)
    train(narrow, adam, 1)
    assert is_cast_by_loading(wide)
    assert not is_cast_by_loading(adam), "its float32 step is left alone"


def test_other_groups_are_refused_and_nothing_is_touched():
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    state = Pt.save_optimizer_state(torch.optim.Adam(list(model.parameters())[:2], lr=1))
    with pytest.raises(WeightsMismatch, match=r"optimizer\.param_groups: .*groups of \[4\].*groups of \[2\]"):
        Pt.load_optimizer_state(optimizer, state)
    assert same(before, optimizer.state_dict())


def test_other_parameter_names_are_refused():
    model = model_of()
    named = list(model.named_parameters())
    state = Pt.save_optimizer_state(torch.optim.SGD(named))
    with pytest.raises(WeightsMismatch, match="param_names"):
        Pt.load_optimizer_state(torch.optim.SGD(named[::-1]), state)


def test_what_cannot_be_stored_is_named():
    optimizer = torch.optim.SGD(model_of().parameters(), lr=0.1)
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(UnsupportedValue, match=r"optimizer\.param_groups\.0\.hook"):
        Pt.save_optimizer_state(optimizer)


def half(epoch):
    return 0.5**epoch


class Half:
    def __init__(self):
        self.base = 0.5

    def __call__(self, epoch):
        return self.base**epoch


SCHEDULERS = {
    "StepLR": lambda o: lrs.StepLR(o, 2),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 4]),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, 20),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.1, 0.2, step_size_up=3),
    "SequentialLR": lambda o: lrs.SequentialLR(o, [lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)], [2]),
    "SequentialLR with MultiStepLR": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o), lrs.MultiStepLR(o, [1, 3])], [4]),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)]),
    "LambdaLR of an object": lambda o: lrs.LambdaLR(o, Half()),
    "LambdaLR of a function": lambda o: lrs.LambdaLR(o, half),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1),
}


def turn(optimizer, scheduler, epochs):
    rates = []
    for epoch in epochs:
        optimizer.step()
        scheduler.step(epoch % 3) if isinstance(scheduler, lrs.ReduceLROnPlateau) else scheduler.step()
        rates.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[0].get("momentum")])
    return rates


@pytest.mark.filterwarnings("ignore:the functions of a LambdaLR")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_exactly(name):
    def make():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    optimizer, scheduler = make()
    turn(optimizer, scheduler, range(3))
    other_optimizer, other = make()
    Pt.load_scheduler_state(other, stored(Pt.save_scheduler_state(scheduler)))
    Pt.load_optimizer_state(other_optimizer, stored(Pt.save_optimizer_state(optimizer)))
    assert same(scheduler.state_dict(), other.state_dict())
    assert turn(optimizer, scheduler, range(3, 9)) == turn(other_optimizer, other, range(3, 9))


def test_the_milestones_of_multisteplr_stay_a_counter():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = lrs.MultiStepLR(optimizer, [2, 2, 4])
    Pt.load_scheduler_state(scheduler, stored(Pt.save_scheduler_state(scheduler)))
    assert type(scheduler.milestones) is Counter


def test_functions_of_a_scheduler_are_warned_of():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    for scheduler in [
        lrs.LambdaLR(optimizer, lambda _: 1.0),
        lrs.SequentialLR(optimizer, [lrs.LambdaLR(optimizer, half), lrs.StepLR(optimizer, 1)], [2]),
        lrs.CyclicLR(optimizer, 0.1, 0.2, cycle_momentum=False, scale_fn=half),
    ]:
        with pytest.warns(UserWarning, match="are not saved") as caught:
            Pt.save_scheduler_state(scheduler)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pt.save_scheduler_state(lrs.LambdaLR(optimizer, Half()))


@pytest.mark.parametrize("pair", [("SGD", "AdamW"), ("AdamW", "SGD"), ("RMSprop", "AdamW"), ("Adafactor", "SGD")])
def test_state_of_another_kind_of_optimizer_is_refused(pair):
    model = model_of()
    first, second = (OPTIMIZERS[name](model.parameters()) for name in pair)
    train(model, first, 1)
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(
        WeightsMismatch, match=f"this run has {type(second).__name__} with .*, the training state is of another"
    ):
        Pt.load_optimizer_state(second, stored(Pt.save_optimizer_state(first)))
    assert same(second.state_dict(), before)
    train(model, second, 1)


def test_state_of_parameters_in_another_order_is_refused():
    model = model_of()
    first = torch.optim.Adam(model.parameters())
    train(model, first, 1)
    second = torch.optim.Adam([*model[2].parameters(), *model[0].parameters()])
    message = r"optimizer.state.0.exp_avg: this run has a parameter of shape \(1, 4\), the training state is for one of"
    with pytest.raises(WeightsMismatch, match=message):
        Pt.load_optimizer_state(second, stored(Pt.save_optimizer_state(first)))


def test_state_that_an_older_torch_saved_is_loaded():
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    state = Pt.save_optimizer_state(optimizer)
    for key in ("foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        state["param_groups"][0].pop(key, None)
    state["param_groups"][0]["gone"] = 1
    Pt.load_optimizer_state(optimizer, state)
    train(model, optimizer, 1)

    scheduler = lrs.StepLR(optimizer, 1)  # which adds initial_lr to the groups
    Pt.load_optimizer_state(optimizer, state)
    state = Pt.save_scheduler_state(scheduler) | {"verbose": False, "gone": 1}
    del state["_is_initial"]
    Pt.load_scheduler_state(scheduler, state)


def test_a_key_of_the_users_own_need_not_be_saved():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = Pt.save_optimizer_state(optimizer)
    named = torch.optim.SGD([{"params": model.parameters(), "name": "all"}], lr=0.1)
    Pt.load_optimizer_state(named, state)


KINDS = ["StepLR", "MultiStepLR", "OneCycleLR", "CyclicLR", "SequentialLR", "ReduceLROnPlateau"]


@pytest.mark.parametrize("name", KINDS)
def test_state_of_another_kind_of_scheduler_is_refused(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    state = stored(Pt.save_scheduler_state(SCHEDULERS[name](optimizer)))
    others = [SCHEDULERS[other](optimizer) for other in KINDS if other != name]
    others += [lrs.CosineAnnealingLR(optimizer, 9), lrs.LambdaLR(optimizer, Half())]
    for other in others:
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(WeightsMismatch, match=f"this run has {type(other).__name__} with"):
            Pt.load_scheduler_state(other, state)
        assert same(other.state_dict(), before)


@pytest.mark.parametrize(
    ("parts", "message"),
    [([lrs.ConstantLR, lrs.LinearLR], "scheduler.1: this run has LinearLR"), ([lrs.ConstantLR] * 3, "of 3 parts")],
)
def test_a_scheduler_of_other_parts_is_refused(parts, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    state = stored(Pt.save_scheduler_state(SCHEDULERS["SequentialLR"](optimizer)))
    other = lrs.SequentialLR(optimizer, [part(optimizer) for part in parts], list(range(1, len(parts))))
    with pytest.raises(WeightsMismatch, match=message):
        Pt.load_scheduler_state(other, state)
