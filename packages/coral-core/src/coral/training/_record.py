"""TrainingState: what a run writes into each of its commits, so that it can be found and gone on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coral.objects import Commit


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where in its training a checkpoint stands.

    `step` counts completed optimizer updates; `epoch` is 0-based, and is over if `epoch_complete`. `previous` is the
    commit of the checkpoint before, `resumed_from` that which the run began with. `policy` and `kept` are the
    policy's counters and its entry for this checkpoint, as JSON; `monitor` is the metric that they go by, and whether
    less of it is better.
    """

    run: str
    experiment: str
    step: int
    epoch: int = 0
    epoch_complete: bool = False
    previous: str | None = None
    resumed_from: str | None = None
    exact: bool = True
    why: str = ""
    policy: Mapping[str, Any] | None = None
    kept: Mapping[str, Any] | None = None
    monitor: Sequence[Any] | None = None

    def fields(self) -> dict[str, Any]:
        """As `Repository.commit` takes it."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, commit: Commit) -> TrainingState | None:
        """That of a commit, or None where no run made it."""
        found = commit.training
        if commit.run is None or commit.step is None:
            return None
        policy, kept, monitor = found.get("policy"), found.get("kept"), found.get("monitor")
        return cls(
            run=commit.run,
            experiment=commit.experiment or "",
            step=commit.step,
            epoch=commit.epoch or 0,
            epoch_complete=found.get("epoch_complete") is True,
            previous=commit.previous,
            resumed_from=commit.resumed_from,
            exact=commit.exact,
            why=str(found.get("why", "")),
            policy=policy if isinstance(policy, dict) else None,
            kept=kept if isinstance(kept, dict) else None,
            monitor=monitor if isinstance(monitor, (list, tuple)) else None,
        )
