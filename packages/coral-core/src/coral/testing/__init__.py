"""Kits that third parties subclass to prove what they plug into coral. They need pytest: `coral-core[testing]`.

An adapter for another framework is proven by `AdapterTests`, through schedules: docs/writing-an-adapter.md. Another
kind of remote is proven by `RemoteTests`: docs/remotes.md.
"""

import pytest

pytest.register_assert_rewrite(
    "coral.testing._adapters", "coral.testing._remotes"
)  # before it is imported: a difference is then spelled out

from coral.testing._adapters import AdapterTests  # noqa: E402
from coral.testing._leg import Leg, TrainingCrash  # noqa: E402
from coral.testing._reference import Checkpoint, Course, Reference, reference  # noqa: E402
from coral.testing._remotes import RemoteTests  # noqa: E402
from coral.testing._schedule import Crash, Evaluations, Schedule, weights_at  # noqa: E402
from coral.testing._schedules import SCHEDULES  # noqa: E402

__all__ = [
    "SCHEDULES",
    "AdapterTests",
    "Checkpoint",
    "Course",
    "Crash",
    "Evaluations",
    "Leg",
    "Reference",
    "RemoteTests",
    "Schedule",
    "TrainingCrash",
    "reference",
    "weights_at",
]
