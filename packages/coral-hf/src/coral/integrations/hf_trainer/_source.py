"""A Trainer's run as the checkpoint manager sees it: the model, its files, and all that the Trainer goes on by."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from coral.errors import UnsupportedValue
from coral.integrations.hf_trainer import _peft
from coral.integrations.hf_trainer._casting import cast_when_loaded
from coral.integrations.hf_trainer._data import orders_itself, own_generators, unknown_sampler
from coral.integrations.hf_trainer._moved import Buffers
from coral.integrations.hf_trainer._pretrained import config_writer, implied_names, packed, tokenizer_writer
from coral.integrations.pytorch._buffers import TensorBuffers
from coral.integrations.pytorch._modules import is_sharded, module_parts
from coral.integrations.pytorch._optimizers import optimizer_state, scheduler_state
from coral.integrations.pytorch._random import get_random_state
from coral.integrations.pytorch._ranks import Ranks
from coral.integrations.pytorch._state import Keep, encode, keep_all, viewed
from coral.training import CheckpointConfig, Snapshot

__all__ = ["TrainerSource"]


class TrainerSource:
    """The parts of a run of a Trainer, on one of its processes.

    `trainer` is the Trainer where it was attached. `restore` does nothing:
    the Trainer itself loads the folder that it resumes from.
    """

    def __init__(
        self, config: CheckpointConfig, parts: dict[str, Any], *, trainer: Any = None, complete: bool = False
    ) -> None:
        self.model: nn.Module = parts["model"]
        self.optimizer, self.scheduler = parts.get("optimizer"), parts.get("lr_scheduler")
        self.state: TrainerState = parts["state"]
        self.control: TrainerControl = parts["control"]
        self.trainer = trainer
        self._loader = parts.get("train_dataloader")
        self.sharded = is_sharded(self.model)
        self._skips_data = not parts["args"].ignore_data_skip
        self._several = parts["args"].world_size > 1
        self.rank: int = parts["args"].process_index
        self.within_epoch = False
        self.unsized = False  # the data has no length, and was begun once more
        self.interrupted = False
        self.ranks = Ranks(self._give, parts["args"].device)
        self._config = config
        self._complete = complete
        self._buffers = TensorBuffers()
        self._base = Buffers(self.model) if _peft.is_peft(self.model) else None
        self._whole: dict[str, Tensor] = {}  # the weights of a sharded model, on the main process
        self._before_batches: object = None
        self._data_draws: bool | None = None  # not known yet
        self._is_put_back = self.state.global_step > 0  # the generators are, in the epoch that a run goes on with
        self._injected = {} if self.sharded else _peft.injected_names(self.model)
        writers = {"tokenizer": tokenizer_writer(parts.get("processing_class"))}
        if _peft.is_peft(self.model) or self._injected:
            writers["adapter"] = _peft.config_writer(self.model)
        elif not _peft.is_injected(self.model):
            writers["model"] = config_writer(self.model)
        self._files = packed(writers) if self.main else {}

    @property
    def main(self) -> bool:
        """Whether this is the process that saves."""
        return self.state.is_world_process_zero

    @property
    def needs_all(self) -> bool:
        """Whether a capture needs all processes: for their random generators, or their shards."""
        return self.sharded or (self._complete and self._config.save_random_state)

    # Capture

    def capture(self, *, copy: bool = True) -> Snapshot:
        """The run as it is now: in buffers that the next capture uses again; without `copy` partly its own memory."""
        # of shards nothing can be had by one process that is interrupted: `_tensors` says so
        alone = self.sharded and self.interrupted and self._several
        randoms = self.ranks.gather() if self.needs_all and not alone else []
        self._buffers.begin()
        keep = self._buffers.copy if copy else viewed
        tensors, lost = self._tensors()
        weights, tied = keep_all(tensors, keep)
        state: dict[str, Any] = {"files": self._files, "implied": implied_names(self.model, tied)}
        metadata: dict[str, Any] = {}
        if _peft.is_peft(self.model):
            state["adapter"] = metadata["adapter"] = _peft.reference(self.model)
        if self._injected:
            state["injected"] = self._injected
        if self._complete:
            state["trainer"] = self._trainer_state(keep, randoms)
        self._buffers.finish()
        self._whole = {}
        why = self._why_inexact(lost)
        return Snapshot(weights, state, exact=not why, why="; ".join(why), metadata=metadata)

    def restore(self, snapshot: Snapshot) -> None:
        """Nothing is left to do: the Trainer has loaded its folder."""

    def _tensors(self) -> tuple[dict[str, Tensor], list[str]]:
        """The weights, and what of the model is none of them."""
        if self.sharded:
            if not self._whole:
                raise UnsupportedValue(
                    "the shards of the model are on several processes, and the others cannot be asked"
                )
            return self._whole, []
        if self._base is not None:
            return _peft.adapter_tensors(self.model), _peft.trained_outside(self.model, self._base.moved())
        parts = module_parts(self.model)
        return parts.tensors, list(parts.extra)

    def _give(self) -> dict[str, Any] | None:
        """What each process gives to a capture. Of shards it is the engine itself that brings them together."""
        if self.sharded:
            whole = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)
            self._whole = whole if self.main else {}
        return get_random_state() if self._complete and self._config.save_random_state else None

    def _trainer_state(self, keep: Keep, randoms: list[Any]) -> dict[str, Any]:
        config = self._config
        found: dict[str, Any] = {"state": self._state_json()}
        if self.optimizer is not None and config.save_optimizer_state and not self.sharded:
            found["optimizer"] = optimizer_state(self.optimizer, keep)
            if (scaler := getattr(self.optimizer, "scaler", None)) is not None:
                found["scaler"] = encode(scaler.state_dict(), "scaler", keep)
        if self.scheduler is not None and config.save_scheduler_state:
            found["scheduler"] = scheduler_state(self.scheduler, keep)
        if config.save_random_state:
            found["random"] = randoms
            if torch.cuda.is_available():
                found["cuda_device"] = torch.cuda.current_device()
        return found

    def _state_json(self) -> str:
        """trainer_state.json as the Trainer would write it, with the state of its callbacks where it is attached."""
        fields = dataclasses.asdict(self.state)
        if self.trainer is not None:
            kept: dict[str, Any] = {}
            for each in [*self.trainer.callback_handler.callbacks, self.control]:
                if isinstance(each, ExportableState):
                    kept.setdefault(type(each).__name__, []).append(each.state())
            fields["stateful_callbacks"] = {
                name: states if len(states) > 1 else states[0] for name, states in kept.items()
            }
        return json.dumps(fields)

    def _why_inexact(self, lost: list[str]) -> list[str]:
        config, why = self._config, []
        if self.interrupted:
            why.append("it was saved on an interrupt, when random numbers and data had moved past the last step")
        if lost:
            why.append(f"what is not saved: {', '.join(lost)}")
        if not self._complete:
            return [*why, "the state of the Trainer was not saved (include_optimizer=False)"]
        if self.sharded:
            why.append("the optimizer of a sharded model is not saved")
        elif self.optimizer is None or not config.save_optimizer_state:
            why.append("the optimizer's state was not saved")
        elif cast := cast_when_loaded(self.optimizer):
            why.append(
                f"the optimizer's {', '.join(cast)} are cast to their parameters' dtype by a Trainer that goes on"
            )
        if self.scheduler is not None and not config.save_scheduler_state:
            why.append("the scheduler's state was not saved")
        if not config.save_random_state:
            why.append("the state of the random number generators was not saved")
        if self.unsized:
            why.append("its data has no length, and a Trainer that goes on does not count how often it was begun anew")
        if self.within_epoch and not self._skips_data:
            why.append("it was saved within an epoch, and ignore_data_skip=True begins the epoch's data again")
        elif self.within_epoch and not self.interrupted and (sampler := unknown_sampler(self._loader)):
            why.append(f"it was saved within an epoch, and a {sampler} may give the rest of it in another order")
        elif self.within_epoch and not self.interrupted and self._data_draws:
            why.append("it was saved within an epoch, and the data draws random numbers, which resuming draws anew")
        elif self.within_epoch and not self.interrupted and self._data_draws is None:
            why.append("it was saved within an epoch, in its first step, and whether its data draws is not known")
        if generators := own_generators(self._loader):
            why.append(f"the data has random generators of its own, which are not saved: {', '.join(generators)}")
        left = {str(name) for name in self.state.stateful_callbacks or ()} - {"TrainerControl"}
        if left and self.trainer is None:
            why.append(f"the state of {', '.join(sorted(left))} is known to an attached Trainer alone (attach)")
        return why

    # Random numbers that the data draws: when a run is resumed within an epoch, the batches of the next step are taken
    # before the generators are put back

    def epoch_begins(self) -> None:
        """Batches are about to be taken by an iterator that is made anew, which draws a seed.

        What more is drawn is an order: a sampler's, which `unknown_sampler` tells of, or that of an iterable dataset.
        """
        looks = self._complete and orders_itself(self._loader) and not self._is_put_back
        self._before_batches = _fingerprint(seeds=1) if looks else None
        self._is_put_back = False

    def before_batches(self) -> None:
        """The batches of the next step may be taken now; the last call before that counts."""
        self._before_batches = _fingerprint() if self._complete else None

    def after_batches(self) -> None:
        """The batches of the next step were taken."""
        if self._before_batches is not None:
            self._data_draws = self._data_draws or self._before_batches != _fingerprint()
        self._before_batches = None


def _fingerprint(*, seeds: int = 0) -> object:
    """What the generators' states are, once torch's has drawn so many seeds."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002, the global one is in use
    assert isinstance(numpy, dict)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    torch.empty(seeds, dtype=torch.int64).random_(generator=generator)
    return (
        hash(random.getstate()),
        numpy["state"]["pos"],
        numpy["state"]["key"].tobytes(),
        generator.get_state().numpy().tobytes(),
    )
