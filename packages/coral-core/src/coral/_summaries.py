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
class CommitStats:
    """What one commit takes, in bytes.

    `raw_bytes`: its tensors as they are in memory. `stored_bytes`: what the repository holds for those that no earlier
    commit has.
    """

    id: str
    step: int | None
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What a repository holds. Sizes in bytes.

    `raw_bytes`: the tensors of all commits that are not pruned, as if each were whole. `stored_bytes`: all files.
    `reclaimable_bytes`: what `gc` would free. `base_bytes`: tensors that no commit has any more, but that others are
    stored as differences from. `by_commit`: those that are not pruned, oldest first.
    """

    commits: int
    packs: int
    raw_bytes: int
    stored_bytes: int
    reclaimable_bytes: int
    base_bytes: int
    by_commit: tuple[CommitStats, ...]
