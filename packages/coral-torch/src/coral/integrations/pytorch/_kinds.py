"""Whether saved state is of another kind of optimizer or scheduler: told before anything is loaded.

Only what lacks keys and has others besides is refused: an older version has saved fewer, or some that are gone by now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from coral.errors import WeightsMismatch

__all__ = ["check_optimizer_kind", "check_scheduler_kind"]

_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "sum")
"""State that torch's own optimizers have in the shape of the parameter."""

_OF_OTHERS = frozenset({"initial_lr", "param_names"})
"""Keys of a group that a scheduler put there, or whoever named the parameters."""


def check_optimizer_kind(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Raise WeightsMismatch if saved state lacks what the optimizer steps by, and has what it does not know.

    Or if it is that of parameters of other shapes.
    """
    for index, (live, saved) in enumerate(zip(optimizer.param_groups, _completed(optimizer, state), strict=True)):
        lacking = optimizer.defaults.keys() & live.keys() - saved.keys()
        _refuse(f"optimizer.param_groups.{index}", optimizer, lacking, saved.keys() - live.keys() - _OF_OTHERS)
        if not type(optimizer).__module__.startswith("torch.optim."):
            continue
        for number, parameter in zip(saved["params"], live["params"], strict=True):
            of_one = state["state"].get(number, {})
            for key in _LIKE_PARAMETERS:
                shape = getattr(of_one.get(key), "shape", parameter.shape)
                if tuple(shape) != tuple(parameter.shape):
                    where = f"optimizer.state.{number}.{key}"
                    was = f"a parameter of shape {tuple(parameter.shape)}"
                    raise WeightsMismatch(
                        mismatched={where: (was, f"is for one of shape {tuple(shape)}")}, training=True
                    )


def check_scheduler_kind(scheduler: Any, state: Mapping[str, Any], path: str = "scheduler") -> None:
    """Raise WeightsMismatch if a scheduler, or one within it, has what saved state lacks, and lacks what that has."""
    if not isinstance(scheduler, LRScheduler):
        return
    live, saved = ({key for key in each if _tells(key)} for each in (scheduler.state_dict(), state))
    _refuse(path, scheduler, live - saved, saved - live)
    parts, states = getattr(scheduler, "_schedulers", ()), state.get("_schedulers", ())
    if len(parts) != len(states):
        raise WeightsMismatch(
            mismatched={path: (f"one of {len(parts)} parts", f"is of one of {len(states)}")}, training=True
        )
    for index, (part, its) in enumerate(zip(parts, states, strict=True)):
        check_scheduler_kind(part, its, f"{path}.{index}")


def _refuse(path: str, thing: object, lacking: Set[str], unknown: Set[str]) -> None:
    """One of the two alone may be what came or went with a version."""
    if lacking and unknown:
        want = f"{type(thing).__name__} with {', '.join(sorted(lacking))}"
        got = f"is of another kind, with {', '.join(sorted(unknown))}"
        raise WeightsMismatch(mismatched={path: (want, got)}, training=True)


def _completed(optimizer: Optimizer, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The saved groups with what this kind of optimizer adds to those of older versions, which loading does too."""
    trial = object.__new__(type(optimizer))
    vars(trial).update(vars(optimizer))
    trial.__setstate__({"state": defaultdict(dict), "param_groups": [dict(each) for each in state["param_groups"]]})
    return trial.param_groups


def _tells(key: str) -> bool:
    """Whether a key says what kind of scheduler it is: private ones, and verbose, came and went with versions."""
    return key == "_schedulers" or not (key.startswith("_") or key == "verbose")
