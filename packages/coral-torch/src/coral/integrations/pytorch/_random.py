"""The random number generators of a training run: Python's, numpy's and torch's own, and those of the user."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from coral.errors import UnsupportedValue
from coral.integrations.pytorch._state import decode, encode, fresh
from coral.integrations.pytorch._tensors import from_weight, to_weight

__all__ = ["Generator", "generator_state", "get_random_state", "set_generator_state", "set_random_state"]

Generator = random.Random | np.random.Generator | np.random.RandomState | np.random.BitGenerator | torch.Generator
"""A generator of the user's own."""


def get_random_state() -> dict[str, Any]:
    """The state of Python's, numpy's (the global one) and torch's generators, of each GPU in use too.

    A copy, of values that a repository can hold. Generators that a program has made for itself are not in it.
    """
    state: dict[str, Any] = {
        "python": _python_state(random.getstate()),
        "numpy": _copied(np.random.get_state(legacy=False)),  # noqa: NPY002, the global one is in use
        "torch": to_weight(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # asking would initialise it
        state["cuda"] = [to_weight(one) for one in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        state["mps"] = to_weight(torch.mps.get_rng_state())
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to where `get_random_state` found them; it warns of a GPU that is not here."""
    random.setstate(_from_python_state(state["python"]))
    np.random.set_state(decode(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(from_weight(state["torch"]))
    cuda = state.get("cuda", ())
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, one in enumerate(cuda[:there]):
        torch.cuda.set_rng_state(from_weight(one), device)
    if len(cuda) > there:
        warnings.warn(f"random state of {len(cuda)} CUDA devices was saved; {there} are here", stacklevel=2)
    if "mps" in state:
        if torch.backends.mps.is_available():
            torch.mps.set_rng_state(from_weight(state["mps"]))
        else:
            warnings.warn("random state of an MPS device was saved; there is none here", stacklevel=2)


def generator_state(generator: Generator) -> Any:
    """The state of one generator, as values that a repository can hold."""
    match generator:
        case random.Random():
            return _python_state(generator.getstate())
        case np.random.Generator():
            return _copied(generator.bit_generator.state)
        case np.random.BitGenerator():
            return _copied(generator.state)
        case np.random.RandomState():
            return _copied(generator.get_state(legacy=False))
        case torch.Generator():
            return to_weight(generator.get_state())


def set_generator_state(generator: Generator, state: Any) -> None:
    """Put a generator, of the kind that the state was taken from, back to where it was."""
    match generator:
        case random.Random():
            generator.setstate(_from_python_state(state))
        case np.random.Generator():
            generator.bit_generator.state = decode(state)
        case np.random.BitGenerator():
            generator.state = decode(state)
        case np.random.RandomState():
            generator.set_state(decode(state))
        case torch.Generator():
            generator.set_state(from_weight(state))


def _copied(state: Any) -> Any:
    return encode(state, "random", fresh)


def _python_state(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    if version != 3:  # the only one since Python 3.2
        raise UnsupportedValue(f"random.getstate() gave version {version}; 3 is known", path="random.python")
    return {"words": np.array(words, np.uint32), "gauss": gauss}


def _from_python_state(state: Mapping[str, Any]) -> tuple[Any, ...]:
    return 3, tuple(int(word) for word in state["words"]), state["gauss"]
