"""One fit of a trainer, on one of its processes: events are collected as they come, and told at the boundary."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from coral import Commit
from coral.integrations.lightning._hosts import is_sigterm
from coral.integrations.lightning._metrics import Reading, logged_now, logged_since, reading
from coral.integrations.lightning._source import TrainerSource
from coral.training import (
    CheckpointManager,
    EpochEnd,
    Evaluated,
    Event,
    Interrupted,
    Save,
    Signals,
    StepEnd,
    Stop,
    TrainBegin,
    TrainEnd,
)

__all__ = ["Run"]

_log = logging.getLogger("coral")


class Run:
    """What has happened since the last boundary, and the manager that is told of it: on the main process alone."""

    def __init__(
        self, trainer: Any, source: TrainerSource, manager: CheckpointManager | None, metadata_keys: Iterable[str]
    ) -> None:
        self.manager = manager
        self.step: int = trainer.global_step
        self._trainer = trainer
        self._source = source
        self._keys = tuple(metadata_keys)
        self._unknown: set[str] = set()
        self._events: list[Event] = []
        self._batches = 0  # of this epoch
        self._moved = False  # whether there was an update
        self._updating = False  # whether one has begun, and is not complete
        self._evaluation: Reading = {}  # metrics as they were before it
        self._epoch: Reading = {}  # metrics as they were when it ended
        self._bystander = Signals.bystander(source.config, trainer.global_rank) if manager is None else None

    def begin(self, resumed: Commit | None) -> None:
        """The run begins, anew or with a checkpoint that the trainer has loaded."""
        manager = self.manager
        if manager is not None:
            if resumed is not None:
                manager.restore(resumed.id)
            if resumed is None or resumed.step != self.step:
                manager.emit(TrainBegin(self.step))
        # the loop asks each process by itself whether it is done
        self._together(lambda: manager is not None and manager.stop_reason is not None)

    # What happens is collected

    def batch_begins(self) -> None:
        """The boundary of the step before, within an epoch: a batch has been fetched, and goes through the model."""
        self.tell()
        self._source.goes()
        self._source.begun = True

    def epoch_begins(self) -> None:
        """The boundary of the epoch before."""
        self.tell()
        self._source.goes()

    def update_begins(self) -> None:
        """From here on the weights may be those of no step, until the batch is over."""
        self._updating = True

    def batch_ends(self) -> None:
        """A batch is over; with gradient accumulation not every one of them is a step."""
        self._batches += 1
        step = self._trainer.global_step
        if step <= self.step:
            return
        self.step, self._moved, self._updating, self._source.begun = step, True, False, False
        self._events.append(StepEnd(step, time.monotonic()))
        if self._asks_for(Save):
            self._events[-1] = StepEnd(step, time.monotonic(), logged_now(self._trainer))
        self._mark()

    def evaluation_begins(self) -> None:
        """The metrics that there are now are old ones."""
        self._source.evaluating = True
        self._evaluation = reading(self._trainer)

    def evaluation_ends(self) -> None:
        """The weights of this step were evaluated."""
        self._source.evaluating = False
        self._events.append(Evaluated(self.step, logged_since(self._trainer, self._evaluation)))
        if not self._source.begun and not self._of_the_stop():
            self._mark()
        self._stop_if_asked()

    def _of_the_stop(self) -> bool:
        """Whether this evaluation came only because training is to end within an epoch.

        A run that goes on from here has none, so its random numbers are those from before it.
        """
        trainer = self._trainer
        loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
        done = loop.batch_progress.current.ready
        if not trainer.should_stop or done >= trainer.num_training_batches:
            return False
        if every is None:  # by time: it is not known what this one came for, and the numbers from before it will do
            return True
        # without epochs Lightning counts the batches of the whole training
        return bool((done if trainer.check_val_every_n_epoch is not None else loop.total_batch_idx + 1) % every)

    def epoch_ends(self) -> None:
        """An epoch is over; the module logs more after this hook. One without a batch is none: training was to end."""
        if not self._batches:
            return
        trainer, self._batches = self._trainer, 0
        whole = trainer.is_last_batch or trainer.fit_loop.epoch_loop.batch_progress.current.ready >= (
            trainer.num_training_batches
        )
        self._events.append(EpochEnd(self.step, trainer.current_epoch, complete=whole))
        self._epoch = reading(trainer)
        if whole:  # one that was cut short goes on within, from its last update
            self._mark(epoch_over=True)
        self._stop_if_asked()

    def _mark(self, *, epoch_over: bool = False) -> None:
        self._source.mark(epoch_over=epoch_over)
        self._source.metadata = self._metadata()

    def _metadata(self) -> dict[str, Any]:
        found = {}
        for key in self._keys:
            value = getattr(self._trainer, key, None)
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, str | int | float):
                found[key] = value
            elif key not in self._unknown:
                self._unknown.add(key)
                _log.warning("metadata_keys: %r of the trainer is %r, not a number or a text", key, value)
        return found

    # It is told at the boundary

    def tell(self, *, ends: bool = False) -> None:
        """Tell the manager, on all processes alike, as those that have none may have to help; it may be the end."""
        if not self._events and not ends:
            return
        self._source.settle()
        events = self._take()
        if events and ends:  # at once, so that the last save need not be a copy
            events = (*events, TrainEnd(events[-1].step))
        self._together(partial(self._work, events, ends))

    def _work(self, events: tuple[Event, ...], ends: bool) -> bool:
        manager = self.manager
        if manager is None:
            return False
        if events:
            self._quietly("save", partial(manager.emit, *events))
        if ends:
            self._quietly("finish the run", manager.finish)
        return manager.stop_reason is not None

    def _take(self, *, metrics: bool = True) -> tuple[Event, ...]:
        """What was collected, with what the module has logged at the end of its epoch since."""
        events, self._events = self._events, []
        if metrics and any(isinstance(event, EpochEnd) for event in events):
            logged: dict[str, float] = {}
            # a metric of the user's is computed for it, which may be what ends the run
            self._quietly("read the metrics", lambda: logged.update(logged_since(self._trainer, self._epoch)))
            events = [replace(event, metrics=logged) if isinstance(event, EpochEnd) else event for event in events]
        return tuple(events)

    def _together(self, work: Callable[[], bool]) -> None:
        """Do it on the main process, while the others help; end the training everywhere if it says so."""
        ranks = self._source.ranks
        act = partial(ranks.lead, work) if self._trainer.is_global_zero else ranks.follow
        if act():
            self._trainer.should_stop = True

    def _stop_if_asked(self) -> None:
        """Early stopping cannot wait for the boundary: by then another batch would have begun."""
        manager = self.manager
        patient = manager is None or manager.config.early_stopping_patience is not None
        if self._source.ranks.together or patient:
            self._together(lambda: self._asks_for(Stop))

    def _asks_for(self, action: type[Save | Stop]) -> bool:
        """Whether the policy will ask for it, by what is collected so far."""
        if self.manager is None:
            return False
        _, actions = self.manager.policy.advance(self.manager.state, *self._events)
        return any(isinstance(each, action) for each in actions)

    # The end

    def end(self) -> None:
        """Training has ended in the ordinary way: all of it is saved when this returns.

        The last push may take long, and the other processes do not wait for it.
        """
        self.tell(ends=True)
        self._trainer.strategy.barrier("coral: the run is saved")
        self._close()

    def interrupted(self, error: BaseException) -> None:
        """Training ends with an exception: save what this process holds, and ask the others for nothing."""
        manager = self.manager
        if manager is not None:
            self._quietly(f"save the run that ends with {error!r}", partial(self._interrupt, manager, error))
        self._close(save=self._moved)

    def _interrupt(self, manager: CheckpointManager, error: BaseException) -> None:
        source = self._source
        source.interrupted, source.between = True, is_sigterm(error)
        source.settle()
        if self._moved:
            events = self._take(metrics=self._trainer.world_size == 1)
            manager.emit(*events, Interrupted(self.step, _cause(error), mid_step=self._updating))

    def _close(self, *, save: bool = True) -> None:
        if self._bystander is not None:
            self._bystander.stop()
        manager, self.manager = self.manager, None
        if manager is not None:
            self._quietly("finish the run", partial(manager.close, save=save))

    def _quietly(self, doing: str, act: Callable[[], Any]) -> None:
        """Do it. What fails in here is no reason to end a training that goes well."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - said, and left at that
            _log.error("coral could not %s: %s", doing, error)


def _cause(error: BaseException) -> Literal["exception", "preempted", "requested"]:
    if is_sigterm(error):
        return "preempted"
    return "requested" if isinstance(error, KeyboardInterrupt | SystemExit) else "exception"
