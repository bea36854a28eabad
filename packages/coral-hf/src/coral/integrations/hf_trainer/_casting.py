"""What of an optimizer's state a Trainer that goes on would cast: load_state_dict gives it the parameter's dtype."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from coral.integrations.pytorch._optimizers import Stateful, stepped

__all__ = ["cast_when_loaded"]


def cast_when_loaded(optimizer: Stateful) -> list[str]:
    """The names of state that has another floating dtype than its parameter, as float32 moments of a bfloat16 one."""
    inner = stepped(optimizer)
    if inner is None:
        return []
    spared = {"step", *getattr(inner, "non_castable_tensor_keys", ())}  # the latter by bitsandbytes' optimizers
    return sorted({
        name
        for parameter, state in inner.state.items()
        for name, value in state.items()
        if name not in spared and _is_cast(value, parameter)
    })  # fmt: skip


def _is_cast(value: Any, parameter: Any) -> bool:
    both = isinstance(value, Tensor) and isinstance(parameter, Tensor)
    return both and value.dtype is not parameter.dtype and value.is_floating_point() and parameter.is_floating_point()
