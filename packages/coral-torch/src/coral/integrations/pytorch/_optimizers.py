"""The state of optimizers, LR schedulers and gradient scalers: copies out, exact state in."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from coral.errors import ConfigError, WeightsMismatch
from coral.integrations.pytorch._kinds import check_optimizer_kind, check_scheduler_kind
from coral.integrations.pytorch._state import Keep, decode, encode

__all__ = [
    "Stateful",
    "check_optimizer",
    "check_stateful",
    "decoded_scheduler",
    "is_cast_by_loading",
    "load_optimizer",
    "load_scheduler",
    "loaded_as_saved",
    "optimizer_state",
    "scheduler_state",
    "stepped",
    "warn_of_lambdas",
]


class Stateful(Protocol):
    """Whatever has its state in a state_dict: optimizers, schedulers, scalers, stateful data loaders."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def check_stateful(thing: object, call: str, wanted: str = "what") -> None:
    """Raise ConfigError if it has no state that could be saved and loaded; `call` is what it was given to."""
    methods = [getattr(thing, name, None) for name in ("state_dict", "load_state_dict")]
    if isinstance(thing, type) or not all(map(callable, methods)):
        what = f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
        raise ConfigError(f"{call} was given {what}; it takes {wanted} has state_dict and load_state_dict")


def stepped(optimizer: object) -> Optimizer | None:
    """The optimizer whose step does the update: itself, or the one inside a wrapper (accelerate's); None for another.

    Such a wrapper is an Optimizer by name alone, whose __init__ never ran.
    """
    while isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer if isinstance(optimizer, Optimizer) else None


def optimizer_state(optimizer: Stateful, keep: Keep) -> dict[str, Any]:
    """The optimizer's state_dict with `keep` applied to its tensors."""
    return _encoded(optimizer, "optimizer", keep)


def load_optimizer(optimizer: Stateful, state: Mapping[str, Any]) -> None:
    """Put saved state into an optimizer of the same parameters, in dtypes as saved; it shares no memory with `state`.

    WeightsMismatch if the parameter groups, or the kind of optimizer, are others; the optimizer is then as it was.
    """
    check_optimizer(optimizer, state)
    saved = decode(state)
    if not isinstance(optimizer, Optimizer):
        optimizer.load_state_dict(saved)
        return
    devices = [
        {key: value.device for key, value in group.items() if isinstance(value, Tensor)}
        for group in optimizer.param_groups
    ]
    with loaded_as_saved(optimizer, saved):
        optimizer.load_state_dict(saved)
    for group, before in zip(optimizer.param_groups, devices, strict=True):  # a tensor lr stays on its device
        group.update({key: group[key].to(device) for key, device in before.items() if isinstance(group[key], Tensor)})


@contextmanager
def loaded_as_saved(optimizer: Optimizer, state: Mapping[str, Any]) -> Iterator[None]:
    """Have the state that the optimizer loads within stay in the dtypes that it was saved in.

    Its load_state_dict casts to the parameter's dtype: float32 moments of a bfloat16 parameter would lose bits.
    """
    saved = state

    def adapted(_: Optimizer, given: Mapping[str, Any]) -> None:
        nonlocal saved
        saved = given

    steps = stepped(optimizer)  # what a user's own hook, which comes before this one, makes of the state counts
    hook = steps.register_load_state_dict_pre_hook(adapted) if steps is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
    indices = (index for group in saved["param_groups"] for index in group["params"])
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for index, parameter in zip(indices, parameters, strict=True):
        if index in saved["state"] and parameter in optimizer.state:
            optimizer.state[parameter] = _uncast(optimizer.state[parameter], saved["state"][index])


def is_cast_by_loading(optimizer: Optimizer) -> bool:
    """Whether it has floating-point state of another dtype than its parameter, which load_state_dict casts."""
    return any(
        isinstance(value, Tensor) and value.is_floating_point() and value.dtype != parameter.dtype
        for parameter, state in optimizer.state.items()
        if isinstance(parameter, Tensor)
        for key, value in state.items()
        if key != "step"
    )


