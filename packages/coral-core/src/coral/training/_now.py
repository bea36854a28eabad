"""The current step: what its events say together, in whatever order they come.

Every function that joins two things here is commutative, associative and idempotent. (One exception: an interrupt
inside the next update is later than all else at its step, and nothing after it counts.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real

from coral.training._config import CheckpointConfig
from coral.training._events import EpochEnd, Evaluated, Event, Interrupted, SaveRequested, StepEnd, TrainEnd
from coral.training._policy_state import Kept, Now
from coral.training._retention import cost, is_permanent


def observe(config: CheckpointConfig, now: Now, event: Event) -> Now:
    """The current step with one more of its events."""
    match event:
        case _ if now.adrift:
            return now
        case StepEnd(time=time, metrics=metrics):
            times = [t for t in (now.time, time) if t is not None and math.isfinite(t)]
            logged = _join_metrics(config, now.logged, metrics)
            return replace(now, ended=True, time=max(times, default=None), logged=logged)
        case Evaluated(metrics=metrics):
            return replace(now, judged=_join_metrics(config, now.judged, metrics))
        case EpochEnd(epoch=epoch, complete=complete, metrics=metrics):
            now = replace(now, judged=_join_metrics(config, now.judged, metrics))
            if not complete:
                return now
            every = config.save_every_n_epochs
            due = ("epoch",) if every and (epoch + 1) % every == 0 else ()
            return because(replace(now, epoch=_join_epochs(config, now.epoch, epoch)), *due)
        case TrainEnd() if config.save_on_train_end:
            return because(now, "final")
        case Interrupted(cause=cause, mid_step=mid_step):
            now = _adrift(now) if mid_step else now
            return because(now, cause) if config.save_on_interrupt else now
        case SaveRequested():
            return because(now, "requested")
        case _:
            return now


def because(now: Now, *reasons: str) -> Now:
    """The current step with more reasons to save it."""
    return replace(now, reasons=now.reasons.union(reasons))


def was_judged(config: CheckpointConfig, now: Now) -> bool:
    """Whether the monitored metric has come at this step, finite or not."""
    return config.save_on_best_metric in now.judged


def score_of(config: CheckpointConfig, now: Now) -> float | None:
    """The monitored metric of this step; None if it has not come, or is not finite."""
    score = now.judged.get(config.save_on_best_metric or "")
    return score if score is not None and math.isfinite(score) else None


def entry_of(config: CheckpointConfig, now: Now) -> Kept:
    """The checkpoint of this step, if it has one, as the budgets see it."""
    return Kept(step=now.step, epoch=now.epoch, reasons=now.reasons, score=score_of(config, now))


def join_entries(config: CheckpointConfig, a: Kept, b: Kept) -> Kept:
    """What two records of one checkpoint say together."""
    scores = [entry.score for entry in (a, b) if entry.score is not None]
    return Kept(
        step=a.step,
        epoch=_join_epochs(config, a.epoch, b.epoch),
        reasons=a.reasons | b.reasons,
        score=_join_values(config, scores[0], scores[-1]) if scores else None,
    )


def rejoin(config: CheckpointConfig, now: Now, here: Kept | None) -> Now:
    """The current step as it was when its save was asked for, with what its checkpoint says now, if there is one."""
    if here is None:
        return replace(now, status="idle" if now.status == "idle" else "failed")
    judged = now.judged
    if config.save_on_best_metric is not None and here.score is not None:
        judged = _join_metrics(config, judged, {config.save_on_best_metric: here.score})
    epoch = _join_epochs(config, now.epoch, here.epoch)
    return replace(now, status="saved", reasons=now.reasons | here.reasons, epoch=epoch, judged=judged)


def _adrift(now: Now) -> Now:
    """The step after an interrupt inside the next update: what is saved only now is not what was judged."""
    if now.status == "idle":
        now = replace(now, logged={**now.logged, **now.judged}, judged={}, reasons=frozenset(), epoch=None)
    return replace(now, adrift=True)


def _join_metrics(config: CheckpointConfig, a: Mapping[str, float], b: Mapping[str, float]) -> Mapping[str, float]:
    joined = dict(a)
    for name, value in b.items():
        number = _number(value)
        if number is not None:
            joined[name] = _join_values(config, joined.get(name, number), number)
    return joined


def _join_values(config: CheckpointConfig, a: float, b: float) -> float:
    """The better of two values of one metric; a finite one is better than any that is not."""
    return min(a, b, key=lambda value: (not math.isfinite(value), math.isnan(value) or cost(config, value)))


def _join_epochs(config: CheckpointConfig, a: int | None, b: int | None) -> int | None:
    """The epoch to remember where two end at one step: one that is kept for good, else the later one."""
    return max(a, b, key=lambda epoch: (is_permanent(config, epoch), -1 if epoch is None else epoch))


def _number(value: object) -> float | None:
    """The value as a float, if it is a number at all."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value) + 0.0  # -0.0 becomes the 0.0 that it equals
    except OverflowError:
        return None
