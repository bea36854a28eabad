"""Other processes of coral's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import ExitStack
from typing import IO, Any

_GROUP: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
_SHOWN = 1 << 16  # bytes that are read of what a process says


def coral_command(*arguments: str) -> list[str]:
    """What runs `coral` with these arguments in the Python that this is; OSError where that cannot be told."""
    if not sys.executable or getattr(sys, "frozen", False):  # a program that was packed up would start itself
        raise OSError("this program was not started by a Python that could be started once more")
    # -P: nothing in the working folder is taken for coral
    return [sys.executable, "-P", "-m", "coral", *arguments]


class CoralProcess(subprocess.Popen[bytes]):
    """`coral` beside this process, in a group of its own; OSError, ValueError where it cannot be had.

    The group is ended as one; and an interrupt from the keyboard is not for it. What it says goes into files without a
    name: nobody has to read along for it to go on.
    """

    def __init__(self, *arguments: str) -> None:
        with ExitStack() as files:
            self._said = out, err = [files.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            weakref.finalize(self, files.pop_all().close)
        super().__init__(coral_command(*arguments), stdin=subprocess.DEVNULL, stdout=out, stderr=err, **_GROUP)

    def said(self) -> tuple[str, str]:
        """The end of what it has said, on standard output and on standard error."""
        return self._end(self._said[0]), self._end(self._said[1])

    @staticmethod
    def _end(file: IO[bytes]) -> str:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SHOWN))
        return file.read().decode(errors="replace").strip()
