"""T2: can T1 fail? Each mutant is coral with one sync, rename or order edge taken out: T1 must find a violation.

Coral cannot see whether a sync took place, so the mutants are made from the trace that T1 works on: the same operations
without some, or in another order. A mutant that changes nothing, since coral does not do what it takes away, has not
been killed either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import power_loss
from memory import Op
from power_loss import Recording
from scenarios import BORN, TIGHT, Branch, Checkout, Commit, Init, Scenario, Tag

INIT = Scenario("init", (), (Init(), Commit(1)))
COMMITS = Scenario("first commits", (Init(),), (Commit(1), Commit(2)))
REFS = Scenario("branch and tag", BORN, (Branch("dev"), Tag("v1"), Checkout("dev")))


class Names:
    """What the inodes of a trace are: the paths that they ever had."""

    def __init__(self, recording: Recording) -> None:
        self.paths: dict[int, set[str]] = {0: {""}}
        self._below(0, "", recording)
        for op in recording.trace:
            if op.kind in {"create", "mkdir", "link", "replace"}:
                for at in list(self.paths[op.folder]):
                    self.paths.setdefault(op.inode, set()).add(f"{at}/{op.name}" if at else op.name)

    def _below(self, inode: int, at: str, recording: Recording) -> None:
        for name, child in recording.start.folders[inode].items():
            path = f"{at}/{name}" if at else name
            self.paths.setdefault(child, set()).add(path)
            if child in recording.start.folders:
                self._below(child, path, recording)

    def has(self, inode: int, start: str) -> bool:
        return any(path.startswith(start) for path in self.paths.get(inode, ()))

    def folder(self, inode: int, path: str) -> bool:
        return path in self.paths.get(inode, ())

    def parent_folder(self, inode: int, path: str) -> bool:
        return any(p.rpartition("/")[0] == path for p in self.paths.get(inode, ()))


Edit = Callable[[list[Op], Names], Iterable[Op]]


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    edit: Edit
    scenarios: tuple[Scenario, ...] = (COMMITS,)


def _drop_fsync(start: str) -> Edit:
    return lambda ops, names: (op for op in ops if not (op.kind == "fsync" and names.has(op.inode, start)))


def _drop_fsync_dir(path: str) -> Edit:
    return lambda ops, names: (op for op in ops if not (op.kind == "fsync_dir" and names.folder(op.folder, path)))


def _drop_fsync_of_folders_in(path: str) -> Edit:
    return lambda ops, names: (
        op for op in ops if not (op.kind == "fsync_dir" and names.parent_folder(op.folder, path))
    )


def _straight_to_its_name(start: str) -> Edit:
    """Files are created under the name that they would be renamed or linked to."""

    def edit(ops: list[Op], names: Names) -> Iterable[Op]:
        final = {
            op.inode: op for op in ops if op.kind in {"replace", "link"} and names.has(op.inode, start) and op.name
        }
        for op in ops:
            if op.inode in final and op.kind == "create":
                yield final[op.inode]._replace(kind="create", source=(-1, ""))
            elif not (op.inode in final and op.kind in {"replace", "link", "unlink"}):
                yield op

    return edit


def _named(start: str, *, after: str) -> Edit:
    """The name is given right after the file's first `after`, whatever still has to be written or synced."""

    def edit(ops: list[Op], names: Names) -> Iterable[Op]:
        final = {op.inode: op for op in ops if op.kind in {"replace", "link"} and names.has(op.inode, start)}
        for op in ops:
            if op.kind == "fsync" and after == "write" and op.inode in final:
                yield final[op.inode]
                yield op
            elif op.kind == after == "create" and op.inode in final:
                yield op
                yield final[op.inode]
            elif not (op.kind in {"replace", "link"} and op.inode in final):
                yield op

    return edit


def _fsync_before_last_write(start: str) -> Edit:
    def edit(ops: list[Op], names: Names) -> Iterable[Op]:
        ops = list(ops)
        for at in [i for i, op in enumerate(ops) if op.kind == "fsync" and names.has(op.inode, start)]:
            write = max(i for i in range(at) if ops[i].kind == "write" and ops[i].inode == ops[at].inode)
            ops.insert(write, ops.pop(at))
        return ops

    return edit


def _ref_before_pack(ops: list[Op], names: Names) -> Iterable[Op]:
    """In each step, all that has to do with refs comes first and the pack after it."""
    late: list[Op] = []
    for op in ops:
        if op.kind == "mark":
            yield from late
            late = []
        elif names.has(op.inode, "packs/") or names.folder(op.folder, "packs"):
            late.append(op)
            continue
        yield op


