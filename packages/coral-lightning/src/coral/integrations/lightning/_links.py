"""coral://path@ref: a commit, where a trainer wants the path of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from coral.errors import ConfigError

__all__ = ["Link", "is_link", "parse"]

SCHEME = "coral://"


class Link(NamedTuple):
    """A repository's folder, and a ref in it."""

    path: Path
    ref: str


def is_link(path: object) -> bool:
    """Whether a trainer's path of a checkpoint is one of ours."""
    return isinstance(path, str | os.PathLike) and str(path).startswith(SCHEME)


def parse(link: object) -> Link:
    """What `coral://path@ref` means; without a ref, HEAD. ConfigError where there is no path.

    The ref begins at the first "@" behind the last "/" that is followed by a repository's folder: both folders and
    branches may hold "/", and `experiment@best` an "@".
    """
    text = str(link).removeprefix(SCHEME)
    cuts = [at for at, char in enumerate(text) if char == "@"]
    # a folder that is there decides; one that is not cannot be loaded from in any case
    for at in cuts:
        if Path(text[:at]).is_dir():
            return _link(link, text[:at], text[at + 1 :])
    if cuts and not Path(text).is_dir():
        return _link(link, text[: cuts[0]], text[cuts[0] + 1 :])
    return _link(link, text, "HEAD")


def _link(link: object, path: str, ref: str) -> Link:
    if not path or not ref:
        raise ConfigError(f"{link} is no checkpoint: write coral://path@ref, as in coral://./weights@experiment@best")
    return Link(Path(path), ref)
