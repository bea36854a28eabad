"""What is on the other side, with a progress bar where there is a terminal to see it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coral import CoralError, Repository
from coral.integrations.pytorch._progress import progress_bar
from coral.maintenance import Progress

__all__ = ["pull", "push"]

_log = logging.getLogger("coral")


def pull(repo: Repository, remote: str, branch: str | None) -> Repository:
    """The repository to load a branch of a remote from, or any commit of it where there is no branch.

    A remote with a name, or a URL, is pulled from: the branch here moves on. A folder is read where it lies.
    """
    if remote not in repo.remotes() and "://" not in remote and Path(remote).is_dir():
        return Repository(remote)
    with _bar() as progress:
        if branch is None:
            repo.fetch(remote, progress=progress)
        else:
            repo.pull(remote, branch, progress=progress)
    return repo


def push(repo: Repository, remote: str, branch: str) -> dict[str, Any]:
    """Push a branch to a remote, a name or a URL; what came of it, and the `error` where it failed."""
    try:
        with _bar() as progress:
            done = repo.push(remote, branch, progress=progress)
    except CoralError as error:
        _log.warning("%s of %s was not pushed to %r: %s", branch, repo.path, remote, error)
        return {"remote": remote, "error": str(error)}
    return {
        "remote": remote,
        "commit_hash": done.commit,
        "commits": done.commits,
        "bytes_sent": done.bytes_sent,
        "notes": done.notes,
        "tags": list(done.tags),
    }


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar of the bytes that travel; how many there are is known once they do."""
    with progress_bar(0, True) as update:
        before = 0

        def progress(done: int, total: int) -> None:  # noqa: ARG001 - the total is an estimate
            nonlocal before
            update(done - before)
            before = done

        yield progress
