"""Which commit a callback means."""

from __future__ import annotations

from coral import Commit, Repository
from coral.errors import CommitPruned, RefError
from coral.integrations.pytorch._opening import in_branch

__all__ = ["resumed_commit"]


def resumed_commit(repo: Repository, branch: str, step: int) -> Commit | None:
    """The checkpoint that a run that goes on after so many steps goes on from, as far as can be known; None if none."""
    try:
        found = repo.show(in_branch(branch, f"step:{step}"))
    except (RefError, CommitPruned):
        return None
    return None if found.pruned else found
