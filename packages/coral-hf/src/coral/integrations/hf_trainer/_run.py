"""One training of a Trainer, on one of its processes: what happens is collected, and told at the boundary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from transformers.trainer_callback import TrainerControl, TrainerState

from coral.integrations.hf_trainer._events import Collected
from coral.integrations.hf_trainer._source import TrainerSource
from coral.training import CheckpointConfig, CheckpointManager, Event, Interrupted, Signals, Stop, TrainEnd

__all__ = ["Run", "quietly"]

_log = logging.getLogger("coral")

T = TypeVar("T")


class Run:
    """What came since the last boundary, and whom to tell. The main process has the manager, the others have none.

    What fails in here is an error in the log, and no reason to end a training that goes well.
    """

    def __init__(self, config: CheckpointConfig, source: TrainerSource, manager: CheckpointManager | None) -> None:
        self._source = source
        self._manager = manager
        self._bystander = Signals.bystander(config, source.rank) if manager is None else None
        self._stops_early = config.early_stopping_patience is not None
        self._stops_when_asked = config.handle_signals
        self._collected = Collected(config.save_on_best_metric)
        self._updating = False  # an update has begun, and is not complete
        self._moved = False  # an update is complete, of this run
        self._cut = False  # ... with which training ends, wherever in its epoch that is

    def is_over(self) -> bool:
        """Whether the run has ended before it begins: it goes on from one that the policy had ended, and still would.

        A Trainer looks whether it is to stop after its first batch, and not before: that is none of the run.
        """

        def work() -> bool:
            if self._manager is None or self._manager.stop_reason is None:
                return False
            _log.warning(
                "%s: nothing is trained, but for one batch that counts for nothing: %s",
                self._manager.experiment,
                self._manager.stop_reason,
            )
            return True

        return self._together(work)

    # What happens

    def update_begins(self) -> None:
        """From here on the weights may be those of no step, until the update is complete."""
        self._updating = True

    def step_ends(self, step: int) -> bool:
        """An update is complete: whether training is to end with it, as the boundary is in the next one."""
        self._updating, self._moved = False, True
        self._collected.step_end(step)
        self._source.within_epoch = True
        self._source.before_batches()
        self._cut = self._stops_when_asked and self._together(self._was_asked_to_end)
        return self._cut

    def epoch_ends(self, state: TrainerState, control: TrainerControl) -> bool:
        """An epoch is over; its evaluation is still to come. Whether it was cut short because training is to end.

        One that goes on later is evaluated then: now that would draw random numbers, and step plateau schedulers.
        Where the data has no length the Trainer's count is a fraction at the end of a pass, which is an epoch too.
        """
        whole = state.epoch == int(state.epoch)
        cut = control.should_training_stop or control.should_epoch_stop or state.global_step >= state.max_steps
        self._collected.epoch_end(state.global_step, state.epoch, complete=whole or not cut)
        if whole:
            self._source.within_epoch = False
        elif not cut:
            self._source.unsized = True
        return self._cut and self._source.within_epoch

    def evaluated(self, step: int, metrics: Mapping[str, object]) -> bool:
        """The weights were evaluated by one of the evaluation sets: whether training is to end for it.

        That cannot wait for the boundary, which is in the next step.
        """
        self._collected.evaluated(step, metrics)
        self._source.before_batches()
        return (self._stops_early or self._stops_when_asked) and self._together(self._would_stop)

    def logged(self, logs: Mapping[str, object]) -> None:
        """Numbers of the training."""
        self._collected.logged(logs)
        self._source.before_batches()

    def saved(self) -> None:
        """The Trainer has saved a checkpoint of its own."""
        self._source.before_batches()

    # The boundary

    def step_begins(self) -> bool:
        """The boundary of the step before, within an epoch: whether training is to end."""
        self._source.after_batches()
        return self._tell()

    def epoch_begins(self) -> bool:
        """The boundary of the epoch before: whether training is to end."""
        stop = self._tell()
        self._source.epoch_begins()
        return stop

    def end(self) -> None:
        """Training has ended in the ordinary way: save its end, and wait for that.

        The last push may take long, and the other processes do not wait for it.
        """
        self._tell(ends=True)
        self._close()

    def _tell(self, *, ends: bool = False) -> bool:
        """Tell the manager, on all processes alike: those that have none may have to help."""
        events: tuple[Event, ...] = self._collected.take()
        if events and ends:  # at once, so that the last save need not be a copy
            events = (*events, TrainEnd(events[-1].step))

        def work() -> bool:
            if self._manager is None:
                return False
            if events:
                quietly("save", partial(self._manager.emit, *events))
            if ends:
                quietly("finish the run", self._manager.finish)
            return self._manager.stop_reason is not None

        return bool(events or ends) and self._together(work)

    def _would_stop(self) -> bool:
        """Whether the policy will end the training, by what is collected so far."""
        if self._manager is None:
            return False
        _, actions = self._manager.policy.advance(self._manager.state, *self._collected.events)
        return any(isinstance(action, Stop) for action in actions) or self._was_asked_to_end()

    def _was_asked_to_end(self) -> bool:
        """Whether the policy has ended the training, or a signal does at the next boundary."""
        manager = self._manager
        return manager is not None and (manager.asked_to_end or manager.stop_reason is not None)

    def _together(self, work: Callable[[], bool]) -> bool:
        """Do it on the main process, while the others help; what it says is said on all of them.

        What fails in `work` itself is an error in the log. Where the others cannot be reached the training is over, and
        this raises: a process that went on would wait for others that wait for it.
        """
        ranks = self._source.ranks
        return ranks.lead(work) if self._source.main else ranks.follow()

    # The end before its time

    def interrupted(self, error: BaseException) -> None:
        """Save what this process holds: nobody knows where the others are, or whether they are still there."""
        if self._manager is None:
            return self._close()
        self._source.interrupted, self._source.ranks.together = True, False
        asked = isinstance(error, KeyboardInterrupt | SystemExit)
        cause = Interrupted(self._source.state.global_step, "requested" if asked else "exception", self._updating)
        if self._moved:
            quietly("save the run that is interrupted", partial(self._manager.emit, *self._collected.take(), cause))
        return self._close(save=self._moved)

    def abandon(self) -> None:
        """Leave it without a save: the model has moved on. What is being saved is finished."""
        self._close(save=False)

    def _close(self, *, save: bool = True) -> None:
        if self._bystander is not None:
            self._bystander.stop()
        if self._manager is not None:
            quietly("finish the run", partial(self._manager.close, save=save))


def quietly(doing: str, act: Callable[[], T]) -> T | None:
    """What it returns; None, with an error in the log, if it fails."""
    try:
        return act()
    except Exception as error:  # noqa: BLE001 - said, and left at that
        _log.error("could not %s: %s", doing, error)
        return None
