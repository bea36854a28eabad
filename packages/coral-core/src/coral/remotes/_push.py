"""push: bring a branch to the other side, with all that it leads to and that is not there.

1. an intent over there names what is relied upon; what of that is gone since is sent as well
2. packs, then notes; nobody over there looks at either yet; the newest weights, where the remote shows them
3. the branch moves, by compare-and-swap, if it still is where a fast-forward can begin; tags after it
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from coral import _json
from coral.delta import DeltaConfig
from coral.errors import Conflict, CoralError, CorruptObject, Diverged, MissingObject
from coral.maintenance import Collector, Progress
from coral.maintenance._inventory import Copy
from coral.objects import Commit
from coral.remotes._graph import Graph, Parts
from coral.remotes._newest import Newest
from coral.remotes._notes import FoundNote, note_paths, read_note
from coral.remotes._sending import damaged_copies, plan_sending
from coral.remotes._side import THREADS, Side
from coral.remotes._transfer import send
from coral.store import Operation, Store, _refs, intent

__all__ = ["Pushed", "push"]

_log = logging.getLogger("coral")

_TRIES = 5


@dataclass(slots=True)
class Pushed:
    """What a push did. Sizes in bytes."""

    remote: str
    branch: str
    commit: str
    commits: int = 0  # that the branch there did not have
    bytes_sent: int = 0  # in packs
    notes: int = 0
    tags: tuple[str, ...] = ()
    refused_tags: tuple[str, ...] = ()  # made by hand over there, at other commits: left as they are
    bytes_freed: int = 0  # of what is pruned
    up_to_date: bool = False  # there was nothing to do

    def __str__(self) -> str:
        if self.up_to_date:
            return f"{self.branch} of {self.remote} is up to date"
        refused = f"; tags that are elsewhere there: {', '.join(self.refused_tags)}" if self.refused_tags else ""
        return (
            f"{self.branch} of {self.remote} is at {self.commit[:12]}: {self.commits} commits, "
            f"{self.bytes_sent:,} bytes, {self.notes} notes, {len(self.tags)} tags{refused}"
        )


@dataclass(slots=True)
class _Work:
    """What a push has found out."""

    ours: Store
    side: Side
    branch: str
    tip: str
    prune: bool
    graph: Graph
    done: Pushed
    history: list[Commit] = field(default_factory=list)  # of the branch, parents first
    mine: set[str] = field(default_factory=set)  # the ids of these
    new: list[Commit] = field(default_factory=list)  # that no ref over there leads to
    notes: list[FoundNote] = field(default_factory=list)  # to send
    states: dict[str, list[str]] = field(default_factory=dict)  # commit -> states that notes name
    pruned: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)  # their tensors were never fetched


def push(
    ours: Store,
    side: Side,
    branch: str,
    tip: str,
    *,
    tags: Mapping[str, _refs.RefEntry],
    prune: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Bring `branch` over there to the commit `tip`, with the `tags` that lie on it, and notes.

    With `prune`, what is pruned here is pruned there, too, and its space is freed. Raises Diverged where the branch has
    commits over there that are not here, and RemoteError; what was sent until then need not be sent again.
    """
    done = Pushed(side.url, branch, tip)
    digest = _digest(ours, tags, prune)
    if _nothing_to_do(side, branch, tip, digest):
        done.up_to_date = True
        return done
    side.make()
    work = _Work(ours, side, branch, tip, prune, Graph.of(ours), done)
    with side.fs.listed("refs"):
        before = side.ref(_refs.folder_of("heads", branch))
        heads, tagged = side.tips("heads"), side.tips("tags")
        head = side.ref(_refs.HEAD) if side.fs.remote.shows else None
    theirs = {entry.value for entry in (*heads.values(), *tagged.values()) if entry.value}
    shown = head.value == f"refs/heads/{branch}" if head else branch == "main" or "main" not in heads
    work.history = work.graph.ancestors([tip])
    work.mine = {commit.id for commit in work.history}
    _check(work, before)
    known = {commit.id for commit in work.graph.ancestors(id for id in theirs if work.graph.has(id))}
    work.new = [commit for commit in work.history if commit.id not in known]
    operation = Operation(side.fs, "push")
    try:
        with intent(ours.fs, "push", [tip]):
            _send(work, operation, progress)
            _send_notes(work)
            if shown:
                _show(work, before)
        entry = _move_branch(work, before)
        done.tags, done.refused_tags = _send_tags(side, {n: e for n, e in tags.items() if e.value in work.mine})
        side.fs.remote.flush()
    finally:
        operation.end()
    if prune:
        _prune(work)
    done.commits = len(work.new)
    done.up_to_date = before == entry and not (done.bytes_sent or done.notes or done.tags or done.bytes_freed)
    side.memory.remember_pushed({"branch": branch, "seq": entry.seq, "nonce": entry.nonce, "tip": tip, "of": digest})
    return done


