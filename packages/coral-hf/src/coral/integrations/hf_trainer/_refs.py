"""Which commit a callback means."""

from __future__ import annotations

import re

from coral import Commit, Repository
from coral.errors import CommitPruned, RefError

__all__ = ["resolve", "resumed_commit"]

_IN_BRANCH = re.compile(r"(best|last|step:\d+)(?![\w@/.-])")


def resolve(branch: str, ref: str | None) -> str:
    """The ref within a branch: its newest commit without one; `best`, `last` and `step:500` are those of the branch."""
    if ref is None:
        return f"refs/heads/{branch}"  # and not a tag of the same name
    return f"{branch}@{ref}" if _IN_BRANCH.match(ref) else ref


def resumed_commit(repo: Repository, branch: str, step: int) -> Commit | None:
    """The checkpoint that a run that goes on after so many steps goes on from, as far as can be known; None if none."""
    try:
        found = repo.show(resolve(branch, f"step:{step}"))
    except (RefError, CommitPruned):
        return None
    return None if found.pruned else found
