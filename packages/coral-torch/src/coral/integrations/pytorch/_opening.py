"""A repository, and a commit, from what a user names it by."""

from __future__ import annotations

import os
import re

from coral import Repository

__all__ = ["RepositoryLike", "in_branch", "opened"]

RepositoryLike = Repository | str | os.PathLike[str]

_IN_BRANCH = re.compile(r"(best|last|step:\d+)(?![\w@/.-])")


def opened(repo: RepositoryLike, *, init: bool = False) -> Repository:
    """The repository itself, or the one in the folder; with `init` it is made where there is none."""
    return repo if isinstance(repo, Repository) else Repository(repo, init=init)


def in_branch(branch: str, ref: str | None) -> str:
    """The ref within a branch: its newest commit without one; `best`, `last` and `step:500` are those of the branch."""
    if ref is None:
        return f"refs/heads/{branch}"  # and not a tag of the same name
    return f"{branch}@{ref}" if _IN_BRANCH.match(ref) else ref
