"""Saves that are asked for by hand: by a call, by a signal, or by a file named SAVE in the repository's folder."""

from __future__ import annotations

import logging
import math
import time

from coral.filesystem import FileSystem

_log = logging.getLogger("coral")

FILE = "SAVE"
_EVERY = 1.0  # seconds between two looks for the file


class Requests:
    """What was asked for and is not saved yet.

    A request stands until a save that was begun after it is done; one that fails leaves it standing. The file is
    looked for once a second at most, and removed when its save is done: if it is touched again before, it asks again.
    """

    def __init__(self, fs: FileSystem, *, watch: bool) -> None:
        self._fs = fs
        self._watch = watch
        self._asked = False  # a flag alone: it is set by signal handlers and other threads
        self._looked = -math.inf
        self._file: float | None = None  # when the file was last touched, as far as was seen
        self._answered: float | None = None  # ... and what of that a save answers
        self._step: int | None = None  # of the save that is under way

    def ask(self) -> None:
        """Ask for a save; from any thread, and from a signal's handler."""
        self._asked = True

    def due(self, *, last: bool = False) -> bool:
        """Whether there is a request that no save under way answers; the `last` look does not wait for its second."""
        now = time.monotonic()
        if self._watch and (last or now - self._looked >= _EVERY):
            self._looked, self._file = now, self._touched()
        return self._asked or self._file not in (None, self._answered)

    def taken(self, step: int) -> None:
        """A save of this step, which is yet to be written, answers all that was asked so far."""
        self._asked, self._answered, self._step = False, self._file, step

    def saved(self, step: int) -> None:
        """That step is saved: what it answers is settled."""
        if step != self._step:
            return
        self._step = None
        if self._answered is None or self._touched() != self._answered:
            return
        try:
            self._fs.unlink(FILE)
        except OSError as error:  # it asks no more, until it is touched again
            _log.warning("%s/%s: step %d is saved, but the file stays: %s", self._fs.root, FILE, step, error)
        else:
            self._file = self._answered = None

    def failed(self, step: int) -> None:
        """That step could not be saved: what it was to answer is asked for anew."""
        if step == self._step:
            self._step, self._asked = None, True

    def _touched(self) -> float | None:
        try:
            return self._fs.stat(FILE).mtime
        except OSError:
            return None
