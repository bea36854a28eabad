"""Which of a trainer's metrics are new: `callback_metrics` also holds those of earlier steps, and does not say which.

Reading it makes new tensors of what is being logged now, and leaves what was logged before the objects that they were.
So what two readings have in common is old.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coral.integrations.pytorch._metrics import to_floats

__all__ = ["logged_now", "logged_since", "reading"]

Reading = Mapping[str, Any]


def reading(trainer: Any) -> Reading:
    """All metrics as they are, to be compared with a later reading."""
    return dict(trainer.callback_metrics)


def logged_since(trainer: Any, before: Reading) -> dict[str, float]:
    """The metrics that were logged since an earlier reading, as numbers."""
    return to_floats({name: value for name, value in reading(trainer).items() if before.get(name) is not value})


def logged_now(trainer: Any) -> dict[str, float]:
    """The metrics that are being logged at this moment: in a batch's hooks, those of its training step."""
    return logged_since(trainer, reading(trainer))
