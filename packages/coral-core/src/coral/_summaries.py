"""What a repository says of itself: how two commits differ, and how much it holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diff:
    """How the weights of two commits differ, by tensor name: bit-exact, from ids alone."""

    added: list[str]
    removed: list[str]
    modified: list[str]
    unchanged: list[str]

    @property
    def identical(self) -> bool:
        """Whether every tensor is the same, bit by bit."""
        return not (self.added or self.removed or self.modified)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a repository holds. `raw_bytes`: the tensors of all commits that are not pruned, as if each were whole.

    `stored_bytes`: all files of the repository. Both in bytes.
    """

    commits: int
    packs: int
    raw_bytes: int
    stored_bytes: int