def _digest(ours: Store, tags: Mapping[str, _refs.RefEntry], prune: bool) -> str:
    """What stands for all that a push sends beside commits."""
    fields = {"notes": sorted(note_paths(ours.fs)), "tags": {n: e.value for n, e in tags.items()}, "prune": prune}
    return hashlib.sha256(_json.dumps(fields)).hexdigest()


def _nothing_to_do(side: Side, branch: str, tip: str, digest: str) -> bool:
    """Whether it is all there, as the last push left it: then its entry is there, and none after it."""
    match side.memory.pushed():
        case {"branch": its, "seq": int(seq), "nonce": str(nonce), "tip": its_tip, "of": of} if (its, its_tip, of) == (
            branch,
            tip,
            digest,
        ) and seq > 0:
            folder = _refs.folder_of("heads", branch)
            with suppress(FileNotFoundError, CorruptObject):
                path = f"{folder}/{seq:010d}"
                if _refs.RefEntry.decode(folder, seq, side.fs.read(path, 1 << 16), path).nonce != nonce:
                    return False
                with suppress(FileNotFoundError):
                    side.fs.read(f"{folder}/{seq + 1:010d}", 1 << 16)
                    return False
                return True
    return False


def _check(work: _Work, before: _refs.RefEntry | None) -> None:
    """Whether the branch over there can be moved to the tip: Diverged if not."""
    if before is None or before.value is None or before.value == work.tip:
        return
    there, name = before.value, f"{work.branch} of {work.side.url}"
    if not work.graph.has(there):
        raise Diverged(
            f"{name} is at {there[:12]}, which is not here: somebody else has pushed. Pull, and push again.",
            ref=work.branch, ours=work.tip, theirs=there,
        )  # fmt: skip
    if there not in work.mine:
        raise Diverged(
            f"{name} is at {there[:12]}, which {work.branch} here does not lead to. Pull or merge, and push again.",
            ref=work.branch, ours=work.tip, theirs=there,
        )  # fmt: skip


# -- packs -------------------------------------------------------------------------------------------------------------


def _send(work: _Work, operation: Operation, progress: Progress | None) -> None:
    """Send what is missing, until nothing of what is relied upon has gone meanwhile.

    Copies here that turn out to be damaged are passed by, where others are whole; CorruptObject where none is.
    """
    ours, side = work.ours, work.side
    side.look()
    _read_notes(work)
    damaged: set[tuple[str, Copy]] = set()
    for left in reversed(range(_TRIES)):
        wanted, order = _wanted(work)
        settled, lost = side.settled(wanted)
        relies = {copy.pack for copy in settled.values()}
        before = list(_before(work, lost))
        settled, _ = side.settled([*wanted, *(entry.id for parts in before for _, entry in parts.tensors())])
        if not lost and not work.new:
            return
        with ours.copies() as copies:
            try:
                plan = plan_sending(
                    ours, copies, settled, before=before, commits=order, lost=set(lost), damaged=damaged
                )
                operation.needs({*relies, *plan.packs})
                side.look()
                if all(map(side.has, relies)):
                    sent = send(ours, side, plan, copies, lambda pack: operation.needs([pack]), progress)
                    work.done.bytes_sent += sent
                    return
            except CorruptObject:
                of = [*wanted, *(entry.id for parts in before for _, entry in parts.tensors())]
                found = damaged_copies(ours, of) - damaged
                if not (left and found):
                    raise
                damaged |= found
    raise Conflict(f"{side.url} is being collected over and over: try again later")


def _wanted(work: _Work) -> tuple[list[str], list[tuple[str | None, Parts | None]]]:
    """All that the new commits and the notes lead to, and that in order: (commit, its parts)."""
    wanted: list[str] = []
    order: list[tuple[str | None, Parts | None]] = []
    new = {commit.id for commit in work.new}
    noted = {note.commit for note in work.notes if note.note.state}
    for commit in work.history:
        if commit.id not in new and commit.id not in noted:
            continue
        wanted.append(commit.id)
        if commit.id in work.absent:
            if not work.side.settled([commit.id, commit.tree])[1]:
                continue
            raise MissingObject(
                f"the tensors of commit {commit.id[:12]} are neither here, in a clone of limited depth, nor at "
                f"{work.side.url}: push to where this was cloned from, or clone it whole"
            )
        if commit.id in work.pruned:
            order.append((commit.id, None))
            continue
        parts = work.graph.parts(commit, work.states.get(commit.id, ()))
        order.append((commit.id, parts))
        wanted += parts.objects()
        wanted += (entry.id for _, entry in parts.tensors())
    return list(dict.fromkeys(wanted)), order


