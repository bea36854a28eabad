"""A training run as the checkpoint manager sees it: captured as one Snapshot, restored from one."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from coral.integrations.pytorch._buffers import TensorBuffers
from coral.integrations.pytorch._kinds import check_scheduler_kind
from coral.integrations.pytorch._loading import load_weights
from coral.integrations.pytorch._metrics import MeanMetrics
from coral.integrations.pytorch._modules import module_parts, tied_groups, versions_of
from coral.integrations.pytorch._optimizers import (
    Stateful,
    check_optimizer,
    load_optimizer,
    load_scheduler,
    optimizer_state,
    scheduler_state,
    stepped,
)
from coral.integrations.pytorch._random import (
    Generator,
    generator_state,
    get_random_state,
    set_generator_state,
    set_random_state,
)
from coral.integrations.pytorch._schedule import Schedule
from coral.integrations.pytorch._state import Keep, decode, encode, keep_all, viewed
from coral.training import CheckpointConfig, Snapshot

__all__ = ["Progress", "TrainingSource"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: completed updates, the epoch it is in or begins next, and its last epoch's metrics."""

    step: int = 0
    epoch: int = 0
    steps_in_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Registered(NamedTuple):
    """Something of the user's whose state goes with the run's; `data`: it knows the position in the data."""

    thing: Generator | Stateful
    data: bool


