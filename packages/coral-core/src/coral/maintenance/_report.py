"""What fsck says: the damage it found, what that touches, what is whole, and what a repair has done about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from coral.errors import printable

__all__ = ["FsckReport", "Problem"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage: the file it is in, what is wrong, and what it touches.

    `object` is the id of what is damaged or lost, where it is known; `commits` those that cannot do without it, and
    `tensors` what they call it ("weights/<name>" or "state/<name>"). A copy of something that is whole elsewhere
    touches nothing.
    """

    path: str
    message: str
    commits: tuple[str, ...] = ()
    object: str = ""
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        touched = [*(id[:12] for id in self.commits[:_SHOWN]), *map(repr, self.tensors[:_SHOWN])]
        more = len(self.commits) + len(self.tensors) - len(touched)
        shown = ", ".join(touched) + (f" and {more} more" if more else "")
        return printable(f"{self.path}: {self.message}{f' (touches {shown})' if touched else ''}", lines=False)


@dataclass(slots=True)
class FsckReport:
    """What fsck found; `ok` if nothing is damaged, or nothing any more after a repair. Sizes in bytes."""

    problems: list[Problem] = field(default_factory=list)
    packs: int = 0
    tensors: int = 0
    commits: int = 0
    bytes_checked: int = 0
    whole: list[str] = field(default_factory=list)
    """The commits that refs lead to and of which all is there, but for what was pruned or never fetched."""
    dangling: list[str] = field(default_factory=list)
    """Commits that no ref leads to, nor another commit: of deleted branches, or of saves that did not end."""
    repaired: list[Problem] = field(default_factory=list)
    """The damage that is no more after a repair; what it could not mend is in `problems`."""
    actions: list[str] = field(default_factory=list)
    """What a repair did, what it had to give up, and which remotes could not be asked."""
    quarantined: list[str] = field(default_factory=list)
    """The damaged files that a repair has set aside, by where they are now. Nothing ever deletes them."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.commits} commits, {self.tensors} tensors in {self.packs} packs: "]
        lines[0] += f"{len(self.problems)} damaged" if self.problems else "no damage"
        lines += map(str, self.problems)
        if self.problems:
            lines.append(f"whole: {len(self.whole)} of the commits that branches and tags lead to")
        lines += [f"seen to: {problem}" for problem in self.repaired]
        lines += [printable(f"repair: {action}", lines=False) for action in self.actions]
        if self.quarantined:
            lines.append(f"set aside: {len(self.quarantined)} files, in quarantine/")
        return "\n".join(lines)
