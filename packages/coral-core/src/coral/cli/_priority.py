"""Standing back: work that is done beside a training run takes what that leaves of the processor."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["stand_back"]


def stand_back() -> None:
    """Give this process the lowest priority that the system has."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        os.nice(19)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
