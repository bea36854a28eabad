"""What is on the other side. Remotes that have a name are not there yet: a folder with a repository stands for one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from coral import Repository
from coral.errors import ConfigError

__all__ = ["push", "remote_repository"]

_log = logging.getLogger("coral")


def remote_repository(repo: Repository, name: str) -> Repository:
    """The repository in the folder of this name. ConfigError where there is no such folder."""
    if not Path(name).is_dir():
        raise ConfigError(
            f"{repo.path} has no remote {name!r}: this version of coral knows no remotes by name. Give the folder of "
            "another repository instead, or pull_first=False to load what is here"
        )
    return Repository(name)


def push(repo: Repository, name: str, branch: str) -> dict[str, Any]:
    """What came of pushing a branch: as yet an error, for this version of coral cannot push."""
    error = f"{branch} of {repo.path} was not pushed to {name!r}: this version of coral cannot push"
    _log.warning("%s", error)
    return {"remote": name, "error": error}
