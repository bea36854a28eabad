"""fetch: bring branches, tags and notes here, with all that they lead to and that is not here.

Everything is compared with its SHA-256, for which differences are decoded, before its pack gets a name. Tensors come
first, then the objects that name them, then notes; refs move last.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from coral.errors import CorruptObject, MissingObject, WeightsMismatch
from coral.maintenance import Progress
from coral.maintenance._inventory import Copy, Inventory, settle
from coral.objects import Commit, Note, State, TensorEntry
from coral.remotes._graph import Graph, Parts, check_tensor
from coral.remotes._notes import FoundNote, commit_of, note_paths, note_there, read_note
from coral.remotes._objects import RemoteObjects
from coral.remotes._receiving import receive
from coral.remotes._side import Side, each_at_once
from coral.store import Operation, Store, _refs
from coral.store._files import make_folder, put_if_absent

__all__ = ["Fetched", "fetch"]

_TRIES = 5


@dataclass(slots=True)
class Fetched:
    """What a fetch did: the branches of the remote with their commits, and which of them moved. Sizes in bytes."""

    remote: str
    branches: dict[str, str] = field(default_factory=dict)
    moved: tuple[str, ...] = ()
    head: str = "main"  # the branch that the remote's HEAD is on
    commits: int = 0  # that were not here
    bytes_received: int = 0  # of packs
    notes: int = 0
    tags: tuple[str, ...] = ()
    refused_tags: tuple[str, ...] = ()  # made by hand here, at other commits: left as they are

    def __str__(self) -> str:
        return (
            f"{self.remote}: {len(self.moved)} of {len(self.branches)} branches moved, {self.commits} commits, "
            f"{self.bytes_received:,} bytes, {self.notes} notes, {len(self.tags)} tags"
        )


@dataclass(slots=True)
class _Work:
    """What a fetch has found out."""

    ours: Store
    side: Side
    here: Graph
    there: Graph
    objects: RemoteObjects
    names: frozenset[str] | None
    new: list[Commit] = field(default_factory=list)  # that no ref here leads to, parents first
    notes: dict[str, list[FoundNote]] = field(default_factory=dict)  # of these and of older ones, that are not here
    stateless: list[FoundNote] = field(default_factory=list)  # that are here, and whose states are nowhere any more
    records: set[str] = field(default_factory=set)  # commits of which the record alone is fetched: older than `depth`

    def pruned(self, commit: str) -> bool:
        return any(found.note.pruned for found in self.notes.get(commit, ()))


def fetch(
    ours: Store,
    side: Side,
    operation: Operation,
    *,
    depth: int | None = None,
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Fetched, dict[str, _refs.RefEntry], dict[str, _refs.RefEntry]]:
    """Bring everything here that the refs over there lead to; what was done, and the branches and tags found there.

    The caller moves refs to these while `operation`, an intent here, holds what came. Of commits that are not here and
    `depth` commits or more behind a tip the records alone come; of all others, with `names`, only these weights.
    """
    side.check()
    with side.fs.listed("refs"):
        heads, tags = side.tips("heads"), side.tips("tags")
        head = side.ref(_refs.HEAD)
    done = Fetched(side.url, {name: entry.value or "" for name, entry in heads.items()})
    if head is not None and head.value is not None and head.value.startswith("refs/heads/"):
        done.head = _refs.check_ref_name(head.value.removeprefix("refs/heads/"))
    objects = RemoteObjects(ours, side)
    work = _Work(ours, side, Graph.of(ours), Graph(objects.read), objects, None if names is None else frozenset(names))
    tips = list(dict.fromkeys(entry.value for entry in (*heads.values(), *tags.values()) if entry.value))
    known = _known(ours, work.here)
    if not set(tips) <= known:
        side.look()
        objects.load("commit")
    work.new = work.there.ancestors(tips, known)
    _read_notes(work, known)
    if depth is not None:
        near = _near(work.there, done.branches.values(), depth, known)
        work.records = {commit.id for commit in work.new} - near
    if work.new or any(found.note.state for notes in work.notes.values() for found in notes):
        side.look()
        done.bytes_received = _receive(work, operation, progress)
    done.commits = len(work.new)
    done.notes = _write_notes(work)
    return done, heads, tags


def _known(ours: Store, here: Graph) -> set[str]:
    """The commits that refs here lead to: what they need is here."""
    tips = []
    for kind in ours.fs.list("refs"):
        for component in ours.fs.list(f"refs/{kind}") if kind != "HEAD" else ():
            entry = _refs.read(ours.fs, f"refs/{kind}/{component}")
            if entry is not None and entry.value:
                tips.append(entry.value)
    return {commit.id for commit in here.ancestors(tips)}


def _near(there: Graph, tips: Iterable[str], depth: int, known: set[str]) -> set[str]:
    """The commits that are fewer than `depth` steps behind a tip."""
    near: set[str] = set()
    level = set(tips)
    for _ in range(depth):
        if not level:
            break
        near |= level
        level = {parent for id in level if id not in known for parent in there.commit(id).parents} - near
    return near


def _read_notes(work: _Work, known: set[str]) -> None:
    """Fetch the notes that are not here, on commits that are, or are about to be. A damaged one is warned of.

    On commits that no ref here leads to yet all are read: what notes that are here name may have been collected.
    """
    new = {commit.id for commit in work.new}
    mine = set(note_paths(work.ours.fs))
    there = [each.name for each in work.side.fs.files("notes")]
    paths = [path for path in there if commit_of(path) in new or (path not in mine and commit_of(path) in known)]
    for found in each_at_once(lambda path: note_there(work.side, path), paths):
        if found is not None and not found.note.local:
            work.notes.setdefault(found.commit, []).append(found)
    for path in sorted(mine.difference(there)):
        if commit_of(path) in new:
            _take_own(work, path)
    for commit in known & work.notes.keys():  # what is pruned there stays here, until it is pruned here
        if work.pruned(commit):  # and its later states are gone there
            notes = work.notes[commit]
            work.notes[commit] = [found for found in notes if not found.note.pruned and not found.note.state]


def _take_own(work: _Work, path: str) -> None:
    """Take in a note that this side alone has, without its state where that is gone."""
    with suppress(CorruptObject, FileNotFoundError):
        found = read_note(work.ours.fs, path)
        if found.note.local:
            return
        if found.note.state and not _is_here(work.ours, found.note.state):
            work.stateless.append(found)
            found = replace(found, note=replace(found.note, state=None))
        work.notes.setdefault(found.commit, []).append(found)


def _is_here(ours: Store, state: str) -> bool:
    try:
        tensors = State.decode(ours.read_object("state", state), f"state {state[:12]}").tensors
    except MissingObject:
        return False
    here = Inventory(ours)
    here.refresh()
    return not settle(here, [state, *(entry.id for entry in tensors.values())], frozenset())[1]


def _receive(work: _Work, operation: Operation, progress: Progress | None) -> int:
    """Bring here what the new commits, and notes, lead to."""
    ours, received = work.ours, 0
    tensors, objects = _wanted(work)
    _check_names(work)
    for _ in range(_TRIES):
        here = Inventory(ours)
        here.refresh()
        present, _lost = settle(here, [*tensors, *objects], frozenset())
        operation.needs({copy.pack for copy in present.values()})
        here.refresh()
        present, lost = settle(here, [*tensors, *objects], frozenset())
        if not lost:
            return received
        received += _receive_lost(work, operation, here, tensors, lost, progress)
    raise MissingObject(f"what {work.side.url} leads to is not there, or does not stay here: try again")


def _receive_lost(
    work: _Work,
    operation: Operation,
    here: Inventory,
    tensors: dict[str, TensorEntry],
    lost: list[str],
    progress: Progress | None,
) -> int:
    both = Inventory(work.side.store)
    both.copies = dict(work.side.inventory.copies)
    mine, _ = settle(here, list(here.copies), frozenset())
    both.copies |= {id: [Copy("", 0, 0, None, 0, copy.nbytes)] for id, copy in mine.items()}
    settled, missing = settle(both, lost, frozenset())
    if missing:
        raise MissingObject(
            f"{work.side.url} lacks {len(missing)} objects that its refs lead to, as {missing[0][:12]}: run fsck "
            "there, or push(repair=True) to it from where they are"
        )
    coming = {id: copy for id, copy in settled.items() if copy.pack}
    for id, copy in coming.items():
        if id in tensors:
            entry = work.objects.entry(copy)
            check_tensor(tensors[id], entry.dtype, entry.shape)
    return receive(work.ours, work.side, operation, coming, work.objects, progress)


def _wanted(work: _Work) -> tuple[dict[str, TensorEntry], list[str]]:
    """The tensors that are needed here, and the objects."""
    states = {commit: [found.note.state for found in notes if found.note.state] for commit, notes in work.notes.items()}
    whole = [commit for commit in work.new if commit.id not in work.records and not work.pruned(commit.id)]
    work.objects.load("tree", [commit.tree for commit in whole])
    later = [state for some in states.values() for state in some]
    work.objects.load("state", [*(commit.state for commit in whole if commit.state), *later])
    tensors: dict[str, TensorEntry] = {}
    objects = [commit.id for commit in work.new]
    for commit in whole:
        parts = work.there.parts(commit, states.get(commit.id, ()), trees_only=work.names is not None)
        _take(work, parts, tensors, objects)
    new = {commit.id for commit in work.new}
    for id, some in states.items():  # older commits, with later states
        if id in new or not some or any(note.pruned for note in work.ours.read_notes(id)):
            continue
        parts = work.there.parts(replace(work.here.commit(id), state=None), some, trees_only=work.names is not None)
        _take(work, replace(parts, weights={}, tree=some[0]), tensors, objects)
    return tensors, list(dict.fromkeys(objects))


def _take(work: _Work, parts: Parts, tensors: dict[str, TensorEntry], objects: list[str]) -> None:
    objects += parts.objects()
    for name, entry in parts.tensors():
        if work.names is None or name.removeprefix("weights/") in work.names:
            tensors[entry.id] = entry


def _check_names(work: _Work) -> None:
    if work.names is None or not work.new:
        return
    known: set[str] = set()
    for commit in work.new:
        if commit.id not in work.records and not work.pruned(commit.id):
            known |= work.there.parts(commit, trees_only=True).weights.keys()
    if missing := sorted(work.names - known):
        raise WeightsMismatch(missing=missing)


def _write_notes(work: _Work) -> int:
    """Put the notes that came, and say of commits whose records alone came that this is all there is here."""
    fs, count = work.ours.fs, 0
    for commit, notes in work.notes.items():
        make_folder(fs, f"notes/{commit}", durable=True)
        for found in notes:
            count += put_if_absent(fs, found.path, found.content, durable=True)
    for found in work.stateless:
        work.ours.add_note(found.commit, replace(found.note, state=None))
        with suppress(FileNotFoundError):  # another fetch
            fs.unlink(found.path)
        fs.fsync_dir(f"notes/{found.commit}")
    for commit in work.records:
        if not work.pruned(commit):
            work.ours.add_note(commit, Note(pruned=True, local=True, time=fs.now()))
    return count
