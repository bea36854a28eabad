"""push: bring a branch to the other side, with all that it leads to and that is not there.

1. an intent over there names what is relied upon; what of that is gone since is sent as well
2. packs, then notes; nobody over there looks at either yet; the newest weights, where the remote shows them
3. the branch moves, by compare-and-swap, if it still is where a fast-forward can begin; tags after it
4. what is to be pruned there is, but for what refs over there still name
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from coral import _json
from coral.delta import DeltaConfig
from coral.errors import CommitPruned, Conflict, CoralError, CorruptObject, Diverged, MissingObject
from coral.maintenance import Collector, Progress
from coral.maintenance._inventory import Copy
from coral.objects import Commit
from coral.remotes._graph import Graph, Parts
from coral.remotes._newest import Newest
from coral.remotes._notes import FoundNote, Notes, note_paths, put_notes, sort_notes, tell_pruned
from coral.remotes._sending import Lost, damaged_copies, find_lost, plan_sending
from coral.remotes._side import Side
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
    refused_tags: tuple[str, ...] = ()  # made by hand over there, at other commits, or of what is pruned there: not put
    bytes_freed: int = 0  # of what is pruned
    kept_back: Mapping[str, str] = field(default_factory=dict)  # commits that are not pruned there, and what holds them
    unmended: tuple[str, ...] = ()  # that have lost something there; without `repair`, whose records are gone
    up_to_date: bool = False  # nothing was done

    def __str__(self) -> str:
        done = (
            f"at {self.commit[:12]}: {self.commits} commits, {self.bytes_sent:,} bytes, {self.notes} notes, "
            f"{len(self.tags)} tags"
        )
        said = [f"{self.branch} of {self.remote} is {'up to date' if self.up_to_date else done}"]
        if self.refused_tags:
            said.append(f"tags that are elsewhere there, or of what is pruned there: {', '.join(self.refused_tags)}")
        said += [f"kept there: {commit[:12]}, which {holder} holds" for commit, holder in self.kept_back.items()]
        if self.unmended:
            said.append(
                f"{len(self.unmended)} commits have lost something there, as {self.unmended[0][:12]}: "
                "push(repair=True) from where they are whole"
            )
        return "; ".join(said)


@dataclass(slots=True)
class _Work:
    """What a push has found out."""

    ours: Store
    side: Side
    branch: str
    tip: str
    graph: Graph
    done: Pushed
    notes: Notes = field(default_factory=Notes)
    history: list[Commit] = field(default_factory=list)  # of the branch, parents first
    mine: set[str] = field(default_factory=set)  # the ids of these
    new: list[Commit] = field(default_factory=list)  # that no ref over there leads to
    known: list[Commit] = field(default_factory=list)  # that refs over there lead to, and that are here
    lost: Lost = field(default_factory=Lost)


def push(
    ours: Store,
    side: Side,
    branch: str,
    tip: str,
    *,
    tags: Mapping[str, _refs.RefEntry],
    prune: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Bring `branch` over there to the commit `tip`, with the `tags` that lie on it, and notes.

    With `prune`, what is pruned here is pruned there, too, and its space is freed, but for what refs over there name;
    with `repair`, what all refs over there lead to and that was lost is sent as well. Raises Diverged where the branch
    has commits over there that are not here, CommitPruned where the tip is pruned there and whole here, and
    RemoteError; what was sent until then need not be sent again.
    """
    done = Pushed(side.url, branch, tip)
    digest = _digest(ours, tags, prune)
    if not repair and _nothing_to_do(side, branch, tip, digest):
        done.up_to_date = True
        return done
    side.make()
    work = _Work(ours, side, branch, tip, Graph.of(ours), done)
    with side.fs.listed("refs"):
        before = side.ref(_refs.folder_of("heads", branch))
        heads, tagged = side.tips("heads"), side.tips("tags")
        head = side.ref(_refs.HEAD) if side.fs.remote.shows else None
    theirs = {entry.value for entry in (*heads.values(), *tagged.values()) if entry.value}
    shown = head.value == f"refs/heads/{branch}" if head else branch == "main" or "main" not in heads
    work.history = work.graph.ancestors([tip])
    work.mine = {commit.id for commit in work.history}
    _check(work, before)
    work.known = work.graph.ancestors(id for id in theirs if work.graph.has(id))
    known = {commit.id for commit in work.known}
    work.new = [commit for commit in work.history if commit.id not in known]
    operation = Operation(side.fs, "push")
    try:
        with intent(ours.fs, "push", [tip]):
            side.look()
            looked = [*work.known, *work.new] if repair else work.history
            work.notes = sort_notes(ours, side, looked, mine=work.mine, new=work.new, prune=prune)
            _check_tip(work)
            if repair:
                work.lost = find_lost(ours, side, _parts_known(work), lambda ids: work.notes.pruned_there(side, ids))
                done.unmended = work.lost.unmended
            else:
                done.unmended = tuple(commit.id for commit in work.known if commit.id not in side.inventory.copies)
            _send(work, operation, progress)
            put_notes(side, work.notes.now)
            done.notes = len(work.notes.now)
            if shown:
                _show(work, before)
        entry = _move_branch(work, before)
        done.tags, done.refused_tags = _send_tags(work, {n: e for n, e in tags.items() if e.value in work.mine})
        side.fs.remote.flush()
    finally:
        operation.end()
    if prune:
        _prune(work)
    done.commits = len(work.new)
    done.up_to_date = before == entry and not (done.bytes_sent or done.notes or done.tags or done.bytes_freed)
    if not (done.refused_tags or done.kept_back or done.unmended):
        fields = {"branch": branch, "seq": entry.seq, "nonce": entry.nonce, "tip": tip, "of": digest}
        side.memory.remember_pushed(fields)
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