def _uncast(loaded: Any, saved: Any, key: object = None) -> Any:
    match saved:
        case Tensor() if isinstance(loaded, Tensor):
            same = saved.dtype == loaded.dtype or key == "step"  # a fused optimizer asks for a float32 step
            return loaded if same else saved.to(loaded.device)
        case dict() if isinstance(loaded, dict):
            return {k: _uncast(each, saved[k], k) if k in saved else each for k, each in loaded.items()}
        case list() | tuple() if isinstance(loaded, list | tuple):
            return type(saved)(_uncast(one, other) for one, other in zip(loaded, saved, strict=True))
        case _:
            return saved


def check_optimizer(optimizer: Stateful, state: Mapping[str, Any]) -> None:
    """Raise WeightsMismatch if saved state is that of other parameter groups, or of another kind of optimizer."""
    if not isinstance(optimizer, Optimizer):
        return
    saved = state["param_groups"]
    have = [len(group["params"]) for group in optimizer.param_groups]
    got = [len(group["params"]) for group in saved]
    if have != got:
        groups = {"optimizer.param_groups": (f"groups of {have}", f"is of groups of {got}")}
        raise WeightsMismatch(mismatched=groups, training=True)
    for index, (live, group) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        mine, theirs = live.get("param_names"), group.get("param_names")
        if mine is not None and theirs is not None and list(mine) != list(theirs):
            where = f"optimizer.param_groups.{index}.param_names"
            raise WeightsMismatch(mismatched={where: (str(list(mine)), f"is for {list(theirs)}")}, training=True)
    if (steps := stepped(optimizer)) is not None:
        check_optimizer_kind(steps, state)


def scheduler_state(scheduler: Stateful, keep: Keep) -> dict[str, Any]:
    """The scheduler's state_dict with `keep` applied to its tensors."""
    return _encoded(scheduler, "scheduler", keep)


def decoded_scheduler(state: Mapping[str, Any]) -> dict[str, Any]:
    """Saved state as the scheduler itself would give it: a MultiStepLR, alone or in another one, has a Counter."""
    return _counted({key: decode(value) for key, value in state.items()})


def _counted(state: dict[str, Any]) -> dict[str, Any]:
    if isinstance(milestones := state.get("milestones"), dict):
        state["milestones"] = Counter(milestones)
    for part in state.get("_schedulers", ()):
        _counted(part)
    return state


def load_scheduler(scheduler: Stateful, state: Mapping[str, Any]) -> None:
    """Put saved state into a scheduler of the same kind; the optimizer's learning rates are the optimizer's state.

    WeightsMismatch if it is of another kind; the scheduler is then as it was.
    """
    check_scheduler_kind(scheduler, state)
    scheduler.load_state_dict(decoded_scheduler(state))


def warn_of_lambdas(scheduler: Stateful) -> None:
    """Tell the caller's caller if a part of the scheduler is a function, which its state does not hold."""
    if any(_has_functions(part) for part in _parts(scheduler)):
        warnings.warn(
            f"the functions of a {type(scheduler).__name__} are not saved; give it the same ones when you resume "
            "(an object with __call__ has its attributes saved)",
            stacklevel=3,
        )


def _parts(scheduler: Stateful) -> list[Stateful]:
    return [scheduler, *getattr(scheduler, "_schedulers", ())]  # of SequentialLR and ChainedScheduler


def _has_functions(scheduler: Stateful) -> bool:
    lambdas = getattr(scheduler, "lr_lambdas", ())
    custom = getattr(scheduler, "_scale_fn_custom", None)  # of CyclicLR
    return any(type(f) is type(_parts) for f in [*lambdas, custom])


def _encoded(thing: Stateful, path: str, keep: Keep) -> dict[str, Any]:
    encoded = encode(thing.state_dict(), path, keep)
    assert isinstance(encoded, dict)
    return encoded
