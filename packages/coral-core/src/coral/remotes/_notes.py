"""Notes on both sides, by name: each is put once and never changed, so what is missing is all that there is to know."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from coral.errors import CorruptObject
from coral.filesystem import FileSystem
from coral.objects import Commit, Note
from coral.remotes._side import THREADS, Side, each_at_once
from coral.store import Store
from coral.store._files import LIMIT, unseal

__all__ = [
    "FoundNote",
    "Notes",
    "local_notes",
    "note_paths",
    "note_there",
    "put_notes",
    "read_note",
    "sort_notes",
    "tell_pruned",
]

_log = logging.getLogger("coral")

_PATH = re.compile(r"notes/([0-9a-f]{64})/[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FoundNote:
    """A note as it lies in its file."""

    path: str
    commit: str
    note: Note
    content: bytes


def commit_of(path: str) -> str | None:
    """The commit that a path is of a note on; None where it is of something else."""
    match = _PATH.fullmatch(path)
    return match[1] if match else None


def note_paths(fs: FileSystem) -> Iterator[str]:
    """The paths of all notes."""
    for commit in fs.list("notes"):
        for name in fs.list(f"notes/{commit}"):
            if commit_of(path := f"notes/{commit}/{name}"):
                yield path


def read_note(fs: FileSystem, path: str) -> FoundNote:
    """A note, checked; CorruptObject if it is not what was written."""
    commit = commit_of(path)
    if commit is None:
        raise CorruptObject(f"{path[:200]!r} is not the path of a note", path=path)
    content = fs.read(path, LIMIT)
    return FoundNote(path, commit, Note.decode(unseal(content, path), commit, path), content)


def note_there(side: Side, path: str) -> FoundNote | None:
    """A note of the other side; None, with a warning, where it is damaged there: it is asked for twice."""
    try:
        try:
            return read_note(side.fs, path)
        except CorruptObject:
            return read_note(side.fs, path)
    except (CorruptObject, FileNotFoundError) as error:
        _log.warning("%s: a note is left out: %s", side.url, error)
        return None


@dataclass(slots=True)
class Notes:
    """What notes say of some commits, and which of them the other side lacks."""

    now: list[FoundNote] = field(default_factory=list)  # to be sent before refs over there move
    later: list[FoundNote] = field(default_factory=list)  # ... and after: what they are on is pruned by them
    states: dict[str, list[str]] = field(default_factory=dict)  # commit -> states that notes name
    pruned: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)  # their tensors were never fetched
    without: set[str] = field(default_factory=set)  # both of these
    told: set[str] = field(default_factory=set)  # pruned, and the other side knows of it, or will before refs move
    unread: dict[str, list[str]] = field(default_factory=dict)  # commit -> paths of its notes that are only there

    def pruned_there(self, side: Side, ids: Iterable[str]) -> set[str]:
        """Which of some commits are pruned over there, or are not whole there for good."""
        ids = set(ids)
        unread = [path for id in ids for path in self.unread.get(id, ())]
        found = each_at_once(lambda path: note_there(side, path), unread)
        return ids & self.told | {each.commit for each in found if each is not None and each.note.pruned}


def sort_notes(
    ours: Store, side: Side, commits: Iterable[Commit], *, mine: set[str], new: Iterable[Commit], prune: bool
) -> Notes:
    """What is known of some commits, and which notes on `mine` are to be sent, with those that are `new` over there.

    That a commit is pruned is sent only if asked, or with a new one whose tensors are not there anyway. A later state
    is left out where it is not here and the commit counts as whole over there: its earlier one is there.
    """
    found = Notes()
    there, looked = {each.name for each in side.fs.files("notes")}, {commit.id for commit in commits}
    notes: list[FoundNote] = []
    for path in note_paths(ours.fs):
        try:
            each = read_note(ours.fs, path)
        except (CorruptObject, FileNotFoundError) as error:
            _log.warning("%s: a note is not sent: %s. Run fsck.", ours.fs.root, error)
            continue
        if each.commit in looked and each.note.local:
            found.absent.add(each.commit)
        elif each.commit in looked:
            notes.append(each)
    found.pruned = {each.commit for each in notes if each.note.pruned}
    found.without = found.pruned | found.absent
    found.told = {each.commit for each in notes if each.note.pruned and each.path in there}
    found.told |= found.pruned.intersection(each.id for each in new if prune or not _is_there(side, each))
    for path in there.difference(each.path for each in notes):
        if commit := commit_of(path):
            found.unread.setdefault(commit, []).append(path)
    for each in notes:
        if each.note.state and (each.path in there or each.commit in mine):
            found.states.setdefault(each.commit, []).append(each.note.state)
        if each.path in there or each.commit not in mine or (each.note.state and each.commit in found.absent):
            continue
        if each.commit in found.pruned - found.told and (each.note.pruned or each.note.state):
            found.later += [each] if prune else []
        else:
            found.now.append(each)
    return found


def _is_there(side: Side, commit: Commit) -> bool:
    """Whether a commit's own tree and state are over there: another one may have the same weights."""
    return all(id in side.inventory.copies for id in (commit.tree, commit.state) if id)


def put_notes(side: Side, notes: Sequence[FoundNote]) -> None:
    """Put notes over there, first that commits are pruned: until then a state that a note names is missed."""

    def put(found: FoundNote) -> None:
        side.fs.remote.put(found.path, memoryview(found.content))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="coral-push") as threads:
        for pruned in (True, False):
            for _ in threads.map(put, [found for found in notes if found.note.pruned is pruned]):
                pass


def tell_pruned(side: Side, notes: Sequence[FoundNote], told: list[FoundNote]) -> dict[str, str]:
    """Put notes that commits are pruned, and what goes with these, but for commits that refs over there name.

    Returns those, with what names each. The refs are looked at before, and again after: a note on what is named by then
    is taken back. `told` are the notes that were put, from one call to the next.
    """
    if not notes:
        return {}
    held = side.held()
    fresh = [found for found in notes if found.commit not in held and found not in told]
    put_notes(side, fresh)
    told += fresh
    side.fs.remote.flush()
    held |= side.held()
    for found in sorted(told, key=lambda found: found.note.pruned):  # as they were put, backwards
        if found.commit in held:
            side.fs.remote.delete(found.path)
            told.remove(found)
    side.fs.remote.flush()
    return {found.commit: held[found.commit] for found in notes if found.commit in held}


def local_notes(fs: FileSystem) -> list[str]:
    """The paths of those that say of a commit that its record alone was fetched; not of damaged ones."""
    found = []
    for path in note_paths(fs):
        with suppress(CorruptObject, FileNotFoundError):
            if read_note(fs, path).note.local:
                found.append(path)
    return found
