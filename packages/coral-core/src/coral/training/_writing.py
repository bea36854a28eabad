"""What a run writes into its repository: commits, the tag on its best, and which commits are pruned."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coral.errors import RefExists, UnsafeInput
from coral.repository import Repository
from coral.store import check_ref_name, needed
from coral.training._config import CheckpointConfig
from coral.training._events import Annotate
from coral.training._memory import nbytes_of
from coral.training._record import TrainingState
from coral.training._source import Snapshot

_log = logging.getLogger("coral")


def best_tag(experiment: str) -> str:
    """The tag on an experiment's best; with a hash where a tag cannot have its name."""
    try:
        return check_ref_name(f"best/{experiment}", "tag")
    except UnsafeInput:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", experiment).strip("-") or "experiment"
        known = hashlib.sha256(experiment.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return f"best/{name[:70]}-{known}"


@dataclass(frozen=True, slots=True)
class RunWriter:
    """Writes for the runs of one experiment on one branch."""

    repo: Repository
    config: CheckpointConfig
    experiment: str
    branch: str

    def commit(
        self, snapshot: Snapshot, record: TrainingState, reasons: Iterable[str], metrics: Mapping[str, float]
    ) -> str:
        """Commit a snapshot with what the run says of it; returns the commit's id."""
        begun, why = time.monotonic(), ", ".join(sorted(reasons))
        message = self.config.commit_message(
            experiment=self.experiment, step=record.step, epoch=record.epoch, reasons=reasons, metrics=metrics
        )
        id = self.repo.commit(
            snapshot.weights,
            message,
            branch=self.branch,
            state=snapshot.state,
            metadata=snapshot.metadata,
            training=record.fields(),
            metrics=metrics,
            reasons=reasons,
        )
        took, nbytes = time.monotonic() - begun, f"{nbytes_of(snapshot):,}"
        _log.info(
            "%s: saved step %d (%s) as %s: %s bytes in %.2f s", self.experiment, record.step, why, id[:12], nbytes, took
        )
        return id

    def said(self, step: int, save: Callable[[], str]) -> str:
        """Save; a failure is said at once: at interpreter exit nobody may be left to collect it."""
        try:
            return save()
        except Exception as error:
            _log.error("%s: saving step %d failed: %s", self.experiment, step, error)
            raise

    def note(
        self, commit: str, action: Annotate, training: Mapping[str, Any], snapshot: Snapshot | None, run: str
    ) -> None:
        """Add to a commit what has become known of its step; the state of a snapshot replaces the one saved.

        The weights stay what they were: where they have moved since, going on from both together is not exact.
        """
        state = None
        if snapshot is not None:
            state = snapshot.state
            stored = {name: entry.id for name, entry in self.repo.tree(commit).items()}
            if stored != {name: weight.id for name, weight in snapshot.weights.items()}:
                why = "the weights moved between the step, when they were saved, and the end of the epoch"
                training = {**training, "exact": False, "why": "; ".join(filter(None, (training["why"], why)))}
        self.repo.annotate(commit, metrics=action.metrics, reasons=action.reasons, state=state, training=training)
        if "best" in action.reasons:
            self.tag_best(commit, run)

    def tag_best(self, commit: str, run: str) -> None:
        """Move the experiment's best tag to a commit; one that was made by hand is left where it is."""
        if self.config.tag_best_checkpoints:
            try:
                self.repo.tag(best_tag(self.experiment), commit, force=True, run=run)
            except RefExists as error:
                _log.warning("%s: the best checkpoint, %s, is not tagged: %s", self.experiment, commit[:12], error)

    def prune(self, commits: Iterable[tuple[int, str]]) -> int:
        """Mark commits as pruned, but for those that a tag made by hand, another ref or an open run holds.

        Returns the bytes of their tensors.
        """
        pruned = 0
        branches = {tip for branch, tip in self.repo.branches().items() if branch != self.branch}
        held = branches | set(self.repo.tags(by_hand=True).values()) | needed(self.repo.store.fs, "run")
        for step, commit in commits:
            if self.repo.show(commit).pruned:  # when the disk was full, or by hand
                continue
            if commit in held:
                _log.info("%s: step %d is kept: a ref or an open run holds it", self.experiment, step)
            else:
                self.repo.annotate(commit, pruned=True)
                pruned += self.repo.show(commit).nbytes
        return pruned
