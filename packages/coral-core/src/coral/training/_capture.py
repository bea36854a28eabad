"""Taking snapshots: copies in memory of their own where there is room for them."""

from __future__ import annotations

import logging

from coral.training._memory import nbytes_of, short_of_memory
from coral.training._source import Snapshot, StateSource

_log = logging.getLogger("coral")


class Capture:
    """Takes the snapshots of a run; `nbytes` is how much there was in the first one."""

    def __init__(self, source: StateSource, *, copies: bool, experiment: str) -> None:
        self.nbytes = 0
        self._source = source
        self._copies = copies
        self._experiment = experiment
        self._has_room = False  # whether there was memory for a copy of a snapshot

    def take(self, step: int, *, last: bool = False) -> tuple[Snapshot, bool]:
        """A snapshot, and whether it is a copy: training must not go on before one that is not has been saved.

        The `last` of a run is none: there is no training that it could be in the way of.
        """
        if not self._copies or last:
            return self._measured(self._source.capture(copy=False)), False
        if not self._has_room:  # the first copy takes memory, which later ones use again
            views = self._measured(self._source.capture(copy=False))
            if short_of_memory(self.nbytes):
                _log.warning("%s: memory is short of a second copy: saving step %d in place", self._experiment, step)
                return views, False
            del views
            self._has_room = True
        return self._source.capture(), True

    def _measured(self, snapshot: Snapshot) -> Snapshot:
        if not self.nbytes:
            self.nbytes = nbytes_of(snapshot)
        return snapshot
