"""The reference: what the policy makes of the events that a schedule means, folded without any framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coral.errors import ConfigError
from coral.testing._schedule import Schedule, weights_at
from coral.training import (
    Action,
    Annotate,
    CheckpointPolicy,
    EpochEnd,
    Event,
    Kept,
    PolicyState,
    Prune,
    Save,
    Saved,
    Stop,
    TrainBegin,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint as the kit compares it.

    `metrics` are those of evaluations alone, as text (NaN is equal to nothing); `weights` are ids by name, None where
    it was `pruned`. A `torn` one was saved inside an update.
    """

    step: int
    reasons: tuple[str, ...]
    metrics: Mapping[str, str]
    weights: Mapping[str, str] | None
    pruned: bool
    torn: bool


@dataclass(frozen=True, slots=True)
class Course:
    """What one process of a run does: `begin` updates are behind it when it begins, `end` when it ends or crashes."""

    begin: int
    end: int
    crashes: bool
    resumes: str | None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a schedule leaves behind, oldest first, and the one or two processes that do it."""

    checkpoints: tuple[Checkpoint, ...]
    courses: tuple[Course, ...]


def reference(schedule: Schedule) -> Reference:
    """What any adapter has to make of a schedule. Raises ConfigError where it never crashes, or cannot resume."""
    fold = _Fold(schedule)
    courses = [fold.play(None, crashes=schedule.crash is not None)]
    if schedule.crash is not None and not courses[0].crashes:
        raise ConfigError(f"this schedule ends at step {courses[0].end}, before its crash. It is {schedule}")
    if schedule.resume is not None:
        courses.append(fold.play(fold.find(schedule.resume), crashes=False))
    return Reference(tuple(each.seen(schedule) for each in fold.saved), tuple(courses))


def as_text(metrics: Mapping[str, float], names: frozenset[str]) -> dict[str, str]:
    """Those metrics that have one of the names, to be compared with ==."""
    return {name: f"{value:g}" for name, value in sorted(metrics.items()) if name in names}


@dataclass(slots=True)
class _Saved:
    """A checkpoint, and what a later process finds with it."""

    step: int
    reasons: frozenset[str]
    metrics: Mapping[str, float]
    counters: Mapping[str, Any]
    previous: _Saved | None
    kept: list[Kept] = field(default_factory=list)
    pruned: bool = False
    torn: bool = False

    def chain(self) -> Iterator[_Saved]:
        at: _Saved | None = self
        while at is not None:
            yield at
            at = at.previous

    def seen(self, schedule: Schedule) -> Checkpoint:
        ids = {name: weight.id for name, weight in weights_at(self.step, torn=self.torn).items()}
        return Checkpoint(
            step=self.step,
            reasons=tuple(sorted(self.reasons)),
            metrics=as_text(self.metrics, schedule.metrics),
            weights=None if self.pruned else ids,
            pruned=self.pruned,
            torn=self.torn,
        )


class _Fold:
    """Plays a schedule through the policy, with saves that are complete at once."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.policy = CheckpointPolicy(schedule.config)
        self.saved: list[_Saved] = []
        self._state = PolicyState()
        self._known: dict[int, _Saved] = {}  # those that this process may prune
        self._previous: _Saved | None = None
        self._stopped = False

    def find(self, ref: str) -> _Saved:
        """The checkpoint that a ref means, as `Repository.resolve` finds it."""
        for each in self.saved[-1].chain() if self.saved else ():
            is_best = "best" in each.reasons and not each.pruned
            if ref in ("last", f"step:{each.step}") or (ref == "best" and is_best):
                if each.pruned or each.torn:
                    break
                return each
        raise ConfigError(
            f"this schedule cannot resume from {ref}: no whole checkpoint is there. It is {self.schedule}"
        )

    def play(self, start: _Saved | None, *, crashes: bool) -> Course:
        begin = start.step if start else 0
        self._begin(start)
        crash = self.schedule.crash.step if crashes and self.schedule.crash else None
        step = begin
        while step < self.schedule.last_step and step != crash and not self._stopped:
            step += 1
            self._advance(*self.schedule.events(step))
        crashes = step == crash and not self._stopped
        self._advance(self.schedule.end(step, crashes=crashes))
        return Course(begin, step, crashes, self.schedule.resume if start else None)

    def _begin(self, start: _Saved | None) -> None:
        self._previous, self._stopped = start, False
        if start is None:
            self._advance(TrainBegin(0))
            return
        left = [each for each in start.chain() if not each.pruned]
        self._known = {each.step: each for each in left}
        self._state = self.policy.resume(start.counters, [entry for each in left for entry in each.kept])
        self._advance(TrainBegin(start.step, resumed=True))

    def _advance(self, *events: Event) -> None:
        self._state, actions = self.policy.advance(self._state, *events)
        for action in actions:
            self._do(action, events)

    def _do(self, action: Action, events: tuple[Event, ...]) -> None:
        match action:
            case Save(step=step, reasons=reasons):
                found = _Saved(step, reasons, self._state.metrics, self._counters(), self._previous)
                found.kept.append(self.policy.current(self._state))
                found.torn = self._state.now.adrift
                self.saved.append(found)
                self._previous = self._known[step] = found
                self._advance(Saved(step, str(len(self.saved))))
            case Annotate(step=step, reasons=reasons, metrics=metrics):
                found = self._known[step]
                found.reasons, found.metrics = reasons, metrics
                found.kept.append(self.policy.current(self._state))
                if any(isinstance(event, EpochEnd) for event in events):
                    found.counters = self._counters()
            case Prune(steps=steps):
                for step in steps:
                    self._known.pop(step).pruned = True
            case Stop():
                self._stopped = True

    def _counters(self) -> dict[str, Any]:
        return self._state.to_json(counters_only=True)