def _last_sync_of_packs_late(ops: list[Op], names: Names) -> Iterable[Op]:
    late: list[Op] = []
    for op in ops:
        if op.kind == "mark":
            yield from late
            late = []
        if op.kind == "fsync_dir" and names.folder(op.folder, "packs"):
            late.append(op)
        else:
            yield op


def _early_ack(ops: list[Op], names: Names) -> Iterable[Op]:
    """Each step is acknowledged before its last fsync of a folder."""
    out: list[Op] = []
    for op in ops:
        out.append(op)
        if op.kind == "mark":
            syncs = [i for i, o in enumerate(out) if o.kind == "fsync_dir"]
            if syncs and not any(o.kind == "mark" for o in out[syncs[-1] : -1]):
                out.insert(syncs[-1], out.pop())
    return out


def _segments_not_synced(ops: list[Op], names: Names) -> Iterable[Op]:
    return (op for op in ops if not (op.kind == "fsync" and any(p.endswith(".log") for p in names.paths[op.inode])))


def _entries_removed_before_their_segment_is_there(ops: list[Op], names: Names) -> Iterable[Op]:
    folded = -1
    for op in ops:
        if op.kind == "link" and op.name.endswith(".log"):
            folded = op.folder
        elif op.kind == "fsync_dir" and op.folder == folded:
            folded = -1
            continue
        yield op


MUTANTS = (
    Mutant("no fsync of packs", _drop_fsync("packs/")),
    Mutant("no fsync of the packs folder", _drop_fsync_dir("packs")),
    Mutant("no fsync of branch entries", _drop_fsync("refs/heads/")),
    Mutant("no fsync of branch folders", _drop_fsync_of_folders_in("refs/heads")),
    Mutant("no fsync of a new branch's parent folder", _drop_fsync_dir("refs/heads")),
    Mutant("no fsync of tag entries", _drop_fsync("refs/tags/"), (REFS,)),
    Mutant("no fsync of tag folders", _drop_fsync_of_folders_in("refs/tags"), (REFS,)),
    Mutant("no fsync of a new tag's parent folder", _drop_fsync_dir("refs/tags"), (REFS,)),
    Mutant("no fsync of HEAD entries", _drop_fsync("refs/HEAD/"), (REFS,)),
    Mutant("no fsync of the HEAD folder", _drop_fsync_dir("refs/HEAD"), (REFS,)),
    Mutant("no fsync of the format file", _drop_fsync("format"), (INIT,)),
    Mutant("no fsync of the root folder", _drop_fsync_dir(""), (INIT,)),
    Mutant("no fsync of the refs folder", _drop_fsync_dir("refs"), (INIT,)),
    Mutant("packs written straight to their names", _straight_to_its_name("packs/")),
    Mutant("branch entries written straight to their names", _straight_to_its_name("refs/heads/")),
    Mutant("tag entries written straight to their names", _straight_to_its_name("refs/tags/"), (REFS,)),
    Mutant("format written straight to its name", _straight_to_its_name("format"), (INIT,)),
    Mutant("packs renamed before they are written", _named("packs/", after="create")),
    Mutant("packs renamed before they are synced", _named("packs/", after="write")),
    Mutant("branch entries linked before they are synced", _named("refs/heads/", after="write")),
    Mutant("packs synced before the last write", _fsync_before_last_write("packs/")),
    Mutant("branch entries synced before they are written", _fsync_before_last_write("refs/heads/")),
    Mutant("refs moved before the pack is written", _ref_before_pack),
    Mutant("packs folder synced after the ref moved", _last_sync_of_packs_late),
    Mutant("acknowledged before the last sync", _early_ack),
    Mutant("no fsync of folded entries", _segments_not_synced, TIGHT),
    Mutant("entries removed before the folded ones are there", _entries_removed_before_their_segment_is_there, TIGHT),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a mutant fared: `killed` says by which violation, '' if it survived, `cases` how many states that took."""

    name: str
    killed: str
    cases: int
    seconds: float


def run(name: str, *, cap: int = 40, seed: int = 0) -> Verdict:
    """Run T1 on the mutant of a name until it finds a violation."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    began, cases, applied = time.perf_counter(), 0, False

    def edit(recording: Recording) -> list[Op]:
        nonlocal applied
        edited = list(mutant.edit(list(recording.trace), Names(recording)))
        applied = applied or edited != list(recording.trace)
        return edited

    for scenario in mutant.scenarios:
        tally = power_loss.run(scenario, cap=cap, seed=seed, edit=edit, stop=1)
        cases += tally.cases
        if tally.violations:
            assert applied, f"T1 fails without a mutant: {tally.violations[0]}"
            return Verdict(name, tally.violations[0], cases, time.perf_counter() - began)
    return Verdict(name if applied else f"{name} (changed nothing)", "", cases, time.perf_counter() - began)
