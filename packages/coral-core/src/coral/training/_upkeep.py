"""Upkeep of a run's repository: what is pruned is freed, and the past stored as differences by a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress

from coral._process import CoralProcess
from coral.errors import CoralError
from coral.filesystem import LocalFileSystem
from coral.repository import Repository

_log = logging.getLogger("coral")

_FREE_AT = 1 << 20  # bytes pruned, below which freeing them waits for more
_REPACK_AT = 16 << 20  # bytes saved, below which storing them as differences waits for more
_BACKLOG = 16  # saves that may wait for the process, which others may leave no time, before they are seen to here
_PATIENCE = 10.0  # seconds in which a process that was told to end has to


class Upkeep:
    """Frees and repacks beside a run. What goes wrong with that is logged, and leaves the run alone."""

    def __init__(self, repo: Repository, *, background: bool) -> None:
        self._repo = repo
        self._on = background
        self._spawns = isinstance(repo.store.fs, LocalFileSystem)
        self._process: CoralProcess | None = None
        self._pruned = 0  # bytes that were not freed yet
        self._waiting: list[int] = []  # bytes of each save that no repack has seen to yet
        self._begun = 0  # how many of these the process that is running will see to
        self._left = False  # whether a process was ended in the middle of its work

    def pruned(self, nbytes: int) -> None:
        """Tensors of so many bytes were marked as pruned: free them, once they are worth it."""
        self._pruned += nbytes
        if self._pruned >= _FREE_AT:
            self.free()

    def saved(self, commit: str) -> None:
        """A commit was made: have those before it repacked, once they are worth it."""
        if not self._on:
            return
        self._waiting.append(self._repo.show(commit).nbytes)
        self._reap()
        if len(self._waiting) < 2 or sum(self._waiting) < _REPACK_AT:
            return
        if len(self._waiting) > _BACKLOG:
            self._end()
            self._repack_here()
        elif self._process is None and self._spawns:
            self._start()

    def free(self) -> int:
        """Free what is pruned, now; returns the bytes that this gave back."""
        self._pruned, self._left = 0, False
        try:
            return self._repo.gc().bytes_freed
        except (CoralError, OSError) as error:
            _log.warning("%s: what was pruned could not be freed: %s", self._repo.path, error)
            return 0

    def close(self) -> None:
        """End what is running, and free what is left to free."""
        self._end()
        if self._pruned or self._left:
            self.free()

    def _start(self) -> None:
        try:
            self._process = CoralProcess("repack", "--auto", str(self._repo.path))
        except (OSError, ValueError) as error:
            self._spawns = False
            _log.info("%s: no process can be had to repack in the background: %s", self._repo.path, error)
        self._begun = len(self._waiting) - 1  # not the newest

    def _reap(self) -> None:
        """Log what became of a process that has ended."""
        process = self._process
        if process is None or process.poll() is None:
            return
        self._process = None
        out, err = process.said()
        if process.returncode == 0:
            del self._waiting[: self._begun]
            _log.info("%s: repacked in the background: %s", self._repo.path, out[-500:])
        else:
            self._spawns = False
            _log.warning(
                "%s: repacking in the background failed (%s): %s",
                self._repo.path,
                process.returncode,
                err[-500:] or "it said nothing",
            )

    def _repack_here(self) -> None:
        del self._waiting[:-1]
        try:
            _log.info("%s: repacked: %s", self._repo.path, self._repo.repack(patient=True))
        except (CoralError, OSError) as error:
            _log.warning("%s: repacking failed: %s", self._repo.path, error)

    def _end(self) -> None:
        self._reap()
        process, self._process = self._process, None
        if process is None:
            return
        self._left = True
        _terminate(process)
        try:
            process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_PATIENCE)


def _terminate(process: CoralProcess) -> None:
    if sys.platform == "win32":
        process.terminate()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
