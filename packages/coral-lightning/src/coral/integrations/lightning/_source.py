"""A trainer's run as the checkpoint manager sees it: its weights, and if it is asked for all that it goes on by."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coral.errors import UnsupportedValue
from coral.integrations.lightning._checkpoints import dump, dump_alone, dump_weights, encoded, versions
from coral.integrations.lightning._generators import generators
from coral.integrations.lightning._position import Position, fingerprint, position, settled
from coral.integrations.pytorch._buffers import TensorBuffers
from coral.integrations.pytorch._modules import is_sharded
from coral.integrations.pytorch._optimizers import is_cast_by_loading, stepped
from coral.integrations.pytorch._ranks import Ranks
from coral.integrations.pytorch._state import Keep, encode, keep_all, viewed
from coral.integrations.pytorch._tensors import check
from coral.training import CheckpointConfig, Snapshot

__all__ = ["TrainerSource"]

_log = logging.getLogger("coral")

_NAMED = 3  # parameters that a reason names


class TrainerSource:
    """The parts of a trainer's run, on one of its processes. `restore` does nothing: the trainer does that itself."""

    def __init__(self, trainer: Any, config: CheckpointConfig, *, complete: bool) -> None:
        self.metadata: dict[str, Any] = {}
        self.begun = False  # a batch has begun since the last update was complete
        self.interrupted = False  # by an exception: nobody knows where the other processes are
        self.evaluating = False  # an evaluation has begun, and is not over
        self.between = False  # ... which came between two batches, when nothing was under way
        self.config = config
        self._trainer = trainer
        self._complete = complete
        self._random = config.save_random_state
        self._sharded = is_sharded(trainer.lightning_module)
        self._position: Position | None = None
        self._started: object = None  # what random numbers were like when our hook of the training's start was over
        self._start_draws = False  # whether some were drawn between that and the first batch
        self._trains: frozenset[str] | None = None  # the parameters that were to be trained when training began
        self._own: frozenset[str] = frozenset()  # where the loaders had random generators of their own by then
        self._dumped: dict[str, Any] = {}
        self._buffers = TensorBuffers()
        self._told: set[str] = set()
        several = trainer.world_size > 1
        may_stop = config.early_stopping_patience is not None or config.handle_signals
        self._needs_all = several and (complete or self._sharded)
        self.ranks = Ranks(self._give, trainer.strategy.root_device)
        self.ranks.together = self._needs_all or (several and may_stop)

    def starts(self) -> None:
        """Our hook of the training's start is over; others may follow: a run that goes on has put its numbers back."""
        self._started = fingerprint() if self._complete else None

    def goes(self) -> None:
        """Training begins with an epoch; with a batch, where it goes on within one."""
        if self._started is not None:
            self._start_draws, self._started = self._started != fingerprint(), None
            self._trains = _trained(self._trainer.lightning_module)
            self._own = frozenset(generators(self._trainer))

    # The position, taken at the event

    def mark(self, *, epoch_over: bool = False) -> None:
        """Everything of a step is complete so far: if it is saved, training goes on from here."""
        if not self._complete:
            return
        try:
            self._position = position(self._trainer, epoch_over=epoch_over, random=self._random)
        except Exception as error:  # noqa: BLE001 - a data loader's; it is asked at each step, and few are saved
            self._position = None
            self._say_once("position", f"the run cannot be saved where its position is not known: {error!r}")

    def settle(self) -> None:
        """The boundary has come."""
        if self._position is not None:
            self._position = settled(self._position, self._trainer)

    # Capture

    def capture(self, *, copy: bool = True) -> Snapshot:
        """The run as it is now: in buffers that the next capture uses again; without `copy` partly its own memory."""
        given = self.ranks.gather() if self._needs_all and not self.interrupted else [self._give()]
        dumped, self._dumped = self._dumped, {}
        self._buffers.begin()
        keep = self._buffers.copy if copy else viewed
        tensors = {name: each for name, each in dumped["state_dict"].items() if isinstance(each, Tensor)}
        extra = {name: each for name, each in dumped["state_dict"].items() if name not in tensors}
        for name, tensor in tensors.items():
            check(tensor, name)
        weights, tied = keep_all(tensors, keep)
        state: dict[str, Any] = {
            "extra": encode(extra, "extra state", keep),
            "tied": tied,
            "versions": versions(dumped["state_dict"], keep),
        }
        why = self._why_inexact()
        if self._complete:
            whole, left = self._whole(dumped, given, keep)
            state.update(whole)
            why += [f"what is not saved: {', '.join(left)}"] if left else []
        self._buffers.finish()
        return Snapshot(weights, state, exact=not why, why="; ".join(why), metadata=dict(self.metadata))

    def restore(self, snapshot: Snapshot) -> None:
        """Nothing is left to do: the trainer has loaded the checkpoint that it goes on from."""

    def _give(self) -> dict[str, Any]:
        """What each process has: it dumps the checkpoint with the others, and gives what they do not know."""
        trainer, place = self._trainer, self._position
        several = trainer.world_size > 1
        if self.interrupted and several:
            if self._sharded:
                raise UnsupportedValue("the weights are in parts on several processes, and the others cannot be asked")
            self._dumped = dump_alone(trainer)
        elif self._complete:
            self._dumped = dump(trainer)
        else:
            self._dumped = dump_weights(trainer)
        if place is None:
            return {}
        return {"random": place.random, "loaders": place.loaders, "own_generators": place.own_generators}

    def _whole(
        self, dumped: dict[str, Any], given: list[dict[str, Any]], keep: Keep
    ) -> tuple[dict[str, Any], list[str]]:
        place = self._position
        if place is None:
            raise UnsupportedValue(
                "there is no position to go on from: no update was completed yet, or a data loader told none",
                path="loops",
            )
        dumped["loops"] = {**dumped["loops"], "fit_loop": place.loops}
        precision = type(self._trainer.precision_plugin).__qualname__
        loop, left = encoded(dumped, keep, needed=[precision])
        for path in left:
            self._say_once(f"left: {path}", f"{path} is no plain data: it is left out of the checkpoints")
        state = {
            "lightning": loop,
            "within_epoch": place.within_epoch,
            "ranks": [encode(each, "data loaders", keep) for each in given],
        }
        hyperparameters = ("hyper_parameters", "datamodule_hyper_parameters", "hparams")
        return state, [path for path in left if not path.startswith(hyperparameters)]

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            _log.warning("%s", text)

    def _why_inexact(self) -> list[str]:
        if not self._complete:
            return ["the state of the loop was not saved (include_optimizer=False)"]
        why = [*self._position.why] if self._position is not None else []
        if self._position is not None and self._position.within_epoch and self._start_draws:
            why.append("it was saved within an epoch, and what happens before the first batch draws random numbers")
        if self._position is not None and (made := self._position.own_generators.keys() - self._own):
            why.append(
                f"random generators ({', '.join(sorted(made))}) were made since training began, and a run that goes on "
                "has none to put back as it begins"
            )
        if self._trains is not None and (turned := self._trains ^ _trained(self._trainer.lightning_module)):
            some = ", ".join(sorted(turned)[:_NAMED]) + (", ..." if len(turned) > _NAMED else "")
            why.append(
                f"{len(turned)} parameters ({some}) were frozen or unfrozen since training began, and a run that goes "
                "on has them as it begins itself"
            )
        if self._trainer.reload_dataloaders_every_n_epochs:
            why.append("data loaders are made anew as it goes on (reload_dataloaders_every_n_epochs), and draw then")
        if self.interrupted and (self.begun or self.evaluating or not self.between):
            why.insert(0, "it was saved on an exception, when random numbers and data had moved past the last step")
        elif self.begun:
            why.insert(0, "it was saved between the batches of one update")
        if self.interrupted and self._trainer.world_size > 1:
            why.append("the other processes could not be asked for their random generators")
        if _sums_in_another_order(self._trainer):
            why.append("DistributedDataParallel sums gradients in another order in the first step of a process")
        if self._sharded and any(map(is_cast_by_loading, filter(None, map(stepped, self._trainer.optimizers)))):
            why.append("the state of an optimizer is cast to its parameters' dtype as it is put into parts again")
        if not self._random:
            why.append("the state of the random number generators was not saved")
        return why


def _trained(module: nn.Module) -> frozenset[str]:
    """The names of the parameters that are not frozen."""
    return frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def _sums_in_another_order(trainer: Any) -> bool:
    """Whether the first step after a resume may round otherwise: a sum of more than two depends on its order.

    DistributedDataParallel puts gradients into other buckets after its first step, unless it looks for unused ones.
    """
    model = trainer.model
    return isinstance(model, DistributedDataParallel) and trainer.world_size > 2 and not model.find_unused_parameters
