"""Whether there is memory for a second copy of what is to be saved."""

from __future__ import annotations

from pathlib import Path

_MARGIN = 1.2


def short_of_memory(nbytes: int) -> bool:
    """Whether a copy of `nbytes` bytes might not fit. False where the system does not say what is free."""
    available = _available()
    return available is not None and nbytes * _MARGIN > available


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