def _check_tip(work: _Work) -> None:
    """Whether the branch may come to the tip: CommitPruned where its tensors are here, and cannot be there."""
    if work.tip not in work.notes.without and work.notes.pruned_there(work.side, [work.tip]):
        raise CommitPruned(
            f"{work.branch} is at {work.tip[:12]}, which is pruned at {work.side.url}, and that is for good. Commit "
            "its weights once more, and push that.",
            ref=work.branch,
        )


# -- packs -------------------------------------------------------------------------------------------------------------


def _send(work: _Work, operation: Operation, progress: Progress | None) -> None:
    """Send what is missing, until nothing of what is relied upon has gone meanwhile.

    Copies here that turn out to be damaged are passed by, where others are whole; CorruptObject where none is.
    """
    ours, side = work.ours, work.side
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
    """All that the new commits and the notes lead to, what is lost, and that in order: (commit, its parts)."""
    wanted = sorted(work.lost.ids)
    order: list[tuple[str | None, Parts | None]] = []
    new = {commit.id for commit in work.new}
    noted = {note.commit for note in work.notes.now if note.note.state}
    for commit in [*work.known, *work.new]:
        if commit.id not in new and commit.id not in noted:
            if commit.id in work.lost.commits:
                order.append((commit.id, work.lost.commits[commit.id]))
            continue
        wanted.append(commit.id)
        if commit.id in work.notes.absent:
            if not work.side.settled([commit.id, commit.tree])[1]:
                continue
            raise MissingObject(
                f"the tensors of commit {commit.id[:12]} are neither here, in a clone of limited depth, nor at "
                f"{work.side.url}: push to where this was cloned from, or clone it whole"
            )
        if commit.id in work.notes.pruned:
            order.append((commit.id, None))
            continue
        parts = work.graph.parts(commit, work.notes.states.get(commit.id, ()))
        order.append((commit.id, parts))
        wanted += parts.objects()
        wanted += (entry.id for _, entry in parts.tensors())
    return list(dict.fromkeys(wanted)), order


def _parts_known(work: _Work) -> Iterator[tuple[Commit, Parts | None]]:
    """The commits that refs over there lead to, and what they are made of where that is here."""
    for commit in work.known:
        parts = None
        if commit.id not in work.notes.without:
            with suppress(CorruptObject):
                parts = work.graph.parts(commit, work.notes.states.get(commit.id, ()))
        yield commit, parts


def _before(work: _Work, lost: Sequence[str]) -> Iterable[Parts]:
    """The parts of the commits that the other side has, just before the first one that is sent."""
    if not lost or not work.new:
        return
    new = {commit.id for commit in work.new}
    there = [commit for commit in work.history if commit.id not in new]
    for commit in there[-2 * DeltaConfig().group_size :]:
        if commit.id not in work.notes.without:
            with suppress(CoralError):  # what cannot be read is nothing to build on
                yield work.graph.parts(commit, work.notes.states.get(commit.id, ()))


# -- notes, refs -------------------------------------------------------------------------------------------------------


def _show(work: _Work, before: _refs.RefEntry | None) -> None:
    """Have the remote show the newest weights as soon as the branch has moved."""
    if before is not None and before.value == work.tip:
        return
    if work.side.fs.remote.shows and work.tip not in work.notes.without:
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


def _send_tags(work: _Work, tags: Mapping[str, _refs.RefEntry]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put tags; one that is elsewhere over there is moved only where a run's policy moves it, on both sides.

    One of a commit that is whole here, and pruned over there, is not put.
    """
    side, moved, refused = work.side, list[str](), list[str]()
    with side.fs.listed("refs/tags"):
        there = {name: side.ref(_refs.folder_of("tags", name)) for name in tags}
    wanted = {name: ours for name, ours in tags.items() if (its := there[name]) is None or its.value != ours.value}
    gone = work.notes.pruned_there(side, {e.value for e in wanted.values() if e.value} - work.notes.without)
    for name, ours in wanted.items():
        theirs = there[name]
        if ours.value in gone or (theirs and theirs.value and (theirs.run is None or ours.run is None)):
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
    """Say over there what is pruned here, and free it, but for what refs over there name."""
    side, done, told = work.side, work.done, list[FoundNote]()
    for _ in range(_TRIES):
        done.kept_back = tell_pruned(side, work.notes.later, told)
        done.notes = len(work.notes.now) + len(told)
        gone = work.notes.pruned - done.kept_back.keys()
        if not any(commit.tree in side.inventory.copies for commit in work.history if commit.id in gone):
            return
        freed = Collector(side.store).collect(0.0).bytes_freed
        try:
            side.fs.remote.flush()
        except Conflict:
            continue
        done.bytes_freed = freed
        return
    raise Conflict(f"{side.url} is being written to over and over: what is pruned stays there until the next push")
