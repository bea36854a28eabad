"""Which run this is: its id, what it goes on from, and the commits of the steps that it may prune."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from coral.errors import ReadOnly, storage_errors
from coral.filesystem import FileSystem
from coral.store import intent

_log = logging.getLogger("coral")


class Lineage:
    """A run, and where it comes from: a new one each time that it goes on from a checkpoint.

    `commits` has those of its steps, and those it took over from what it goes on from, but for those that others hold
    too. `previous` is the newest.
    """

    def __init__(self, fs: FileSystem) -> None:
        self.run = os.urandom(8).hex()
        self.previous: str | None = None
        self.resumed_from: str | None = None
        self.commits: dict[int, str] = {}
        self._shared: Mapping[int, str] = {}  # those that others hold
        self._fs = fs
        self._held = ExitStack()  # the intent that keeps what it goes on from
        self._closed = False
        self._inexact = ""  # until it goes on

    def resume(self, commit: str, commits: Mapping[int, str], shared: Mapping[int, str], inexact: str) -> None:
        """Be a new run that goes on from a commit, with these commits of steps; `inexact` says why not exactly there.

        From now on nobody prunes that commit. Who comes back after `close`, or cannot write, may only look: then it is
        held once training goes on.
        """
        self._held.close()
        self.run = os.urandom(8).hex()
        self.previous = self.resumed_from = commit
        self.commits, self._shared = dict(commits), shared
        if not self._closed:
            try:
                self._hold()
            except ReadOnly:
                self._closed = True
        self._inexact = inexact

    def go_on(self, experiment: str) -> None:
        """Training goes on: warn if that is not exactly where it was, and after the end hold that again."""
        if self._inexact:
            _log.warning("%s: going on approximately: %s", experiment, self._inexact)
            self._inexact = ""
        if self._closed:
            self._closed = False
            self._hold()

    def _hold(self) -> None:
        if self.resumed_from is not None:
            self._held.close()
            with storage_errors(f"going on from {self.resumed_from[:12]}"):
                self._held.enter_context(intent(self._fs, "run", [self.resumed_from]))

    def saved(self, step: int, commit: str) -> None:
        """A step has a commit."""
        self.commits[step] = self.previous = commit

    def of(self, step: int) -> str | None:
        """The commit of a step, whoever else holds it."""
        return self.commits.get(step) or self._shared.get(step)

    def drop(self, steps: Iterable[int]) -> list[tuple[int, str]]:
        """The commits of steps that are about to be pruned: they are this run's no longer."""
        return [(step, self.commits.pop(step)) for step in steps if step in self.commits]

    def close(self) -> None:
        """Let what it goes on from be pruned."""
        self._held.close()
        self._closed = True
