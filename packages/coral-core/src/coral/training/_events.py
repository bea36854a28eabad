"""What a training run tells the policy, and what the policy asks for: frozen values on both sides.

`step` counts *completed optimizer updates* and is the only clock of order: it may stand still, never go back.
`epoch` is 0-based, as in `for epoch in range(epochs)`. `metrics` maps a name to a number; anything else in it is
ignored. Events of one step may come in any order, or all in one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cause = Literal["exception", "preempted", "requested"]


@dataclass(frozen=True, slots=True)
class TrainBegin:
    """Training begins with `step` updates behind it; `resumed` if a checkpoint of that step was loaded."""

    step: int
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class StepEnd:
    """The optimizer has completed its `step`-th update.

    `time` is in seconds, on any clock that does not go back; without it no time trigger fires. Its `metrics` are
    recorded, but never judged: a training loss of one batch makes no checkpoint the best.
    """

    step: int
    time: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """Epoch `epoch` has ended after `step` updates; not `complete` if the run's last step cut it short."""

    step: int
    epoch: int
    complete: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The weights of `step` were evaluated: `metrics` are theirs, not those of an earlier step."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainEnd:
    """Training has ended in the ordinary way."""

    step: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Training stops before its time.

    `mid_step` says that the optimizer was inside update `step + 1`, so that the weights are those of no step at all:
    what is saved then has no score, and whatever else comes at this step is not about it and is left aside.
    """

    step: int
    cause: Cause
    mid_step: bool = False


@dataclass(frozen=True, slots=True)
class SaveRequested:
    """Somebody asked for a save by hand: `step` is the first at which it can be made."""

    step: int


@dataclass(frozen=True, slots=True)
class Saved:
    """The save that was asked for at `step` is complete, as `commit`. It may come at any later step."""

    step: int
    commit: str


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """The save that was asked for at `step` left nothing behind. It may come at any later step."""

    step: int
    error: str


Event = TrainBegin | StepEnd | EpochEnd | Evaluated | TrainEnd | Interrupted | SaveRequested | Saved | SaveFailed


@dataclass(frozen=True, slots=True)
class Save:
    """Save the weights as they are now, at `step`, because of `reasons`.

    Reasons are "step", "epoch", "time", "best", "final", "requested", and the causes of an interrupt.
    """

    step: int
    reasons: frozenset[str]


@dataclass(frozen=True, slots=True)
class Annotate:
    """A save of `step` was asked for earlier: these are now all of its reasons and all of its metrics."""

    step: int
    reasons: frozenset[str]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Prune:
    """Drop the checkpoints of these steps, all of them saved; lowest step first."""

    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the training: `reason` is a sentence for its log."""

    reason: str


Action = Save | Annotate | Prune | Stop