class TrainingSource:
    """The parts of a training run. Those that are set after a restore get their saved state when they are set."""

    def __init__(self, model: nn.Module, config: CheckpointConfig) -> None:
        self.model = model
        self.optimizer: Stateful | None = None
        self.schedule: Schedule | None = None
        self.scaler: Stateful | None = None
        self.registered: dict[str, Registered] = {}
        self.progress = Progress()
        self.means = MeanMetrics()
        self.skipped: frozenset[str] = frozenset()  # the parts of a checkpoint that restore leaves alone
        self.going = False  # training has gone on from where the run was made, or restored
        self.moved = False  # an update has begun since the last boundary
        self.interrupted = False
        self._config = config
        self._buffers = TensorBuffers()
        self._restored: Mapping[str, Any] | None = None  # until training goes on
        self._random_due = False
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()  # the optimizers whose updates are noted
        self._unsaved: weakref.WeakSet[Any] = weakref.WeakSet()  # those of them that went on when they were replaced

    # Capture

    def capture(self, *, copy: bool = True) -> Snapshot:
        """The run as it is now: in buffers that the next capture uses again; without `copy` partly its own memory."""
        self._buffers.begin()
        keep = self._buffers.copy if copy else viewed
        parts = module_parts(self.model)
        weights, tied = keep_all(parts.tensors, keep)
        state = {
            "progress": asdict(self.progress),
            "means": encode(self.means.state_dict(), "means", keep),
            "extra": encode(parts.extra, "extra state", keep),
            "tied": tied,
            "versions": encode(versions_of(parts.notes), "versions", keep),
            "registered": {name: _state_of(name, each.thing, keep) for name, each in self.registered.items()},
            **self._parts(keep),
        }
        self._buffers.finish()
        why = self._why_inexact()
        return Snapshot(weights=weights, state=state, exact=not why, why="; ".join(why))

    def _parts(self, keep: Keep) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.optimizer is not None and self._config.save_optimizer_state:
            state["optimizer"] = optimizer_state(self.optimizer, keep)
        if self.scaler is not None and self._config.save_optimizer_state:
            state["scaler"] = encode(self.scaler.state_dict(), "scaler", keep)
        if self.schedule is not None and self._config.save_scheduler_state:
            state["scheduler"] = scheduler_state(self.schedule.scheduler, keep)
        if self._config.save_random_state:
            state["random"] = get_random_state()
        return state

    def _why_inexact(self) -> list[str]:
        config, why = self._config, self._why_data_differs()
        if self.optimizer is None or not config.save_optimizer_state:
            why.append("the optimizer's state was not saved")
        elif not all(map(self._is_saved, self._unsaved)):
            why.append("the state of one of the optimizers was not saved")
        if self._follows_another_schedule():
            why.append("the optimizer follows a scheduler that was not set: set_scheduler saves it")
        if self.schedule is not None and not config.save_scheduler_state:
            why.append("the scheduler's state was not saved")
        if not config.save_random_state:
            why.append("the state of the random number generators was not saved")
        return why

    def _why_data_differs(self) -> list[str]:
        if self.interrupted:
            return ["it was saved on an interrupt, when random numbers and data had moved past the last step"]
        things = [each.thing for each in self.registered.values()]
        if not self.progress.steps_in_epoch:
            persist = any(getattr(thing, "persistent_workers", False) for thing in things)
            return ["workers of a data loader that persist have random states of their own"] if persist else []
        if not any(each.data for each in self.registered.values()):
            return ["it was saved within an epoch, and the position in the data is not known"]
        workers = any(getattr(thing, "num_workers", 0) for thing in things)
        why = "it was saved within an epoch, and the random states of the data loader's workers are not known"
        return [why] if workers else []

    def _follows_another_schedule(self) -> bool:
        """Whether a scheduler has left its mark on the optimizer, and none was set or registered."""
        things = [each.thing for each in self.registered.values() if not isinstance(each.thing, Optimizer)]
        if self.schedule is not None or any(hasattr(thing, "step") for thing in things):
            return False
        return any("initial_lr" in group for group in getattr(self.optimizer, "param_groups", ()))

    # Restore

    def restore(self, snapshot: Snapshot) -> None:
        """Put the run back to where it was captured, but for the `skipped` parts; random generators come last.

        WeightsMismatch, with the run left as it was, if model, optimizer or scheduler are others.
        """
        state = {name: part for name, part in (snapshot.state or {}).items() if name not in self.skipped}
        if self.optimizer is not None and "optimizer" in state:
            check_optimizer(self.optimizer, state["optimizer"])
        if self.schedule is not None and "scheduler" in state:
            check_scheduler_kind(self.schedule.scheduler, state["scheduler"])
        load_weights(
            self.model,
            snapshot.weights,
            extra=decode(state["extra"]) if "extra" in state else None,
            versions=decode(state["versions"]) if "versions" in state else None,
        )
        self._compare_ties(state.get("tied", []))
        self.progress = Progress(**decode(state.get("progress", {})))
        self.going = self.moved = self.interrupted = False
        self._restored, self._random_due = state, True
        self.means.clear()
        self._unsaved.clear()
        self._load_optimizer_and_scheduler()
        self._load_scaler()
        for name in self.registered:
            self._load_registered(name)
        self._restore_random()

    def settle(self) -> None:
        """The loop is about to begin: put the generators back for the last time."""
        if self._random_due:
            self._random_due = False
            self._restore_random()

    def _restore_random(self) -> None:
        if self._restored is None:
            return
        for name, each in self.registered.items():
            if isinstance(each.thing, Generator):
                self._load_registered(name)
        if "random" in self._restored:
            set_random_state(self._restored["random"])

    def go_on(self) -> list[str]:
        """Training goes on: forget what was restored, and name the saved parts that nothing was set for."""
        self.going, self._random_due = True, False
        restored, self._restored = self._restored or {}, None
        have = {"optimizer": self.optimizer, "scheduler": self.schedule, "scaler": self.scaler}
        left = [name for name, part in have.items() if part is None and restored.get(name)]
        return left + [name for name in restored.get("registered", {}) if name not in self.registered]

    def _load_optimizer_and_scheduler(self) -> None:
        state = self._restored or {}
        if self.schedule is not None and "scheduler" in state:
            load_scheduler(self.schedule.scheduler, state["scheduler"])
            self.schedule.look()
        # after the scheduler: making and loading one sets learning rates
        if self.optimizer is not None and "optimizer" in state:
            load_optimizer(self.optimizer, state["optimizer"])

    def _load_scaler(self) -> None:
        saved = (self._restored or {}).get("scaler")
        if self.scaler is not None and saved:  # a scaler that is switched off has no state
            self.scaler.load_state_dict(decode(saved))

    def _load_registered(self, name: str) -> None:
        saved = (self._restored or {}).get("registered", {})
        if name not in saved:
            return
        thing, data = self.registered[name]
        if isinstance(thing, Generator):
            set_generator_state(thing, saved[name])
        elif isinstance(thing, Optimizer):
            load_optimizer(thing, saved[name])
        elif isinstance(thing, LRScheduler):
            load_scheduler(thing, saved[name])
        else:
            thing.load_state_dict(decode(saved[name]))
            if data:
                # a stateful data loader makes the iterator that goes on now, not when the loop begins: that draws
                # random numbers, which are put back after this
                thing.state_dict()
        if data:  # the loop goes on within the epoch, so its means do; otherwise it begins the epoch again
            self.means.load_state_dict(decode((self._restored or {})["means"]))

    def _compare_ties(self, saved: list[list[str]]) -> None:
        live = tied_groups(module_parts(self.model).tensors)
        lost = [names for names in saved if not any(set(names) <= set(group) for group in live)]
        if lost:
            named = "; ".join(" = ".join(names) for names in lost)
            warnings.warn(f"weights that were one tensor when saved are several in this model: {named}", stacklevel=4)

    # The parts

    def set_optimizer(self, optimizer: Stateful) -> None:
        """Take the optimizer in, with its saved state where there is one."""
        self._watch(optimizer)
        self.optimizer = optimizer
        self._load_optimizer_and_scheduler()
        self._restore_random()

    def set_schedule(self, schedule: Schedule | None) -> None:
        """Take the scheduler in, with its saved state where there is one; None takes it away."""
        self.schedule = schedule
        self._load_optimizer_and_scheduler()
        self._restore_random()

    def set_scaler(self, scaler: Stateful | None) -> None:
        """Take the gradient scaler in, with its saved state where there is one; None takes it away."""
        self.scaler = scaler
        self._load_scaler()

    def register(self, name: str, registered: Registered) -> None:
        """Take something of the user's in, with its saved state where there is one."""
        self._watch(registered.thing)
        self.registered[name] = registered
        self._load_registered(name)
        self._restore_random()

    def _watch(self, thing: Generator | Stateful) -> None:
        """Take note of each update that an optimizer does from now on; it is not kept alive by that."""
        steps = stepped(thing)
        if steps is not None and thing not in self._watched:
            steps.register_step_pre_hook(partial(self._on_update, weakref.ref(thing)))
            self._watched.add(thing)

    def _on_update(self, stepping: weakref.ref[Any], *_: object) -> None:
        self.moved = True
        thing = stepping()
        if thing is not None and thing not in self._unsaved and not self._is_saved(thing):
            self._unsaved.add(thing)
            warnings.warn(
                f"{type(thing).__name__} goes on although set_optimizer was given another one since, and is not saved; "
                'a second optimizer is saved by register("optimizer_d", optimizer)',
                stacklevel=2,
            )

    def _is_saved(self, thing: object) -> bool:
        """Whether it, or an optimizer with parameters of its own in place of it, is what a checkpoint holds."""
        saved = [self.optimizer, *(each.thing for each in self.registered.values())]
        if any(each is thing for each in saved):
            return True
        return any(_parameters(thing) & _parameters(each) for each in saved)


def _parameters(thing: object) -> set[int]:
    return {id(each) for group in getattr(thing, "param_groups", ()) for each in group["params"]}


def _state_of(name: str, thing: Generator | Stateful, keep: Keep) -> Any:
    if isinstance(thing, Generator):
        return generator_state(thing)
    return encode(thing.state_dict(), name, keep)
