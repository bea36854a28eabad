"""What a run writes into its repository: commits, the tag on its best, and which commits are pruned."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coral.errors import RefExists
from coral.repository import Repository
from coral.store import needed
from coral.training._config import CheckpointConfig
from coral.training._memory import nbytes_of
from coral.training._record import TrainingState
from coral.training._source import Snapshot

_log = logging.getLogger("coral")


def best_tag(experiment: str) -> str:
    """The tag on an experiment's best; with a hash where a tag cannot hold what tells its name from others."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", experiment).strip("-") or "default"
    whole = re.sub(r"[A-Z]", "%..", name)  # as a file's name has it
    if experiment.isascii() and len(name) <= 150 and len(whole) <= 240:
        return f"best/{name}"
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
        try:
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
        except Exception as error:  # said at once: at interpreter exit nobody may be left to collect it
            _log.error("%s: saving step %d failed: %s", self.experiment, record.step, error)
            raise
        took, nbytes = time.monotonic() - begun, f"{nbytes_of(snapshot):,}"
        _log.info(
            "%s: saved step %d (%s) as %s: %s bytes in %.2f s", self.experiment, record.step, why, id[:12], nbytes, took
        )
        return id

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
