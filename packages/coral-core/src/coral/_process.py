"""Other processes of coral's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

_GROUP: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}


def coral_command(*arguments: str) -> list[str]:
    """What runs `coral` with these arguments in the Python that this is; OSError where that cannot be told."""
    if not sys.executable or getattr(sys, "frozen", False):  # a program that was packed up would start itself
        raise OSError("this program was not started by a Python that could be started once more")
    # -P: nothing in the working folder is taken for coral
    return [sys.executable, "-P", "-m", "coral", *arguments]


def start_coral(*arguments: str) -> subprocess.Popen[str]:
    """Run `coral` beside this process, in a group of its own, with what it says in pipes; OSError, ValueError if not.

    The group is ended as one; and an interrupt from the keyboard is not for it.
    """
    return subprocess.Popen(
        coral_command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **_GROUP,
    )
