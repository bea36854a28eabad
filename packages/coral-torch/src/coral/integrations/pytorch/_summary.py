"""What there is of a run: its checkpoints, and the run in a few numbers."""

from __future__ import annotations

from typing import Any

from coral import Commit, Repository
from coral.errors import UnknownRef
from coral.training import CheckpointManager

__all__ = ["list_checkpoints", "summarize"]


def list_checkpoints(manager: CheckpointManager) -> list[dict[str, Any]]:
    """The checkpoints of a manager's experiment on its branch, newest first, as plain values."""
    commits = _commits(manager.repo, manager.branch, manager.experiment)
    best = _best(manager.repo, commits)
    return [
        {
            "commit": commit.id,
            "step": commit.step,
            "epoch": commit.epoch,
            "metrics": dict(commit.metrics),
            "reasons": sorted(commit.reasons),
            "pruned": commit.pruned,
            "is_best": commit.id == best,
        }
        for commit in commits
    ]


def summarize(manager: CheckpointManager) -> dict[str, Any]:
    """The run that a manager is on, with the bytes that its checkpoints take: as they are in memory, and as stored."""
    mine = {c.id for c in _commits(manager.repo, manager.branch, manager.experiment) if c.run == manager.run}
    stats = [each for each in manager.repo.stats().by_commit if each.id in mine]
    best = manager.state.best
    return {
        "experiment": manager.experiment,
        "branch": manager.branch,
        "run": manager.run,
        "monitored": manager.config.save_on_best_metric,
        "best_metric": best.score if best else None,
        "best_step": best.step if best else None,
        "checkpoints_saved": len(mine),
        "checkpoints_kept": len(stats),
        "raw_bytes": sum(each.raw_bytes for each in stats),
        "stored_bytes": sum(each.stored_bytes for each in stats),
    }


def _commits(repo: Repository, branch: str, experiment: str) -> list[Commit]:
    try:
        log = repo.log(f"refs/heads/{branch}")
    except UnknownRef:  # nothing is saved yet
        return []
    return [commit for commit in log if commit.experiment == experiment]


def _best(repo: Repository, commits: list[Commit]) -> str | None:
    """The best of the newest one's run and of those that it went on from."""
    chain = repo.chain(commits[0].id) if commits else ()
    return next((commit.id for commit in chain if "best" in commit.reasons and not commit.pruned), None)
