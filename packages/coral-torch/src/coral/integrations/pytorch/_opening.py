"""A repository from what a user names it by."""

from __future__ import annotations

import os

from coral import Repository

__all__ = ["RepositoryLike", "opened"]

RepositoryLike = Repository | str | os.PathLike[str]


def opened(repo: RepositoryLike, *, init: bool = False) -> Repository:
    """The repository itself, or the one in the folder; with `init` it is made where there is none."""
    return repo if isinstance(repo, Repository) else Repository(repo, init=init)
