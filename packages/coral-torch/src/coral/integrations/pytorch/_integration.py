"""The state of PyTorch's objects as values that a repository holds, one function each way."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from coral import WeightTensor
from coral.integrations.pytorch import _loading, _modules, _optimizers, _random
from coral.integrations.pytorch._fitting import LoadReport
from coral.integrations.pytorch._state import fresh

__all__ = ["PyTorchIntegration"]


class PyTorchIntegration:
    """Static functions between PyTorch's objects and what `Repository.commit` takes as weights and state.

    What they return is a copy: training on does not change it. What they load is copied in turn.

        weights = PyTorchIntegration.model_to_weights(model)
        state = {"optimizer": PyTorchIntegration.save_optimizer_state(optimizer)}
        repo.commit(weights, "by hand", state=state)
    """

    @staticmethod
    def model_to_weights(model: nn.Module) -> dict[str, WeightTensor]:
        """All parameters and persistent buffers by name; tied ones under each of their names.

        Extra state (`get_extra_state`) that is no tensor is left out, with a warning.
        """
        parts = _modules.module_parts(model)
        if parts.extra:
            warnings.warn(f"extra state that is no tensor is left out: {', '.join(parts.extra)}", stacklevel=2)
        return {name: fresh(name, tensor) for name, tensor in parts.tensors.items()}

    @staticmethod
    def weights_to_model(weights: Mapping[str, WeightTensor], model: nn.Module, *, strict: bool = True) -> LoadReport:
        """Copy weights into the model, in place, and say what was loaded.

        WeightsMismatch lists all that does not fit exactly, and leaves the model as it was; with `strict=False` what
        fits is loaded and the rest is in the report.
        """
        return _loading.load_weights(model, weights, strict=strict)

    @staticmethod
    def save_optimizer_state(optimizer: _optimizers.Stateful) -> dict[str, Any]:
        """The optimizer's state_dict, with WeightTensors for its tensors."""
        return _optimizers.optimizer_state(optimizer, fresh)

    @staticmethod
    def load_optimizer_state(optimizer: _optimizers.Stateful, state: Mapping[str, Any]) -> None:
        """Load what `save_optimizer_state` returned; make schedulers first, as making one sets learning rates.

        WeightsMismatch if it is of other parameter groups, or of another kind of optimizer.
        """
        _optimizers.load_optimizer(optimizer, state)

    @staticmethod
    def save_scheduler_state(scheduler: _optimizers.Stateful) -> dict[str, Any]:
        """The scheduler's state_dict; it warns of functions (of LambdaLR), which are not in it."""
        _optimizers.warn_of_lambdas(scheduler)
        return _optimizers.scheduler_state(scheduler, fresh)

    @staticmethod
    def load_scheduler_state(scheduler: _optimizers.Stateful, state: Mapping[str, Any]) -> None:
        """Load what `save_scheduler_state` returned into a scheduler that was made the same way.

        WeightsMismatch if it is of another kind.
        """
        _optimizers.load_scheduler(scheduler, state)

    @staticmethod
    def get_random_state() -> dict[str, Any]:
        """The state of Python's, numpy's (global) and torch's generators, with those of each CUDA device and of MPS."""
        return _random.get_random_state()

    @staticmethod
    def set_random_state(state: Mapping[str, Any]) -> None:
        """Put the generators back to where `get_random_state` found them."""
        _random.set_random_state(state)
