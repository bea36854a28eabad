"""Whether the disk has room for what is to be saved, and how room is made where it has not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from coral.errors import CoralError, DiskFull
from coral.repository import Repository
from coral.training._config import CheckpointConfig
from coral.training._events import Prune, Saved
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import PolicyState
from coral.training._retention import has_budget

_log = logging.getLogger("coral")

Checkpoints = list[tuple[int, str]]
"""Steps, each with its commit."""


class Disk:
    """Compares the free space with what a save needs: all there is at first, later what the last one added.

    `free` frees what is pruned, `prune` prunes checkpoints; both say how many bytes that was.
    """

    def __init__(
        self, repo: Repository, config: CheckpointConfig, free: Callable[[], int], prune: Callable[[Checkpoints], int]
    ) -> None:
        self._repo = repo
        self._config = config
        self._free = free
        self._prune = prune
        self._whole = 0  # bytes of a checkpoint, if nothing of it is there already
        self._need: int | None = None  # what the next save is expected to add, once two of them say so
        self._held: set[str] | None = None  # the tensors of the last save
        self._warned = False

    def begin(self, nbytes: int, experiment: str, *, held: int) -> None:
        """Before the first save, of `nbytes` bytes: warn where what is to be kept, with `held` there, may not fit."""
        if self._whole:
            return
        self._whole = self._need = nbytes
        room, config = self._room(), self._config
        budget = (config.keep_last_n_checkpoints or 0) + (config.keep_best_n_checkpoints or 0)
        wanted = max((budget or 1) + 1 - held, 1)  # the next one is there before the one that it replaces goes
        if room is not None and room < wanted * nbytes:
            self._warned = True
            _log.warning(
                "%s: %s has %s bytes free; the next %d checkpoints take up to %s. Free some space, or keep fewer.",
                experiment, self._repo.path, f"{room:,}", wanted, f"{wanted * nbytes:,}",
            )  # fmt: skip

    def save(self, save: Callable[[], str], spare: Checkpoints) -> str:
        """Save, with room made before where it is short, and once more after a save that found the disk full.

        Room comes from what is pruned already, and where that is not enough from `spare`: what falls out of the
        budgets once this save is done. Raises what `save` raises where no room could be made.
        """
        room = self._room()
        if room is not None and self._need is not None and room < self._need:
            _log.warning(
                "%s: %s bytes are free, and a save takes up to %s: making room",
                self._repo.path, f"{room:,}", f"{self._need:,}",
            )  # fmt: skip
            self._make_room(spare, self._need, room)
        try:
            commit = save()
        except DiskFull as error:
            _log.warning("%s: making room, as a save found none: %s", self._repo.path, error)
            room, need = self._room(), self._whole if self._need is None else self._need
            # what is free is not all to be had where a quota says so
            if not self._make_room(spare, need, room if room is not None and room < need else 0):
                raise
            commit = save()
        self._measure(commit)
        return commit

    def _make_room(self, spare: Checkpoints, need: int, room: int) -> int:
        """Free what can go until so much is there; returns the bytes freed."""
        freed = self._free()
        if room + freed < need and self._prune(spare):
            freed += self._free()
        _log.info("%s: %s bytes were freed", self._repo.path, f"{freed:,}")
        return freed

    def _measure(self, commit: str) -> None:
        """What this save added is what the next one is expected to; that it will not fit is said early."""
        try:
            entries = {entry.id: entry.nbytes for entry in self._repo.tree(commit).values()}
            state = self._repo.show(commit).nbytes - sum(entries.values())  # its tensors are not told apart
        except (CoralError, OSError):  # pruned by someone else meanwhile: what is known will do
            return
        before, self._held, self._need = self._held, set(entries), None
        if before is not None:
            self._need = max(state, 0) + sum(nbytes for id, nbytes in entries.items() if id not in before)
        if self._warned or self._need is None or has_budget(self._config):  # a budget makes room for the next one
            return
        room = self._room()
        if room is not None and room < self._need:
            self._warned = True
            _log.warning(
                "%s: %s bytes are left, and the next save takes up to %s",
                self._repo.path, f"{room:,}", f"{self._need:,}",
            )  # fmt: skip

    def _room(self) -> int | None:
        try:
            return self._repo.store.fs.free()
        except OSError:
            return None


def spare(policy: CheckpointPolicy, state: PolicyState, step: int, commits: Mapping[int, str]) -> Checkpoints:
    """The checkpoints that fall out of the budgets when `step` is saved, but for the newest and the best there are."""
    _, actions = policy.advance(state, Saved(step, ""))
    best = state.best.step if state.best else None
    kept = {max(commits, default=None), best, state.resumed_from}
    gone = (each for action in actions if isinstance(action, Prune) for each in action.steps)
    return [(each, commits[each]) for each in gone if each in commits and each not in kept]
