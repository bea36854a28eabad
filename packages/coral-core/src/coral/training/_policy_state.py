"""What the policy remembers of a run, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args

from coral.errors import CorruptObject

T = TypeVar("T")

Status = Literal["idle", "asked", "saved", "failed"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """One checkpoint as the policy sees it.

    `epoch` is the complete epoch that ended at its step, `score` the monitored metric of that step: None where it was
    not judged, or not finite.
    """

    step: int
    epoch: int | None = None
    reasons: frozenset[str] = frozenset()
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object, to be stored with the checkpoint."""
        return _plain_fields(self)

    @classmethod
    def from_json(cls, value: object) -> Kept:
        """The inverse of `to_json`; raises CorruptObject for anything that it did not write."""
        return _read_kept(value, "checkpoint")


@dataclass(frozen=True, slots=True)
class Best:
    """The best of the checkpoints that exist."""

    step: int
    score: float


@dataclass(frozen=True, slots=True)
class Now:
    """What has come at the current step, joined so that the order in which it came cannot matter.

    `status` is that of the one save a step may have. `logged` are the metrics that are only recorded, `judged` those of
    EpochEnd and Evaluated. After `adrift`, an interrupt inside the next update, the weights are no longer this step's.
    """

    step: int = 0
    status: Status = "idle"
    reasons: frozenset[str] = frozenset()
    ended: bool = False
    time: float | None = None
    epoch: int | None = None
    logged: Mapping[str, float] = field(default_factory=dict)
    judged: Mapping[str, float] = field(default_factory=dict)
    adrift: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics of the step; a judged one hides one of that name that is only recorded."""
        return {**self.logged, **self.judged}


@dataclass(frozen=True, slots=True)
class PolicyState:
    """Everything the policy knows; `PolicyState()` is a run that has not begun.

    All but `kept`, `pending`, `best` and `now` is about the steps before the current one.
    """

    now: Now = field(default_factory=Now)
    asked_step: int | None = None  # the last save asked for; at first, where training began
    asked_time: float | None = None  # its time, from which save_every_seconds counts
    mark: float | None = None  # the score that the current step has to beat to be the best
    goal: float | None = None  # the same for early stopping, which has a threshold of its own
    waited: int = 0  # evaluations in a row that missed the goal
    stopped: bool = False  # early stopping has asked for the end
    monitored: bool = False  # the metric of save_on_best_metric has come at least once
    seen: tuple[str, ...] | None = None  # until then, the names that came instead; None before any evaluation
    resumed_from: int | None = None
    best: Best | None = None
    pending: tuple[Kept, ...] = ()  # asked for, neither Saved nor SaveFailed yet
    kept: tuple[Kept, ...] = ()  # saved and still of interest to a budget; lowest step first

    @property
    def step(self) -> int:
        """The current step: optimizer updates completed."""
        return self.now.step

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics of the current step."""
        return self.now.metrics

    def to_json(self, *, counters_only: bool = False) -> dict[str, Any]:
        """A JSON object, the same for equal states.

        With `counters_only` the checkpoints in `kept` are left out: what remains does not grow with the run.
        """
        value = {"version": _VERSION, **_plain_fields(self)}
        if counters_only:
            del value["kept"]
        return value

    @classmethod
    def from_json(cls, value: object) -> PolicyState:
        """The inverse of `to_json`, with or without `kept`; raises CorruptObject for anything that it did not write."""
        if not isinstance(value, Mapping) or value.get("version") != _VERSION:
            raise CorruptObject(f"policy state: expected a JSON object of version {_VERSION}, got {_short(value)}")
        entries = {"kept": [], **value}
        del entries["version"]
        state = _read_state(entries, "policy state")
        for name in ("pending", "kept"):
            steps = [kept.step for kept in getattr(state, name)]
            if steps != sorted(set(steps)) or (steps and steps[-1] > state.step):
                raise CorruptObject(f"policy state.{name}: the steps {steps} do not rise to at most {state.step}")
        return state


def _plain_fields(value: Any) -> dict[str, Any]:
    return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _plain(value[name]) for name in sorted(value)}
        case frozenset():
            return sorted(value)
        case tuple():
            return [_plain(entry) for entry in value]
        case float() if not math.isfinite(value):
            return str(value)  # JSON has no word for it
        case _ if is_dataclass(value):
            return _plain_fields(value)
        case _:
            return value


# Readers: each takes a JSON value and where it stands, and returns what it means or raises CorruptObject.


def _wrong(where: str, expected: str, value: object) -> CorruptObject:
    return CorruptObject(f"{where}: expected {expected}, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _count(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(where, "an int, 0 or more", value)
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a string", value)
    return value


def _status(value: object, where: str) -> Status:
    statuses: tuple[Status, ...] = get_args(Status)
    for status in statuses:
        if status == value:
            return status
    raise _wrong(where, f"one of {', '.join(statuses)}", value)


def _finite(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
        raise _wrong(where, "a finite number", value)
    try:
        return float(value)
    except OverflowError:
        raise _wrong(where, "a number that a float can hold", value) from None


def _number(value: object, where: str) -> float:
    return float(value) if value in ("nan", "inf", "-inf") and isinstance(value, str) else _finite(value, where)


def _optional(read: Callable[[object, str], T]) -> Callable[[object, str], T | None]:
    return lambda value, where: None if value is None else read(value, where)


def _many(read: Callable[[object, str], T]) -> Callable[[object, str], tuple[T, ...]]:
    def read_many(value: object, where: str) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "an array", value)
        return tuple(read(entry, f"{where}[{index}]") for index, entry in enumerate(value))

    return read_many


def _names(value: object, where: str) -> frozenset[str]:
    return frozenset(_many(_text)(value, where))


def _metrics(value: object, where: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    return {_text(name, where): _number(number, f"{where}[{name!r}]") for name, number in value.items()}


def _record(cls: type[T], **readers: Callable[[object, str], object]) -> Callable[[object, str], T]:
    def read_record(value: object, where: str) -> T:
        if not isinstance(value, Mapping) or value.keys() != readers.keys():
            raise _wrong(where, f"an object of {', '.join(readers)}", value)
        return cls(**{name: read(value[name], f"{where}.{name}") for name, read in readers.items()})

    return read_record


_read_kept = _record(Kept, step=_count, epoch=_optional(_count), reasons=_names, score=_optional(_finite))
_read_now = _record(
    Now,
    step=_count,
    status=_status,
    reasons=_names,
    ended=_flag,
    time=_optional(_finite),
    epoch=_optional(_count),
    logged=_metrics,
    judged=_metrics,
    adrift=_flag,
)
_read_state = _record(
    PolicyState,
    now=_read_now,
    asked_step=_optional(_count),
    asked_time=_optional(_finite),
    mark=_optional(_finite),
    goal=_optional(_finite),
    waited=_count,
    stopped=_flag,
    monitored=_flag,
    seen=_optional(_many(_text)),
    resumed_from=_optional(_count),
    best=_optional(_record(Best, step=_count, score=_finite)),
    pending=_many(_read_kept),
    kept=_many(_read_kept),
)
