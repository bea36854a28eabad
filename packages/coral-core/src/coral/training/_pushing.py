"""Pushing beside a run: a process of its own does what is due, and what it could not do stays due for the next one."""

from __future__ import annotations

import logging
import os
import subprocess
import time

from coral._process import CoralProcess
from coral.errors import CoralError
from coral.filesystem import LocalFileSystem
from coral.remotes import DuePush, add_due, dues, is_url
from coral.repository import Repository

_log = logging.getLogger("coral")

_PAUSE, _LONGEST = 15.0, 600.0  # seconds after a push that failed in which none is begun; twice as many each time


class Pushing:
    """Has saves pushed to a remote, if there is one. What goes wrong with that is logged, and leaves the run alone."""

    def __init__(self, repo: Repository, remote: str | os.PathLike[str] | None, branch: str, *, prune: bool) -> None:
        self._repo = repo
        self._push = None if remote is None else DuePush.checked(remote, branch, prune=prune)
        self._spawns = isinstance(repo.store.fs, LocalFileSystem)
        self._process: CoralProcess | None = None
        self._saved = False  # anything, in this run
        self._noted: float | None = None  # when what the process found due of this run was noted
        self._failures = 0
        self._not_before = 0.0

    def begin(self) -> None:
        """Do what runs before this one have left due; say so if there is no such remote yet."""
        if self._push is not None and self._waits():
            name = self._push.remote
            _log.warning(
                "%s: pushing to %r is queued until the remote exists: repo.add_remote(%r, url)",
                self._repo.path, name, name,
            )  # fmt: skip
        if self._due():
            self._start()

    def saved(self) -> None:
        """A commit was made: it is due to be pushed, and is, in the background."""
        if self._push is not None and self._add(self._push):
            self._saved = True
            self._reap()
            if time.monotonic() >= self._not_before and not self._waits():
                self._start()

    def _waits(self) -> bool:
        """Whether the remote is one by name, and there is none of that name."""
        push = self._push
        return push is not None and not is_url(push.remote) and push.remote not in self._repo.remotes()

    def _due(self) -> list[DuePush]:
        try:
            return dues(self._repo.store.fs)
        except (CoralError, OSError) as error:
            _log.warning("%s: it cannot be seen which pushes are due: %s", self._repo.path, error)
            return []

    def _add(self, push: DuePush) -> bool:
        try:
            add_due(self._repo.store.fs, push)
        except (CoralError, OSError) as error:
            _log.warning("%s: a push could not be noted as due: %s", self._repo.path, error)
            return False
        return True

    def _when_noted(self) -> float | None:
        """When the push of this run was noted as due, by the filesystem's clock; None where it is not due."""
        if self._push is None:
            return None
        try:
            return self._repo.store.fs.stat(self._push.path).mtime
        except (CoralError, OSError):
            return None

    def close(self, patience: float | None = None) -> None:
        """Push what came last, notes too, and what is still due, and wait for it; what fails is the next run's.

        After `patience` seconds it is left to itself.
        """
        until = None if patience is None else time.monotonic() + patience
        self._reap(wait=True, until=until)
        if self._push is not None and self._saved:
            self._saved = False
            self._add(self._push)
            if not self._waits():
                self._start()
            self._reap(wait=True, until=until)
            if left := self._due():
                shown = ", ".join(f"{push.branch} to {push.remote}" for push in left)
                _log.warning(
                    "%s: not pushed: %s. The next run does it, or `coral push --due %s`.",
                    self._repo.path, shown, self._repo.path,
                )  # fmt: skip

    def _start(self) -> None:
        if self._process is not None:
            return
        self._noted = self._when_noted()
        if not self._spawns:
            self._push_here()
            return
        try:
            self._process = CoralProcess("push", "--due", str(self._repo.path))
        except (OSError, ValueError) as error:
            self._spawns = False
            _log.info("%s: no process can be had to push in the background: %s", self._repo.path, error)
            self._push_here()

    def _push_here(self) -> None:
        try:
            found: list[object] = list(self._repo.push_due().values())
        except Exception as error:  # noqa: BLE001 - somebody else's remote may raise anything: the run goes on
            found = [error]
        self._ended(not any(isinstance(each, Exception) for each in found), "; ".join(map(str, found)))

    def _reap(self, *, wait: bool = False, until: float | None = None) -> None:
        """Log what became of a process that has ended, or is to by that time."""
        process = self._process
        if process is None or (not wait and process.poll() is None):
            return
        try:
            process.wait(timeout=None if until is None else max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            _log.warning("%s: a push takes longer than the run that ends can wait, and goes on", self._repo.path)
            return
        self._process = None
        self._ended(process.returncode == 0, "\n".join(filter(None, process.said()))[-1000:])

    def _ended(self, succeeded: bool, said: str) -> None:
        if not succeeded and self._push is not None and (self._noted is None or self._noted != self._when_noted()):
            # this run's own is not due any more, or again: what failed is due to another remote, and slows nothing here
            self._failures, self._not_before = 0, 0.0
            _log.info("%s: pushed, but for what else is due: %s", self._repo.path, said)
        elif succeeded:
            self._failures, self._not_before = 0, 0.0
            _log.info("%s: pushed: %s", self._repo.path, said)
        else:
            self._not_before = time.monotonic() + min(_PAUSE * 2**self._failures, _LONGEST)
            self._failures += 1
            _log.warning("%s: a push failed, and stays due: %s", self._repo.path, said or "it said nothing")
