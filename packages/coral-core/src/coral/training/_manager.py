"""CheckpointManager: carries out what the policy asks for, without stopping the training.

The thread that trains only copies what is to be saved. One worker thread writes commits, notes, tags and prunes, in the
order in which they were asked for; one save at a time, so that the memory of the copy can be reused.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from coral.errors import CoralError, SaveFailedError, UnknownRef
from coral.objects import Commit
from coral.repository import Repository
from coral.state import flatten
from coral.store import intent, needed
from coral.training._config import DEFAULT_CONFIG, CheckpointConfig
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
from coral.training._memory import short_of_memory
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import Kept, PolicyState
from coral.training._record import TrainingState
from coral.training._source import Snapshot, StateSource
from coral.weights import WeightTensor

_log = logging.getLogger("coral")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Pending:
    """A save that the worker has not reported on yet."""

    step: int
    future: Future[str]


class CheckpointManager:
    """Folds a run's events into checkpoints of a repository.

        with CheckpointManager(repo, config, source, experiment="mine") as manager:
            for step in ...:
                manager.emit(StepEnd(step))

    `branch` is where it commits: HEAD's branch as it is now where None, made from HEAD where it does not exist. With
    no config at all: every epoch, best on "loss", the 5 last and the 3 best are kept. Each manager is a run of its
    own, with an id that is in its commits; `restore` makes it go on from an earlier one.

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
    ) -> None:
        self.config = DEFAULT_CONFIG if config is None else config
        self.repo = repo.with_durability(self.config.durability)
        self.experiment = experiment
        self.branch = repo.head if branch is None else branch
        self.run = os.urandom(8).hex()
        self.policy = CheckpointPolicy(self.config)
        self.state = PolicyState()
        self.stop_reason: str | None = None
        self.on_saved: list[Callable[[int, str], None]] = []
        self._source = source
        self._worker: ThreadPoolExecutor | None = None
        self._pending: _Pending | None = None
        self._later: list[Future[None]] = []
        self._failed: SaveFailedError | None = None
        self._commits: dict[int, str] = {}  # step -> commit, of this run and what it resumed
        self._previous: str | None = None
        self._resumed_from: str | None = None
        self._held = ExitStack()  # the intent that keeps what the run resumed from
        self._begun = False
        self._moved = False  # whether there is anything to save at the end
        self._epoch, self._epoch_complete = 0, False
        self._warned = False
        self._has_room = False  # whether there was memory for a copy of a snapshot

    # -- events -----------------------------------------------------------------------------------------------------

    def emit(self, *events: Event) -> None:
        """Take in what happened, and save what is due. All events of one call belong to the present moment."""
        self._collect(wait=False)
        if not self._begun and not isinstance(events[0] if events else None, TrainBegin):
            events = (TrainBegin(0), *events)
        timed = [replace(e, time=time.monotonic()) if isinstance(e, StepEnd) and e.time is None else e for e in events]
        for event in timed:
            self._follow(event)
        state, actions = self.policy.advance(self.state, *timed)
        self.state = state
        self._run(actions, tuple(timed))
        self._warn_of_missing_metric()
        self._raise_failure()

    def _follow(self, event: Event) -> None:
        match event:
            case TrainBegin():
                self._begun = True
            case StepEnd(step=step) if step > self.state.step and self._epoch_complete:
                self._epoch, self._epoch_complete, self._moved = self._epoch + 1, False, True
            case EpochEnd(epoch=epoch, complete=complete):
                self._epoch, self._epoch_complete, self._moved = epoch, complete, True
            case StepEnd():
                self._moved = True
            case TrainEnd() | Interrupted():
                self._moved = False

    def _run(self, actions: tuple[Action, ...], events: tuple[Event, ...] = ()) -> None:
        for action in actions:
            match action:
                case Save():
                    self._save(action, events)
                case Annotate():
                    self._annotate(action, events)
                case Prune(steps=steps):
                    commits = [(step, self._commits.pop(step)) for step in steps if step in self._commits]
                    self._do(partial(self._prune, commits))
                case Stop(reason=reason):
                    self.stop_reason = reason
                    _log.info("%s: stop: %s", self.experiment, reason)

    # -- saving -----------------------------------------------------------------------------------------------------

    def _save(self, action: Save, events: tuple[Event, ...]) -> None:
        self._collect(wait=True)
        try:
            snapshot, copied = self._capture(action.step)
        except Exception as error:  # noqa: BLE001 - reported at the next event
            self._fail(action.step, error)
            return
        mid_step = any(isinstance(event, Interrupted) and event.mid_step for event in events)
        if mid_step:
            snapshot = replace(snapshot, exact=False, why="interrupted inside optimizer.step()")
        record = self._record(action.step, snapshot)
        metrics, begun = dict(self.state.metrics), time.monotonic()

        def work() -> str:
            id = self._commit(action, snapshot, record, metrics)
            took = time.monotonic() - begun
            _log.info(
                "%s: saved step %d (%s) as %s in %.2f s",
                self.experiment,
                action.step,
                _words(action.reasons),
                id[:12],
                took,
            )
            return id

        self._pending = _Pending(action.step, self._submit(work))
        if not copied or any(isinstance(event, Interrupted) for event in events):
            self._collect(wait=True)

    def _capture(self, step: int) -> tuple[Snapshot, bool]:
        """A snapshot, and whether it is a copy: training must not go on before one that is not has been saved."""
        if not self.config.async_save:
            return self._source.capture(copy=False), False
        if not self._has_room:  # the first copy takes memory, which later ones use again
            views = self._source.capture(copy=False)
            if short_of_memory(_nbytes_of(views)):
                _log.warning("%s: memory is short of a second copy: saving step %d in place", self.experiment, step)
                return views, False
            self._has_room = True
        return self._source.capture(), True

    def _record(self, step: int, snapshot: Snapshot) -> TrainingState:
        return TrainingState(
            run=self.run,
            experiment=self.experiment,
            step=step,
            epoch=self._epoch,
            epoch_complete=self._epoch_complete,
            previous=self._previous,
            resumed_from=self._resumed_from,
            exact=snapshot.exact,
            why=snapshot.why,
            policy=self.state.to_json(counters_only=True),
            kept=self.policy.current(self.state).to_json(),
        )

    def _commit(self, action: Save, snapshot: Snapshot, record: TrainingState, metrics: dict[str, float]) -> str:
        message = self.config.commit_message(
            experiment=self.experiment, step=action.step, epoch=record.epoch, reasons=action.reasons, metrics=metrics
        )
        id = self.repo.commit(
            snapshot.weights,
            message,
            branch=self.branch,
            state=snapshot.state,
            metadata=snapshot.metadata,
            training=record.fields(),
            metrics=metrics,
            reasons=action.reasons,
        )
        if "best" in action.reasons:
            self._tag_best(id)
        return id

    def _tag_best(self, commit: str) -> None:
        if self.config.tag_best_checkpoints:
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.experiment).strip("-") or "default"
            self.repo.tag(f"best/{name[:150]}", commit, force=True, run=self.run)

    def _annotate(self, action: Annotate, events: tuple[Event, ...]) -> None:
        """Add to a save of this step. An epoch's end moves schedulers on: its state replaces the one saved."""
        step, state = action.step, None
        extra: dict[str, Any] = {"kept": self.policy.current(self.state).to_json()}
        if any(isinstance(event, EpochEnd) for event in events):
            self._collect(wait=True)  # its memory is needed for the new snapshot
            if step not in self._commits:
                return  # that save failed
            try:
                snapshot = self._source.capture()
            except Exception as error:  # noqa: BLE001 - reported at the next event
                self._fail(step, error)
                return
            record = self._record(step, snapshot)
            extra = {
                name: record.fields()[name] for name in ("epoch", "epoch_complete", "exact", "why", "policy", "kept")
            }
            state = snapshot.state
        before = self._pending

        def work() -> None:
            if before and before.step == step:
                id = None if before.future.exception() else before.future.result()
            else:
                id = self._commits.get(step)
            if id is None:  # the save itself failed, and says so
                return
            self.repo.annotate(id, metrics=action.metrics, reasons=action.reasons, state=state, training=extra)
            if "best" in action.reasons:
                self._tag_best(id)

        self._do(work)
        if state is not None:
            self._collect(wait=True)

    def _prune(self, commits: list[tuple[int, str]]) -> None:
        """Mark commits as pruned, but for those that a tag made by hand, another ref or an open run holds."""
        branches = {tip for branch, tip in self.repo.branches().items() if branch != self.branch}
        held = branches | set(self.repo.tags(by_hand=True).values()) | needed(self.repo.store.fs)
        for step, commit in commits:
            if commit in held:
                _log.info("%s: step %d is kept: a ref or an open run holds it", self.experiment, step)
            else:
                self.repo.annotate(commit, pruned=True)

    def _do(self, work: Callable[[], None]) -> None:
        """Have the worker do something after what it has to do already."""
        self._later.append(self._submit(work))
        if not self.config.async_save:
            self._collect(wait=True)

    def _submit(self, work: Callable[[], _T]) -> Future[_T]:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="coral-save")
        return self._worker.submit(work)

    # -- what the worker reports ------------------------------------------------------------------------------------

    def _collect(self, *, wait: bool) -> None:
        """Take in what the worker has finished, or everything if `wait`."""
        while self._pending and (wait or self._pending.future.done()):
            pending, self._pending = self._pending, None
            try:
                commit = pending.future.result()
            except Exception as error:  # noqa: BLE001 - reported at the next event
                self._fail(pending.step, error)
            else:
                self._commits[pending.step] = self._previous = commit
                self.state, actions = self.policy.advance(self.state, Saved(pending.step, commit))
                self._run(actions)
                for hook in self.on_saved:
                    hook(pending.step, commit)
        while self._later and (wait or self._later[0].done()):
            try:
                self._later.pop(0).result()
            except Exception as error:  # noqa: BLE001 - reported at the next event
                self._note_failure(
                    f"{self.experiment}: a note, tag or prune could not be written: {error}", error, None
                )

    def _fail(self, step: int, error: Exception) -> None:
        self.state, actions = self.policy.advance(self.state, SaveFailed(step, str(error)))
        self._run(actions)
        self._note_failure(f"{self.experiment}: saving step {step} failed: {error}", error, step)

    def _note_failure(self, message: str, error: Exception, step: int | None) -> None:
        _log.error("%s", message)
        if self._failed is None:
            self._failed = SaveFailedError(message, step=step)
            self._failed.__cause__ = error

    def _raise_failure(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _warn_of_missing_metric(self) -> None:
        names = self.policy.missing_metric(self.state)
        if names is not None and not self._warned:
            self._warned = True
            came = f"what came: {', '.join(names)}" if names else "no metric came at all"
            _log.warning(
                "%s: the monitored metric %r did not come with an evaluation; %s. Without it nothing is the best.",
                self.experiment,
                self.config.save_on_best_metric,
                came,
            )

    # -- going back -------------------------------------------------------------------------------------------------

    def restore(self, ref: str | None = None, *, best: bool = False) -> Commit | None:
        """Put training back to a checkpoint, and go on from there as a new run; returns it.

        `ref` is anything that `Repository.resolve` knows, `best`, `last` and `step:500` within this branch; without
        one, the branch's newest checkpoint, or the best with `best` (with a warning and the newest where none is).
        None where the branch has no commit yet. Raises UnknownRef, CommitPruned, WeightsMismatch, CorruptObject.
        """
        self._collect(wait=True)
        id = self._find(ref, best=best)
        if id is None:
            return None
        commit = self.repo.show(id)
        self._source.restore(Snapshot(self.repo.load(id), self.repo.load_state(id), exact=commit.exact))
        self._resume(commit)
        self._raise_failure()
        return commit

    def _find(self, ref: str | None, *, best: bool) -> str | None:
        if ref is not None:
            in_branch = ref in ("best", "last") or ref.startswith("step:")
            return self.repo.resolve(f"{self.branch}@{ref}" if in_branch else ref)
        tip = self.repo.branches().get(self.branch)
        if tip is None or not best:
            return tip
        try:
            return self.repo.resolve(f"{self.branch}@best")
        except UnknownRef:
            _log.warning("%s: no checkpoint is marked as the best: loading the newest, %s", self.experiment, tip[:12])
            return tip

    def _resume(self, commit: Commit) -> None:
        """The state of a run that goes on from a checkpoint: its policy's counters, and what it kept."""
        self.run = os.urandom(8).hex()
        self.stop_reason, self._begun, self._moved = None, True, False
        self._previous = self._resumed_from = commit.id
        self._held.close()
        self._held.enter_context(intent(self.repo.store.fs, "run", [commit.id]))
        self._commits = {}
        self.state = PolicyState()
        found = TrainingState.of(commit)
        if found is not None:
            kept = []
            for each in self.repo.chain(commit.id):
                entry = TrainingState.of(each)
                if entry and entry.kept and not each.pruned:
                    self._commits.setdefault(entry.step, each.id)
                    kept.append(Kept.from_json(entry.kept))
            self._epoch, self._epoch_complete = found.epoch, found.epoch_complete
            if found.policy:
                self.state = self.policy.resume(found.policy, kept)
        step = found.step if found else 0
        self.state, _ = self.policy.advance(self.state, TrainBegin(step, resumed=True))
        how = "exactly" if commit.exact else f"approximately ({found.why if found else 'no training state'})"
        _log.info("%s: resumed %s from %s, step %d", self.experiment, how, commit.id[:12], step)

    @property
    def epoch_to_run(self) -> int:
        """The 0-based epoch that training is in, or goes on with."""
        return self._epoch + 1 if self._epoch_complete else self._epoch

    # -- the end ----------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Return when everything that was asked for is saved; raises SaveFailedError if something was not."""
        self._collect(wait=True)
        self._raise_failure()

    def close(self) -> None:
        """End the run: save its last step if that is asked for and there is anything new, and finish.

        `restore` works afterwards, too, and so does training on.
        """
        try:
            if self._begun and self._moved:
                self.emit(TrainEnd(self.state.step))
            self.wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown(wait=True)
                self._worker = None
            self._held.close()
            self.repo.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:  # the exception that is on its way is what matters: nothing here may take its place
            if isinstance(error, Exception | KeyboardInterrupt) and self._begun and self._moved:
                self.emit(Interrupted(self.state.step, "exception"))
            self.close()
        except CoralError as failure:
            _log.error("%s: while ending after %r: %s", self.experiment, error, failure)


def _nbytes_of(snapshot: Snapshot) -> int:
    tensors: dict[str, WeightTensor] = {}
    flatten(snapshot.state, tensors)
    return sum(tensor.nbytes for part in (snapshot.weights, tensors) for tensor in part.values())


def _words(reasons: Any) -> str:
    return ", ".join(sorted(reasons))
