"""Repacks in processes of their own, one after the other, on copies of a repository that has work for them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import histories

__all__ = ["Repacking"]

READY = 60.0
"""Seconds in which a process has to have begun to write."""


class Repacking:
    """While the block runs a repack is at work, as the manager starts it; a copy that is done gives way to the next."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self._whole, self._folder = whole, folder
        self._over = threading.Event()
        self._thread = threading.Thread()
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._number = 0
        self._failed = ""
        self.finished = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._over.clear()
        self._thread = threading.Thread(target=self._work)
        self._began = time.perf_counter()
        self._thread.start()
        self._wait_for_work()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.seconds += time.perf_counter() - self._began
        self._stop()
        self._thread.join()
        for copy in self._folder.iterdir():
            shutil.rmtree(copy)
        assert not self._failed, f"coral repack failed: {self._failed}"

    def _work(self) -> None:
        while not self._over.is_set():
            self._number += 1
            copy = histories.linked(self._whole, self._folder / f"{self._number}")
            command = [sys.executable, "-P", "-m", "coral", "repack", "--auto", str(copy)]
            before = _waited_for()
            # In a group of its own, so that the processes that it starts can be stopped with it.
            process = self._process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
            )
            if self._over.is_set():  # since it was asked above
                self._stop()
            _, err = process.communicate()  # until the last of the group has closed it
            if self._over.is_set():
                return
            self.finished += 1
            self.cpu_seconds += _waited_for() - before
            if process.returncode or histories.disk(copy) >= histories.disk(self._whole):
                self._failed = err.decode(errors="replace") or "it made nothing smaller"
                return

    def _stop(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            self.cpu_seconds += _so_far(process.pid)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def _wait_for_work(self) -> None:
        """Return when the process is past its start: there is a file that it writes to."""
        end = time.perf_counter() + READY
        while not any(self._folder.glob("*/tmp/*")):
            assert time.perf_counter() < end, f"coral repack has not begun to write after {READY:.0f} s"
            time.sleep(0.01)


def _waited_for() -> float:
    """Return the processor time of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _so_far(group: int) -> float:
    """Return the processor time of a group's processes that are still running."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that has just ended
            fields = path.read_text().rpartition(")")[2].split()  # from the third on: state, parent, group, ...
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))  # of its own and of those it waited for, user and system
    return ticks / os.sysconf("SC_CLK_TCK")
