"""The command that starts another process of coral's."""

from __future__ import annotations

import sys


def coral_command(*arguments: str) -> list[str]:
    """What runs `coral` with these arguments in the Python that this is; OSError where that cannot be told."""
    if not sys.executable or getattr(sys, "frozen", False):  # a program that was packed up would start itself
        raise OSError("this program was not started by a Python that could be started once more")
    # -P: nothing in the working folder is taken for coral
    return [sys.executable, "-P", "-m", "coral", *arguments]
