"""CoralTrainer: checkpoints for a training loop of one's own."""

from __future__ import annotations

import logging
import operator
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex

from torch import Tensor, nn

from coral.errors import ConfigError, PolicyError, UnsupportedValue
from coral.integrations.pytorch._callbacks import CallbackEvent, Callbacks
from coral.integrations.pytorch._metrics import not_finite, numbers_of, to_floats
from coral.integrations.pytorch._modules import check_module, unwrapped
from coral.integrations.pytorch._opening import RepositoryLike, opened
from coral.integrations.pytorch._optimizers import Stateful, check_stateful, warn_of_lambdas
from coral.integrations.pytorch._random import Generator
from coral.integrations.pytorch._ranks import rank
from coral.integrations.pytorch._schedule import Schedule, StepOn
from coral.integrations.pytorch._source import Registered, TrainingSource
from coral.integrations.pytorch._summary import list_checkpoints, summarize
from coral.training import (
    DEFAULT_CONFIG,
    CheckpointConfig,
    CheckpointManager,
    EpochEnd,
    Interrupted,
    StepEnd,
)

__all__ = ["CoralTrainer"]

_log = logging.getLogger("coral")


class CoralTrainer:
    """Saves a training run as it goes, by a CheckpointConfig, and takes it back to any saved moment, exactly.

    The repository is one, or its folder, which is made where there is none.

    The loop stays the user's: call `step` after each optimizer update and `epoch_end` after each epoch. Saving goes on
    in the background; `close`, or leaving the `with`, waits for it and saves the end of the run.

        with CoralTrainer(model, Repository("weights", init=True), "digits", resume=True) as trainer:
            trainer.set_optimizer(optimizer)
            trainer.set_scheduler(scheduler)
            for epoch in range(trainer.start_epoch, epochs):
                for batch in batches:
                    loss = train_on(batch)
                    trainer.step(loss)
                trainer.epoch_end(epoch, val_loss=validate())

    `resume=True` goes on from the newest checkpoint, if there is one, and `resume="<ref>"` from that one; without it a
    run starts anew, on the same branch. The model is loaded at once, and what is set later gets its state when it is
    set. Random generators are put back then too, and last when `start_epoch` is first read: whatever was drawn before
    the loop, it goes on as the run that was never interrupted.

    `push_to` is a remote, a name or a URL, that each checkpoint is pushed to in the background; what cannot be pushed
    then is pushed by the next run.

    In a distributed run it is made on rank 0 alone: on another one it warns.
    """

    def __init__(
        self,
        model: nn.Module,
        repository: RepositoryLike,
        experiment_name: str = "default",
        checkpoint_config: CheckpointConfig | None = None,
        *,
        branch: str | None = None,
        resume: bool | str = False,
        push_to: str | os.PathLike[str] | None = None,
    ) -> None:
        config = DEFAULT_CONFIG if checkpoint_config is None else checkpoint_config
        if not isinstance(experiment_name, str):
            raise ConfigError(f"experiment_name is a {type(experiment_name).__name__}; it must be a str.")
        if not isinstance(config, CheckpointConfig):
            raise ConfigError(
                f"checkpoint_config is a {type(config).__name__}; it must be a CheckpointConfig, or None."
            )
        check_module(unwrapped(model))
        if (number := rank()) > 0:
            warnings.warn(
                f"CoralTrainer on rank {number} saves a run of its own beside that of rank 0; make it on rank 0 alone, "
                "and have the others told where to go on (see coral-torch's README)",
                stacklevel=2,
            )
        self.model = model
        self.repository = opened(repository, init=True)
        self._monitored = config.save_on_best_metric or "loss"
        self._source = TrainingSource(unwrapped(model), config)
        self.manager = CheckpointManager(
            self.repository, config, self._source, experiment=experiment_name, branch=branch, push_to=push_to
        )
        self._callbacks = Callbacks(self, self.manager.repo)
        self.manager.on_saved.append(self._callbacks.saved)
        self._began = time.monotonic()
        if resume is not False:
            self.load_checkpoint(None if resume is True else resume)

    # The parts of the run

    def set_optimizer(self, optimizer: Stateful) -> None:
        """Save this optimizer's state with each checkpoint; if a checkpoint was loaded, it gets its state now.

        It takes the place of the one that was set before. A second one beside it, as a GAN has, is saved by
        `register("optimizer_d", optimizer)`: it is warned of if the first one goes on and is not saved.
        """
        check_stateful(optimizer, "set_optimizer")
        self._source.set_optimizer(optimizer)

    def set_scheduler(
        self, scheduler: Stateful | None, step_on: StepOn = "epoch", *, metric: str | None = None
    ) -> None:
        """Save this scheduler's state with each checkpoint, and step it: at each "epoch", each "step", or never (None).

        At the end of an epoch it is stepped before saving. A plateau scheduler is given the `metric` of that name, by
        default the one that `save_on_best_metric` names. A scheduler that the loop has stepped itself since the
        last epoch's end is left alone; a loop that steps its scheduler must do so before `epoch_end` (or `step`), or
        the checkpoint holds it as it was before. None is none.
        """
        if scheduler is None:
            self._source.set_schedule(None)
            return
        check_stateful(scheduler, "set_scheduler")
        warn_of_lambdas(scheduler)
        self._source.set_schedule(Schedule(scheduler, step_on, metric or self._monitored))

    def set_scaler(self, scaler: Stateful | None) -> None:
        """Save this gradient scaler's state with the optimizer's; None is none."""
        if scaler is not None:
            check_stateful(scaler, "set_scaler")
        self._source.set_scaler(scaler)

    def register(self, name: str, thing: Generator | Stateful, *, data: bool = False) -> None:
        """Save something else under a name: a random generator, or whatever has state_dict and load_state_dict.

        `data=True` says that it knows the position in the data (as a stateful data loader does), so that a checkpoint
        saved within an epoch can be resumed exactly.
        """
        if not isinstance(name, str):
            raise ConfigError(f"register was given the name {name!r}; it must be a str.")
        if not isinstance(thing, Generator):
            check_stateful(thing, f"register({name!r}, ...)", "a random generator, or what")
        self._source.register(name, Registered(thing, data))

    def add_callback(self, event: CallbackEvent, function: Callable[..., object]) -> None:
        """Call a function at each "step_end", "epoch_end" or "checkpoint_save", by the thread that trains.

        It is given the trainer, and by name: `step`, `epoch` and `metrics`, and of a checkpoint `commit` and `reasons`,
        too. The metrics of a step are as they were given to `step`; those of an epoch are its means. A checkpoint is
        told of when it is saved, which is in a later `step`, `epoch_end`, `wait` or `close`. What a function raises
        comes out of that call as it is, after all else that the call does.
        """
        self._callbacks.add(event, function)

    # Training

    def step(self, loss: float | Tensor, **metrics: float | Tensor) -> None:
        """An optimizer update is complete; this may save.

        The loss and other metrics are numbers or one-element tensors on any device. They are averaged over the epoch,
        under their names, without waiting for the device here.
        """
        given = {"loss": loss, **metrics}
        self._source.means.add(given)
        numbers = numbers_of(given)
        self._begin()
        progress = self._source.progress
        self._source.progress = progress = replace(
            progress, step=progress.step + 1, steps_in_epoch=progress.steps_in_epoch + 1
        )
        if self._source.schedule is not None:
            self._source.schedule.advance("step", numbers)
        self._source.moved = False
        self.manager.emit(StepEnd(progress.step, time.monotonic(), numbers))
        self._callbacks.tell("step_end", step=progress.step, epoch=progress.epoch, metrics=given)

    def epoch_end(self, epoch: SupportsIndex, **metrics: float | Tensor) -> None:
        """Epoch `epoch`, counted from 0, is complete; this may save.

        Its metrics are the means of what `step` was given and, by other names or instead, those given here. One that
        is not finite is warned of; it is never the best.
        """
        number = self._check_epoch(epoch)
        means = {**self._source.means.means(), **to_floats(metrics)}
        for name in not_finite(means):
            warnings.warn(f"metric {name!r} is {means[name]} in epoch {number}", stacklevel=2)
        self._begin()
        if self._source.schedule is not None:
            self._source.schedule.advance("epoch", means)
        self._source.means.clear()
        progress = self._source.progress
        self._source.progress = replace(progress, epoch=number + 1, steps_in_epoch=0, metrics=means)
        self.manager.emit(EpochEnd(progress.step, number, complete=True, metrics=means))
        self._callbacks.tell("epoch_end", step=progress.step, epoch=number, metrics=dict(means))

    def request_save(self) -> None:
        """Ask for a save when the step that is under way ends; from any thread, or a signal's handler."""
        self.manager.request_save()

    def _begin(self) -> None:
        if self._source.going:
            return
        if left := self._source.go_on():
            warnings.warn(f"the checkpoint has state for what was not set: {', '.join(left)}", stacklevel=3)

    def _check_epoch(self, epoch: SupportsIndex) -> int:
        if isinstance(epoch, bool) or not hasattr(epoch, "__index__"):
            raise UnsupportedValue(f"epoch_end takes the number of the epoch, an int, not {epoch!r}", path="epoch")
        number = operator.index(epoch)
        if number < 0:
            raise PolicyError(f"epoch_end was given epoch {number}; epochs are counted from 0")
        last = self._source.progress.epoch - 1
        if number <= last:
            raise PolicyError(f"epoch_end was given epoch {number}, but epoch {last} has ended already")
        return number

    # Going back

    def load_checkpoint(
        self,
        commit_hash: str | None = None,
        load_best: bool = False,
        load_optimizer: bool = True,
        load_scheduler: bool = True,
    ) -> bool:
        """Go back to a checkpoint: the branch's newest, its best, or that of a ref. False if there is none yet.

        It waits for pending saves and restores model, optimizer, scheduler, random generators, step, epoch and the
        policy's state; with no best it loads the last and warns. Then `start_epoch` says where the loop goes on.
        """
        if commit_hash is not None and load_best:
            raise ConfigError("give commit_hash or load_best=True, not both")
        wanted = {"optimizer": load_optimizer, "scaler": load_optimizer, "scheduler": load_scheduler}
        self._source.skipped = frozenset(name for name, wants in wanted.items() if not wants)
        return self.manager.restore(commit_hash, best=load_best) is not None

    @property
    def start_epoch(self) -> int:
        """The epoch to go on with: the one after a complete epoch, or the one that a checkpoint was saved within.

        When it is first read after a checkpoint was loaded, the random generators are put back to where they were.
        """
        self._source.settle()
        return self._source.progress.epoch

    @property
    def current_epoch(self) -> int:
        """The epoch that is under way, or else the last one that ended; 0 before the first."""
        progress = self._source.progress
        return progress.epoch if progress.steps_in_epoch else max(progress.epoch - 1, 0)

    @property
    def global_step(self) -> int:
        """How many optimizer updates are complete."""
        return self._source.progress.step

    @property
    def training_metrics(self) -> dict[str, float]:
        """The metrics of the last epoch that ended."""
        return dict(self._source.progress.metrics)

    @property
    def should_stop(self) -> bool:
        """Whether training had better end here; `trainer.manager.stop_reason` says why.

        After early stopping, and after a SIGTERM where `handle_signals` is on.
        """
        return self.manager.stop_reason is not None

    # What there is

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """The experiment's checkpoints on the branch, newest first; it waits for what is being saved.

        Each is a dict of `commit`, `step`, `epoch`, `metrics`, `reasons`, `pruned` (its record is all there is left)
        and `is_best`.
        """
        self.wait()
        return list_checkpoints(self.manager)

    def get_training_summary(self) -> dict[str, Any]:
        """The run in plain values; it waits for what is being saved.

        `experiment`, `branch`, `run`; `steps` and `epochs`, complete ones; `seconds` since the trainer was made;
        `monitored`, `best_metric`, `best_step`; `checkpoints_saved` by this run, and `checkpoints_kept` of these, which
        are `raw_bytes` in memory and take `stored_bytes` in the repository.
        """
        self.wait()
        progress, seconds = self._source.progress, time.monotonic() - self._began
        return {"steps": progress.step, "epochs": progress.epoch, "seconds": seconds, **summarize(self.manager)}

    # The end

    def wait(self) -> None:
        """Return when what is being saved is saved."""
        self.manager.wait()
        self._callbacks.tell()

    def close(self) -> None:
        """End the run: save its end, if that is not saved yet, and wait for it."""
        self.manager.close()
        self._callbacks.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            if self._source.going:
                self._source.interrupted = True
                cause: Literal["requested", "exception"] = (
                    "requested" if isinstance(error, KeyboardInterrupt | SystemExit) else "exception"
                )
                # without an optimizer that was set, nobody knows whether an update has begun
                mid_step = self._source.moved or self._source.optimizer is None
                self.manager.emit(Interrupted(self.global_step, cause, mid_step))
        except Exception:  # noqa: BLE001, the error that the training ends with matters more
            _log.exception("coral could not save the run that is ending with %s", type(error).__name__)
        finally:
            self._source.interrupted = False  # training may go on after all
            self._close_after(error)

    def _close_after(self, error: BaseException) -> None:
        try:
            self.close()
        except Exception:  # noqa: BLE001, the error that the training ends with matters more
            _log.exception("coral could not finish the run that is ending with %s", type(error).__name__)