def _before(work: _Work, lost: Sequence[str]) -> Iterable[Parts]:
    """The parts of the commits that the other side has, just before the first one that is sent."""
    if not lost or not work.new:
        return
    new = {commit.id for commit in work.new}
    there = [commit for commit in work.history if commit.id not in new]
    for commit in there[-2 * DeltaConfig().group_size :]:
        if commit.id not in work.pruned | work.absent:
            with suppress(CoralError):  # what cannot be read is nothing to build on
                yield work.graph.parts(commit, work.states.get(commit.id, ()))


# -- notes, refs -------------------------------------------------------------------------------------------------------


def _read_notes(work: _Work) -> None:
    """Which notes are to be sent: that a commit is pruned only if asked, or if its tensors are not there anyway.

    A later state is left out where it is not here and the commit counts as whole over there: its earlier one is there.
    """
    there = {each.name for each in work.side.fs.files("notes")}
    commits = {commit.id: commit for commit in work.history}
    told: set[str] = set()  # commits of which the other side knows, or is about to, that they are pruned
    for path in note_paths(work.ours.fs):
        try:
            found = read_note(work.ours.fs, path)
        except (CorruptObject, FileNotFoundError) as error:
            _log.warning("%s: a note is not sent: %s. Run fsck.", work.ours.fs.root, error)
            continue
        if found.commit not in work.mine:
            continue
        if found.note.local:
            work.absent.add(found.commit)
            continue
        if found.note.state:
            work.states.setdefault(found.commit, []).append(found.note.state)
        held = found.note.pruned and not work.prune and _is_there(work, commits[found.commit])
        if found.note.pruned:
            work.pruned.add(found.commit)
            if path in there or not held:
                told.add(found.commit)
        if path not in there and not held:
            work.notes.append(found)
    without = work.absent | work.pruned - told
    work.notes = [found for found in work.notes if not (found.note.state and found.commit in without)]


def _is_there(work: _Work, commit: Commit) -> bool:
    """Whether a commit's own tree and state are over there: another one may have the same weights."""
    return all(id in work.side.inventory.copies for id in (commit.tree, commit.state) if id)


def _send_notes(work: _Work) -> None:
    def put(found: FoundNote) -> None:
        work.side.fs.remote.put(found.path, memoryview(found.content))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="coral-push") as threads:
        for pruned in (True, False):  # a state that a note names is missed until the commit is known to be pruned
            for _ in threads.map(put, [found for found in work.notes if found.note.pruned is pruned]):
                work.done.notes += 1


def _show(work: _Work, before: _refs.RefEntry | None) -> None:
    """Have the remote show the newest weights as soon as the branch has moved."""
    if before is not None and before.value == work.tip:
        return
    if work.side.fs.remote.shows and work.tip not in work.pruned | work.absent:
        work.side.fs.remote.show(Newest(work.branch, work.graph.commit(work.tip), work.ours))


def _move_branch(work: _Work, before: _refs.RefEntry | None) -> _refs.RefEntry:
    folder = _refs.folder_of("heads", work.branch)
    fs = work.side.fs
    for _ in range(_TRIES):
        if before is not None and before.value == work.tip:
            return before
        try:
            entry = _refs.append(fs, folder, work.tip, after=before, why="push", durable=True)
        except Conflict:
            before = work.side.ref(folder)
            _check(work, before)
            continue
        if work.branch != "main" and before is None and len(_refs.components(fs.list("refs/heads"))) == 1:
            with suppress(Conflict):  # whoever opens it should find what was pushed first
                _refs.append(fs, _refs.HEAD, f"refs/heads/{work.branch}", after=None, why="push", durable=True)
        return entry
    raise Conflict(f"{work.branch} of {work.side.url} is being moved over and over: try again later")


def _send_tags(side: Side, tags: Mapping[str, _refs.RefEntry]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put tags; one that is elsewhere over there is moved only where a run's policy moves it, on both sides."""
    moved, refused = [], []
    with side.fs.listed("refs/tags"):
        there = {name: side.ref(_refs.folder_of("tags", name)) for name in tags}
    for name, ours in tags.items():
        theirs = there[name]
        if theirs is not None and theirs.value == ours.value:
            continue
        if theirs is not None and theirs.value and (theirs.run is None or ours.run is None):
            refused.append(name)
            continue
        try:
            folder = _refs.folder_of("tags", name)
            _refs.append(side.fs, folder, ours.value, after=theirs, why="push", durable=True, run=ours.run)
            moved.append(name)
        except Conflict:
            refused.append(name)
    return tuple(moved), tuple(refused)


def _prune(work: _Work) -> None:
    """Free over there what is pruned here."""
    copies = work.side.inventory.copies
    if not any(commit.tree in copies for commit in work.history if commit.id in work.pruned):
        return
    for _ in range(_TRIES):
        freed = Collector(work.side.store).collect(0.0).bytes_freed
        try:
            work.side.fs.remote.flush()
        except Conflict:
            continue
        work.done.bytes_freed = freed
        return
    raise Conflict(f"{work.side.url} is being written to over and over: what is pruned stays there until the next push")
