"""CheckpointManager: carries out what the policy asks for, without stopping the training.

The thread that trains only copies what is to be saved. One worker thread writes commits, notes, tags and prunes, in the
order in which they were asked for; one save at a time, so that the memory of the copy can be reused.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from coral.objects import Commit
from coral.repository import Repository
from coral.store import check_ref_name
from coral.training._capture import Capture
from coral.training._config import DEFAULT_CONFIG, CheckpointConfig
from coral.training._disk import Disk, spare
from coral.training._events import (
    Action,
    Annotate,
    EpochEnd,
    Event,
    Interrupted,
    Prune,
    Save,
    Saved,
    SaveFailed,
    StepEnd,
    Stop,
    TrainBegin,
    TrainEnd,
)
from coral.training._failures import Failures
from coral.training._lineage import Lineage
from coral.training._missing_metric import MissingMetric
from coral.training._outside import Outside
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import PolicyState
from coral.training._progress import Progress
from coral.training._pushing import Pushing
from coral.training._queue import Queue
from coral.training._record import TrainingState
from coral.training._resuming import find, monitor_of, rebuild
from coral.training._source import Snapshot, StateSource
from coral.training._upkeep import Upkeep
from coral.training._writing import RunWriter

_log = logging.getLogger("coral")

_PATIENCE = 60.0  # seconds that a run which was interrupted waits for its last push


class CheckpointManager:
    """Folds a run's events into checkpoints of a repository.

        with CheckpointManager(repo, config, source, experiment="mine") as manager:
            for step in ...:
                manager.emit(StepEnd(step))

    `branch` is where it commits: HEAD's branch as it is now where None, made from HEAD where it does not exist. With
    no config at all: every epoch, best on "loss", the 5 last and the 3 best are kept. Each manager is a run of its
    own, with an id that is in its commits; `restore` makes it go on from an earlier one. What is saved is pushed to
    `push_to`, a remote's name or URL, in the background; what could not be pushed is by the next run, or `coral push`.

    `emit` returns when the snapshot is taken. If a save in the background failed, the next `emit`, `wait` or `close`
    raises SaveFailedError, after it has done its own work.
    """

    def __init__(
        self,
        repo: Repository,
        config: CheckpointConfig | None,
        source: StateSource,
        *,
        experiment: str = "default",
        branch: str | None = None,
        push_to: str | os.PathLike[str] | None = None,
    ) -> None:
        self.config = DEFAULT_CONFIG if config is None else config
        self.repo = repo.with_durability(self.config.durability)
        self.experiment = experiment
        self.branch = repo.head if branch is None else check_ref_name(branch)
        self._writer = RunWriter(self.repo, self.config, experiment, self.branch)
        self._upkeep = Upkeep(self.repo, background=self.config.background_repack)
        self._pushing = Pushing(self.repo, push_to, self.branch, prune=self.config.prune_remote)
        self._lineage = Lineage(self.repo.store.fs)
        self.policy = CheckpointPolicy(self.config)
        self.state = self._before = PolicyState()
        self._missing_metric = MissingMetric(self.policy, experiment)
        self.stop_reason: str | None = None
        self.on_saved: list[Callable[[int, str], None]] = []
        self._source = source
        self._capture = Capture(source, copies=self.config.async_save, experiment=experiment)
        self._disk = Disk(self.repo, self.config, self._upkeep.free, self._writer.prune)
        self._outside = Outside(self.repo.store.fs, self.config, experiment)
        self._queue = Queue(beside=self.config.async_save)
        self._failures = Failures()
        self._at = Progress()
        self._unpruned: list[tuple[int, str]] = []  # what could not be marked as pruned, of the worker's
        self._interrupted = False

    @property
    def run(self) -> str:
        """The id of this run, which is in its commits: another one after `restore`."""
        return self._lineage.run

    # -- events -----------------------------------------------------------------------------------------------------

    def emit(self, *events: Event) -> None:
        """Take in what happened, and save what is due. All events of one call belong to the present moment."""
        self._lineage.go_on(self.experiment)
        self._collect(wait=False)
        events = self._outside.join(self._in_full(events))
        self.stop_reason = self._outside.stop_reason(events) or self.stop_reason
        self._interrupted = self._interrupted or any(isinstance(event, Interrupted) for event in events)
        for event in events:
            self._at.follow(event)
        state, actions = self.policy.advance(self.state, *events)
        if any(isinstance(action, Save) or _recaptures(action, events) for action in actions):
            self._collect(wait=True)  # an interrupt of this wait leaves the step as if it had not come
            state, actions = self.policy.advance(self.state, *events)
        self._before, self.state = self.state, state
        self._outside.answer(state)
        self._run(actions, events)
        self._missing_metric.look(self.state)
        self._failures.raise_first()

    def request_save(self) -> None:
        """Ask for a save when the step or epoch that is under way ends; from any thread, or a signal's handler.

        So does a file named SAVE in the repository's folder (`save_on_request`), which is removed when it is saved.
        """
        self._outside.requests.ask()

    @property
    def asked_to_end(self) -> bool:
        """Whether a SIGTERM came that no event has met yet (`handle_signals`): the next one saves, and says to stop.

        An adapter whose host can only end its loop before that event looks here.
        """
        return self._outside.ends

    def _in_full(self, events: tuple[Event, ...]) -> tuple[Event, ...]:
        """The events with what their sender left out: the beginning, and the time."""
        if not self._at.begun:
            self._pushing.begin()
        if not self._at.begun and not isinstance(events[0] if events else None, TrainBegin):
            events = (TrainBegin(0), *events)
        now = time.monotonic()
        return tuple(replace(e, time=now) if isinstance(e, StepEnd) and e.time is None else e for e in events)

    def _run(self, actions: tuple[Action, ...], events: tuple[Event, ...] = ()) -> None:
        for action in actions:
            match action:
                case Save():
                    self._save(action, events)
                case Annotate():
                    self._annotate(action, events)
                case Prune(steps=steps):
                    self._queue.do(partial(self._prune, self._lineage.drop(steps)))
                case Stop(reason=reason):
                    self.stop_reason = reason
                    _log.info("%s: stop: %s", self.experiment, reason)

    # -- saving -----------------------------------------------------------------------------------------------------

    def _save(self, action: Save, events: tuple[Event, ...]) -> None:
        taken = self._take(action.step, last=any(isinstance(event, TrainEnd) for event in events))
        if taken is None:
            return
        snapshot, copied = taken
        mid_step = any(isinstance(event, Interrupted) and event.mid_step for event in events)
        if mid_step:
            snapshot = replace(snapshot, exact=False, why="interrupted inside optimizer.step()")
        record = self._record(action.step, snapshot)
        work = partial(self._writer.commit, snapshot, record, action.reasons, dict(self.state.metrics))
        if self.config.check_disk:
            self._disk.begin(self._capture.nbytes, self.experiment, held=len(self._lineage.commits))
            work = partial(self._disk.save, work, spare(self.policy, self.state, action.step, self._lineage.commits))
        work = partial(self._writer.said, action.step, work)
        saved = self._queue.save(action.step, work, here=False) if copied else self._in_place(action.step, work)
        self._queue.do(lambda: None if saved.exception() else self._upkeep.saved(saved.result()))
        self._queue.do(lambda: None if saved.exception() else self._pushing.saved())
        if "best" in action.reasons:  # on its own: a tag that fails does not undo the save
            self._queue.do(lambda: None if saved.exception() else self._writer.tag_best(saved.result(), record.run))
        if not copied or any(isinstance(event, Interrupted) for event in events):
            self._collect(wait=True)

    def _take(self, step: int, *, last: bool = False) -> tuple[Snapshot, bool] | None:
        """What `Capture.take` gives; None where that fails. An interrupt leaves the step as if it had not come."""
        try:
            return self._capture.take(step, last=last)
        except Exception as error:  # noqa: BLE001 - reported at the next event
            _log.error("%s: saving step %d failed: %s", self.experiment, step, error)
            self._fail(step, error)
            return None
        except BaseException:
            self._outside.requests.failed(step)
            self.state = self._before
            raise

    def _in_place(self, step: int, work: Callable[[], str]) -> Future[str]:
        """Save what is no copy: the training waits, and an interrupt ends the save before it ends anything else."""
        try:
            return self._queue.save(step, work, here=True)
        except BaseException as interrupt:
            self._outside.requests.failed(step)
            self.state, _ = self.policy.advance(self.state, SaveFailed(step, repr(interrupt)))
            raise

    def _record(self, step: int, snapshot: Snapshot) -> TrainingState:
        return TrainingState(
            run=self.run,
            experiment=self.experiment,
            step=step,
            epoch=self._at.epoch,
            epoch_complete=self._at.epoch_complete,
            previous=self._lineage.previous,
            resumed_from=self._lineage.resumed_from,
            exact=snapshot.exact,
            why=snapshot.why,
            policy=self.state.to_json(counters_only=True),
            kept=self.policy.current(self.state).to_json(),
            monitor=list(monitor_of(self.policy)),
        )

    def _annotate(self, action: Annotate, events: tuple[Event, ...]) -> None:
        """Add to a save of this step. An epoch's end moves schedulers on: its state replaces the one saved."""
        step, snapshot, copied = action.step, None, True
        extra: dict[str, Any] = {"kept": self.policy.current(self.state).to_json()}
        if _recaptures(action, events):
            taken = self._take(step) if self._lineage.of(step) is not None else None  # that save failed
            if taken is None:
                return
            snapshot, copied = taken
            record = self._record(step, snapshot)
            extra = {
                name: record.fields()[name] for name in ("epoch", "epoch_complete", "exact", "why", "policy", "kept")
            }
        before, run = self._queue.pending, self.run

        def work() -> None:
            if before and before.step == step:
                id = None if before.commit.exception() else before.commit.result()
            else:
                id = self._lineage.of(step)
            if id is not None:  # else the save itself failed, and says so
                self._writer.note(id, action, extra, snapshot, run)

        self._queue.do(work, here=not copied)
        if not copied:
            self._collect(wait=True)

    def _prune(self, commits: list[tuple[int, str]]) -> None:
        due, self._unpruned = [*self._unpruned, *commits], []
        try:
            self._upkeep.pruned(self._writer.prune(due))
        except BaseException:
            self._unpruned = due  # with what comes next
            raise

    # -- what the worker reports ------------------------------------------------------------------------------------

    def _collect(self, *, wait: bool) -> None:
        """Take in what the worker has finished, or everything if `wait`."""
        for step, done in self._queue.finished(wait=wait):
            error = done.exception()
            if step is not None and isinstance(error, Exception):
                self._fail(step, error)
            elif step is not None:
                self._saved(step, done.result() or "")
            elif isinstance(error, Exception):
                message = f"{self.experiment}: a note, tag or prune could not be written: {error}"
                _log.error("%s", message)
                self._failures.note(message, error, None)

    def _saved(self, step: int, commit: str) -> None:
        self._lineage.saved(step, commit)
        self._outside.requests.saved(step)
        self.state, actions = self.policy.advance(self.state, Saved(step, commit))
        self._run(actions)
        for hook in self.on_saved:
            try:
                hook(step, commit)
            except Exception as error:  # noqa: BLE001 - the hook's own, reported at the next event
                message = f"{self.experiment}: what is to follow a save failed for step {step}: {error}"
                _log.error("%s", message)
                self._failures.note(message, error, step)

    def _fail(self, step: int, error: Exception) -> None:
        self._outside.requests.failed(step)
        self.state, actions = self.policy.advance(self.state, SaveFailed(step, str(error)))
        self._run(actions)
        self._failures.note(f"{self.experiment}: saving step {step} failed: {error}", error, step)

    # -- going back -------------------------------------------------------------------------------------------------

    def restore(self, ref: str | None = None, *, best: bool = False) -> Commit | None:
        """Put training back to a checkpoint, and go on from there as a new run; returns it.

        `ref` is anything that `Repository.resolve` knows, `best`, `last` and `step:500` within this branch; without
        one, the branch's newest checkpoint, or the best with `best` (with a warning and the newest where none is).
        None where the branch has no commit yet. Raises UnknownRef, CommitPruned, WeightsMismatch, CorruptObject.
        """
        self._collect(wait=True)
        id = find(self.repo, self.branch, self.experiment, ref, best=best)
        if id is None:
            return None
        commit = self.repo.show(id)
        self._source.restore(Snapshot(self.repo.load(id), self.repo.load_state(id), exact=commit.exact))
        self._resume(commit)
        self._failures.raise_first()
        return commit

    def _resume(self, commit: Commit) -> None:
        """Go on from a checkpoint as a new run, which keeps to the budgets of what it goes on from."""
        found = TrainingState.of(commit)
        resumed = rebuild(self.repo, self.policy, self.branch, self.experiment, commit)
        inexact = "" if commit.exact else (found.why if found else "") or "no training state tells why"
        self._lineage.resume(commit.id, resumed.commits, resumed.held, inexact)
        self.state = resumed.state
        self._at = Progress(found.step, found.epoch, found.epoch_complete) if found else Progress()
        self._at.begun = True
        self.stop_reason = "early stopping had ended the run that this one goes on from" if self.state.stopped else None
        self.state, _ = self.policy.advance(self.state, TrainBegin(self._at.step, resumed=True))
        how = f"approximately ({inexact})" if inexact else "exactly"
        _log.info("%s: resumed %s from %s, step %d", self.experiment, how, commit.id[:12], self._at.step)

    @property
    def epoch_to_run(self) -> int:
        """The 0-based epoch that training is in, or goes on with."""
        return self._at.epoch_to_run

    # -- the end ----------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Return when everything that was asked for is saved; raises SaveFailedError if something was not."""
        self._collect(wait=True)
        self._failures.raise_first()

    def finish(self) -> None:
        """Save the last step, if that is asked for and there is anything new; return when all of it is saved.

        `close` does so, too. It is apart for processes that must not wait for each other while `close` pushes.
        """
        try:
            if self._at.begun and self._at.moved:
                self.emit(TrainEnd(self._at.step))
        finally:
            self._collect(wait=True)
        self.repo.sync()
        self._failures.raise_first()

    def close(self, *, save: bool = True) -> None:
        """End the run: save its last step if that is asked for and there is anything new, and finish.

        Without `save`, what came since the last save is let go of. The last push is waited for; after an `Interrupted`
        for a minute at most, as something waits for the end. `restore` works afterwards, and so does training on.
        """
        with ExitStack() as ends:  # whichever of them fails, or is interrupted; the last comes first
            ends.callback(self._outside.close)
            ends.callback(self._lineage.close)
            ends.callback(self._close_pushing)
            ends.callback(self._upkeep.close)
            ends.callback(self.repo.sync)
            ends.callback(self._queue.close)
            if save:
                self.finish()
            else:
                self.wait()

    def _close_pushing(self) -> None:
        patience, self._interrupted = _PATIENCE if self._interrupted else None, False
        self._pushing.close(patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The exception that is on its way is what matters: nothing here may take its place. It may have come from
        # inside an optimizer's step, for all that is known here: an adapter that knows better emits Interrupted
        # itself.
        for end in (partial(self._save_before, error), self.close):
            try:
                end()
            except Exception as failure:  # noqa: BLE001 - said, and left at that
                _log.error("%s: while ending after %r: %s", self.experiment, error, failure)

    def _save_before(self, error: BaseException) -> None:
        if self._at.begun and self._at.moved and not isinstance(error, GeneratorExit):
            asked = isinstance(error, KeyboardInterrupt | SystemExit)
            self.emit(Interrupted(self._at.step, "requested" if asked else "exception", mid_step=True))


def _recaptures(action: Action, events: Iterable[Event]) -> bool:
    """Whether what was saved at this step has moved on since: an epoch's end steps schedulers."""
    return isinstance(action, Annotate) and any(isinstance(event, EpochEnd) for event in events)
