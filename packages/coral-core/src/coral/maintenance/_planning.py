"""Which commits become keyframes, and which are stored as differences from which of them.

Along each line of commits, those that are pruned left out, one in `group_size` is a keyframe. The others are stored as
differences from the nearest one, before or after them, so that they are like it. What is decided stays: a commit that
others are differences from is a keyframe, and one that is a difference is left alone, until what it is a difference
from is pruned, and keeping that costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coral.delta import DeltaConfig
from coral.maintenance._inventory import Copy
from coral.maintenance._marking import Marker, Marks
from coral.objects import Commit
from coral.store._pack import RAW

__all__ = ["Job", "plan", "spare"]

_WORTH = 0.05  # of the bytes to be encoded anew, what has to be saved by letting go of a pruned keyframe


@dataclass(frozen=True, slots=True)
class Job:
    """A commit to encode: as a keyframe, or against `key`. `key` of a keyframe is the one before it, if any.

    Without a key, what is no keyframe stands alone.
    """

    commit: Commit
    keyframe: bool
    key: Commit | None
    tensors: tuple[str, ...]  # those that no commit before it has


@dataclass(slots=True)
class _Place:
    """Where a commit stands on its line."""

    commit: Commit
    before: _Place | None
    own: tuple[str, ...]
    keyframe: bool = False  # others are differences from it
    chosen: bool = False  # as a keyframe, just now
    followed: bool = False  # by another keyframe
    due: bool = False  # a keyframe that is to be encoded now
    root: _Place | None = None  # the keyframe that it may be a difference from; none: it stands alone
    since: int = 0  # keyframes since the one that stands alone
    packed: bool = False  # stored as differences already
    key: _Place | None = None  # the last keyframe up to here
    distance: int = 0  # from it
    after: tuple[_Place, int] | None = None  # the next keyframe on, and its distance

    @property
    def open(self) -> bool:
        """Whether it is yet to be decided how it is stored."""
        return not self.packed and not self.keyframe


@dataclass(slots=True)
class _Line:
    """All commits that are not pruned, in their places."""

    places: dict[str, _Place] = field(default_factory=dict)
    owner: dict[str, _Place] = field(default_factory=dict)  # tensor -> the first commit that has it


def plan(
    marks: Marks,
    marker: Marker,
    settled: Mapping[str, Copy],
    config: DeltaConfig,
    *,
    patient: bool = False,
    again: bool = False,
) -> list[Job]:
    """What to encode, keyframes first.

    Being `patient` means to leave whole what may be nearer to a keyframe to come. `again` encodes what is encoded
    already once more, against the same keyframes.
    """
    line = _line(marks, marker, settled)
    _let_go_of_pruned(line, marks, settled)
    _choose_keyframes(line, config.group_size)
    _find_roots(line, settled, marks, config.group_size, again=again)
    keyframes, members = [], []
    for place in line.places.values():
        tensors = tuple(id for id in place.own if id not in marks.whole and id in settled)
        if not tensors:
            continue
        if place.keyframe:
            if place.due:
                keyframes.append(Job(place.commit, True, place.root.commit if place.root else None, tensors))
        elif place.key is not None and (again or not place.packed):
            near = place.key
            if place.after is not None and place.after[1] < place.distance:
                near = place.after[0]
            elif patient and 2 * place.distance > config.group_size:
                continue
            members.append(Job(place.commit, False, near.commit, tensors))
    return keyframes + members


def spare(jobs: list[Job], marks: Marks, marker: Marker, settled: Mapping[str, Copy]) -> list[Job]:
    """What to encode of the keyframes that these jobs were encoded against.

    They were left whole so that differences from them are read fast: needless for what none is a difference from.
    """
    keys = {job.key.id: job.key for job in jobs if job.key is not None and not job.keyframe}
    bases = {copy.base for copy in settled.values()}
    found = []
    for key in keys.values():
        whole = [id for id in marker.tensors(key) if id in settled and settled[id].codec == RAW and id not in bases]
        tensors = tuple(id for id in whole if id not in marks.whole)
        if tensors:
            found.append(Job(key, False, None, tensors))
    return found


def _line(marks: Marks, marker: Marker, settled: Mapping[str, Copy]) -> _Line:
    line = _Line()
    nearest: dict[str, _Place | None] = {}  # the first commit from here back that is not pruned
    bases = {copy.base for copy in settled.values() if copy.base}
    for commit in marks.commits:
        before = nearest.get(commit.parents[0]) if commit.parents else None
        if commit.pruned:
            nearest[commit.id] = before
            continue
        own = tuple(id for id in dict.fromkeys(marker.tensors(commit)) if id not in line.owner)
        place = _Place(commit, before, own)
        copies = [settled[id] for id in own if id in settled]
        encoded = sum(copy.nbytes for copy in copies if copy.codec != RAW)
        place.packed = bool(encoded) and 2 * encoded >= sum(copy.nbytes for copy in copies)
        alone = place.packed and all(copy.base is None for copy in copies)
        place.keyframe = alone or not bases.isdisjoint(own)
        line.owner.update(dict.fromkeys(own, place))
        line.places[commit.id] = nearest[commit.id] = place
    return line


def _let_go_of_pruned(line: _Line, marks: Marks, settled: Mapping[str, Copy]) -> None:
    """Decide anew on commits that are differences from what only they need, where that saves more than it costs."""
    cost: dict[str, int] = {}  # base that no commit has -> its bytes
    users: dict[str, set[str]] = {}  # ... -> commits that need it
    for place in line.places.values():
        for id in place.own:
            base = settled[id].base if id in settled else None
            while base is not None and base not in marks.tensors:
                cost[base] = settled[base].size
                users.setdefault(base, set()).add(place.commit.id)
                base = settled[base].base
    groups: dict[frozenset[str], int] = {}
    for base, commits in users.items():
        together = frozenset(commits)
        groups[together] = groups.get(together, 0) + cost[base]
    for users_of, size in groups.items():
        places = [line.places[id] for id in users_of]
        work = sum(settled[id].nbytes for place in places for id in place.own if id in settled)
        spared = max(sum(settled[id].size for id in place.own if id in settled) for place in places)
        if min(size, spared) > _WORTH * work:
            for place in places:
                place.packed = False


def _choose_keyframes(line: _Line, group_size: int) -> None:
    for place in line.places.values():
        before = place.before
        if before is not None:
            place.key, place.distance = before.key, before.distance + 1
        if place.open and (place.key is None or place.distance >= group_size):
            place.keyframe = place.chosen = True
        if place.keyframe:
            if place.key is not None:
                place.key.followed = True
            place.key, place.distance = place, 0
            back, distance = before, 1
            while back is not None and not back.keyframe and 2 * distance < group_size:
                if back.after is None or back.after[1] > distance:
                    back.after = place, distance
                back, distance = back.before, distance + 1


def _find_roots(line: _Line, settled: Mapping[str, Copy], marks: Marks, group_size: int, *, again: bool) -> None:
    """Which keyframes stand alone, and which may be differences from the one of these before them.

    So that no difference is ever from more than one other: what is about to be encoded against something is nothing
    that a keyframe is encoded against.
    """
    last: _Place | None = None  # of any line
    for place in line.places.values():
        if not place.keyframe:
            continue
        tensors = [id for id in place.own if id not in marks.whole and id in settled]
        raw = any(settled[id].codec == RAW for id in tensors)
        place.due = again or place.chosen or (not place.followed and raw)
        before = place.before.key if place.before is not None else last
        root = before and (before.root or before)
        alone = all(settled[id].base is None for id in place.own if id in settled)
        if root is None or before is None or (alone and (not place.due or before.since + 1 >= group_size)):
            place.root, place.since = None, 0
        else:
            place.root, place.since = root, before.since + 1
        last = place
