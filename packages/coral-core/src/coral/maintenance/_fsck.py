"""fsck: read every byte, check it by every sum there is, and say what a damage touches."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from coral._digest import pool
from coral.errors import CoralError, CorruptObject
from coral.maintenance._lost import Lost
from coral.maintenance._report import FsckReport, Problem
from coral.maintenance._scrubbing import unreadable_in
from coral.objects import Note, State, Tree, decode_commit, decode_tree, is_id
from coral.store import Copies, Store, Stored, _notes, _refs
from coral.store._files import LIMIT, unseal
from coral.store._format import check_format
from coral.store._index import describes, read_segment, rows_of
from coral.store._pack import Entry, directory_of, read_object
from coral.store._partial import made_here, partial_names

__all__ = ["Examined", "Found", "examine", "fsck"]

_GROUP, _GROUP_BYTES = 64, 8 << 20  # packs, and bytes, that a thread checks at a time
_DERIVED = ". It is derived: remove it, and it is made anew"
_LOOKS = 5  # for what others may be moving about
_NAMED = 8  # trees that are asked what they call something that is lost


@dataclass(frozen=True, slots=True)
class _Record:
    """What a commit needs, from the commit itself."""

    parents: tuple[str, ...]
    tree: str
    state: str | None


@dataclass(slots=True)
class Found:
    """What the packs hold that is whole. Tensors are numbered, so that many trees take little memory."""

    numbers: dict[str, int] = field(default_factory=dict)
    tensors: set[int] = field(default_factory=set)
    needs: dict[str, array[int]] = field(default_factory=dict)  # tree or state id -> numbers of its tensors
    commits: dict[str, _Record] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
    names: frozenset[str] | None = None  # the weights that are held of what was fetched, if not all of it
    held: dict[str, array[int]] = field(default_factory=dict)  # tree id -> numbers of these
    later: dict[str, set[str]] = field(default_factory=dict)  # commit -> states that notes put in its state's place

    def number(self, tensor: str) -> int:
        return self.numbers.setdefault(tensor, len(self.numbers))

    def take(self, entry: Entry, payload: bytes | None) -> None:
        """Note an entry that was checked."""
        what = f"{entry.kind} {entry.id[:12]}"
        tensors: Tree
        match entry.kind:
            case "tensor":
                self.tensors.add(self.number(entry.id))
                return
            case "commit":
                commit = decode_commit(payload or b"", entry.id)
                self.commits[entry.id] = _Record(commit.parents, commit.tree, commit.state)
                return
            case "tree":
                tensors = decode_tree(payload or b"", what)
                if self.names is not None:
                    held = [tensor.id for name, tensor in tensors.items() if name in self.names]
                    self.held[entry.id] = array("L", map(self.number, held))
            case _:
                tensors = State.decode(payload or b"", what).tensors
        self.needs[entry.id] = array("L", (self.number(tensor.id) for tensor in tensors.values()))

    def has(self, id: str) -> bool:
        """Whether some pack holds it whole."""
        number = self.numbers.get(id)
        return id in self.commits or id in self.needs or (number is not None and number in self.tensors)


@dataclass(frozen=True, slots=True)
class Examined:
    """What fsck found, and what is whole."""

    report: FsckReport
    found: Found


def fsck(store: Store) -> FsckReport:
    """Check a whole repository. Damage is reported, never raised; only the filesystem's own refusals are."""
    return examine(store).report


def examine(store: Store) -> Examined:
    """Check a whole repository, as `fsck` does."""
    report, found, seen = FsckReport(), Found(names=_names(store)), dict[str, NDArray[Any] | None]()
    lost: list[Problem] = []
    # what refs and notes name is looked at before the packs: what is committed meanwhile is not missed then
    named = list(_check_refs(store))
    tips = _tips(store)
    noted = list(_take_notes(store, found))
    files, strays = _list_packs(store)
    report.problems += [*strays, *_check_small(store)]
    for _ in range(_LOOKS):
        _check_packs(store, files, report, found, seen)
        found.pruned |= _pruned(store)  # what was pruned meanwhile may have gone
        lost = _check_reachable(store, report, found, tips)
        if not lost:
            break
        # it may have been moved since packs were listed, or have gone with the ref that led to it
        before, tips = tips, _tips(store)
        files = [path for path in _list_packs(store)[0] if _name_of(path) not in seen]
        if not files and tips == before:
            break
    # what has been collected by now is no damage: the base of a difference may have gone just before it
    gone = {name for name in {_name_of(p.path) for p in report.problems} & seen.keys() if _is_gone(store, name)}
    report.problems = [problem for problem in report.problems if _name_of(problem.path) not in gone]
    report.packs, report.tensors, report.commits = len(seen), len(found.tensors), len(found.commits)
    report.problems += _check_index(store, {name: rows for name, rows in seen.items() if rows is not None})
    report.problems += [*named, *noted, *lost]
    _find_dangling(store, report, found, tips)
    _check_head(store, report, found)
    return Examined(report, found)


def _names(store: Store) -> frozenset[str] | None:
    try:
        return partial_names(store.fs)
    except CorruptObject:  # which are held is not known
        return frozenset()


def _list_packs(store: Store) -> tuple[list[str], list[Problem]]:
    """The packs, those in the trash too, and what else is where they are."""
    files, strays = [], []
    for folder in ("packs", *(f"trash/{name}" for name in store.fs.list("trash"))):
        for file in sorted(store.fs.list(folder)):
            if is_id(file.removesuffix(".pack")) and file.endswith(".pack"):
                files.append(f"{folder}/{file}")
            else:
                strays.append(Problem(f"{folder}/{file}", "is not a pack"))
    return files, strays


def _check_packs(
    store: Store, files: list[str], report: FsckReport, found: Found, seen: dict[str, NDArray[Any] | None]
) -> None:
    """Check packs; `seen` is to have what an index has to say of each that was there."""
    groups = pool().map(lambda group: [(path, _check_pack(store, path)) for path in group], _groups(store, files))
    for path, checked in chain.from_iterable(groups):
        if checked is None:
            continue
        entries, problems, said = checked
        name = _name_of(path)  # one that is being collected may have two names
        seen[name] = seen.get(name) if said is None else said
        report.problems += problems
        for entry, payload in entries:
            try:
                found.take(entry, payload)
                report.bytes_checked += entry.size
            except CoralError as error:
                report.problems.append(Problem(path, str(error), object=entry.id))


def _check_small(store: Store) -> Iterator[Problem]:
    """What is wrong with the small files that stand by themselves."""
    try:
        check_format(store.fs)
    except (CoralError, FileNotFoundError) as error:
        yield Problem("format", str(error))
    try:
        partial_names(store.fs)
    except CorruptObject as error:
        yield Problem("partial", str(error))
    paths = [f"remotes/{name}/remote" for name in store.fs.list("remotes")]
    for path in [*paths, *(f"pushes/{name}" for name in store.fs.list("pushes"))]:
        try:
            unseal(store.fs.read(path, LIMIT), path)
        except CorruptObject as error:
            yield Problem(path, str(error))
        except (FileNotFoundError, NotADirectoryError):
            pass  # removed; its folder stays


def _groups(store: Store, paths: list[str]) -> Iterator[list[str]]:
    """Packs for one thread at a time: a large one, or many small ones, between which handing over would cost more."""
    group: list[str] = []
    size = 0
    for path in paths:
        group.append(path)
        with suppress(OSError):
            size += store.fs.stat(path).size
        if size >= _GROUP_BYTES or len(group) >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


_Checked = tuple[list[tuple[Entry, bytes | None]], list[Problem], NDArray[Any] | None]
"""What is whole in a pack, what is damaged, and what an index has to say of it, where its directory is whole."""


def _check_pack(store: Store, path: str) -> _Checked | None:
    """Check all that is in a pack; None if it has been collected since it was listed."""
    good: list[tuple[Entry, bytes | None]] = []
    problems = []
    name, rows = _name_of(path), None
    try:
        try:
            file = store.fs.open(path)
        except FileNotFoundError:
            file = store.open_pack(name)  # it was moved since it was listed
    except FileNotFoundError:
        return None
    except (PermissionError, CorruptObject) as error:
        return good, [Problem(path, f"cannot be opened: {error}")], None
    copies = Copies(store)
    try:
        directory = directory_of(file, name)
        rows = rows_of(directory)
        for number in range(len(directory)):
            try:
                entry = directory.checked(number)
                if entry.kind == "tensor":
                    copies.verify(Stored(directory, file, entry), again=True)
                    good.append((entry, None))
                else:
                    good.append((entry, read_object(file, entry)))
            except (CoralError, EOFError, PermissionError) as error:
                problems.append(Problem(path, str(error), object=directory.ids[number]))
    except (CoralError, EOFError, PermissionError) as error:
        problems.append(Problem(path, str(error)))
    finally:
        file.close()
        copies.close()
    return good, problems, rows


def _is_gone(store: Store, name: str) -> bool:
    with suppress(CorruptObject, OSError):
        try:
            store.open_pack(name).close()
        except FileNotFoundError:
            return True
    return False


def _name_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".pack")


def _check_index(store: Store, whole: Mapping[str, NDArray[Any]]) -> Iterator[Problem]:
    for name in store.fs.list("index"):
        path = f"index/{name}"
        try:
            for pack, rows in read_segment(store.fs, name).by_pack():
                if pack in whole and not describes(rows, whole[pack]):  # else it is gone, or named by itself
                    yield Problem(path, f"does not say what the pack {pack[:12]} holds{_DERIVED}")
                    break
        except CorruptObject as error:
            yield Problem(path, f"{error}{_DERIVED}")
        except FileNotFoundError:
            pass  # merged since it was listed


def _ref_folders(store: Store) -> Iterator[str]:
    for kind in store.fs.list("refs"):
        if kind != "HEAD":
            yield from (f"refs/{kind}/{component}" for component in store.fs.list(f"refs/{kind}"))


def _tips(store: Store) -> list[tuple[str, str]]:
    """The commits that refs name, each as (commit, folder of the ref)."""
    found = []
    for folder in _ref_folders(store):
        with suppress(CorruptObject):
            newest = _refs.read(store.fs, folder)
            if newest is not None and newest.value is not None:
                found.append((newest.value, folder))
    return found


def _check_refs(store: Store) -> Iterator[Problem]:
    """What is wrong with HEAD, and with each ref by itself."""
    for folder in (_refs.HEAD, *_ref_folders(store)):
        newer: _refs.RefEntry | None = None
        for entry in _refs.history(store.fs, folder):
            if isinstance(entry, CorruptObject):
                yield Problem(entry.path or folder, str(entry))
                newer = None
                continue
            if newer and newer.seq == entry.seq + 1 and newer.prev != entry.nonce:
                yield Problem(folder, f"entry {newer.seq} of its log does not follow on entry {entry.seq}")
            newer = entry
        for seq in _refs.missing(store.fs, folder):
            yield Problem(folder, f"entry {seq} of its log is missing")
    with suppress(CorruptObject):
        head = _refs.read(store.fs, _refs.HEAD)
        if head is not None and head.value is not None and not head.value.startswith("refs/heads/"):
            yield Problem(_refs.HEAD, f"names {head.value[:80]!r}, which is no branch")


def _take_notes(store: Store, found: Found) -> Iterator[Problem]:
    """Note which commits are pruned or have a later state; yield what is wrong with the notes."""
    for commit in store.fs.list("notes"):
        for note in _notes.read(store.fs, commit):
            if isinstance(note, CorruptObject):
                yield Problem(note.path or f"notes/{commit}", str(note), (commit,))
                if note.path in unreadable_in(store):
                    found.pruned.add(commit)  # it may say so
                continue
            if note.pruned:
                found.pruned.add(commit)
            if note.state:
                found.later.setdefault(commit, set()).add(note.state)


def _pruned(store: Store) -> set[str]:
    notes = ((commit, note) for commit in store.fs.list("notes") for note in _notes.read(store.fs, commit))
    return {commit for commit, note in notes if isinstance(note, Note) and note.pruned}


def _check_reachable(store: Store, report: FsckReport, found: Found, tips: list[tuple[str, str]]) -> list[Problem]:
    """What is lost of all that the refs lead to; of what was fetched only those tensors that were."""
    own = made_here(store.fs) if found.names is not None else set()
    lost, problems = Lost(store, found), []
    for commit, folder in tips:
        if commit not in found.commits:
            message = f"names commit {commit[:12]}, which no pack holds"
            problems.append(Problem(folder, message, (commit,), object=commit))
    report.whole = []
    for id in _history(found, tips):
        record, whole = found.commits[id], True
        for parent in record.parents:
            if parent not in found.commits:
                lost.add(f"commit {parent}", parent, id)
        if id not in found.pruned:
            parts = {record.tree: "tree"} | dict.fromkeys(found.later.get(id, ()), "state")
            for part, kind in (parts | ({record.state: "state"} if record.state else {})).items():
                for what in lost.of(part, kind, partly=found.names is not None and id not in own):
                    whole = False
                    lost.add(what, id, part=(kind, part))
        if whole:
            report.whole.append(id)
    return [*problems, *lost.problems(_NAMED)]


def _history(found: Found, tips: list[tuple[str, str]]) -> Iterator[str]:
    """The commits that refs lead to and that are there."""
    waiting, seen = [commit for commit, _ in tips], set[str]()
    while waiting:
        id = waiting.pop()
        if id not in seen and id in found.commits:
            seen.add(id)
            waiting += found.commits[id].parents
            yield id


def _find_dangling(store: Store, report: FsckReport, found: Found, tips: list[tuple[str, str]]) -> None:
    loose = found.commits.keys() - set(_history(found, tips))
    if loose:  # what was committed meanwhile is not
        loose -= set(_history(found, _tips(store)))
    report.dangling = sorted(loose - {parent for id in loose for parent in found.commits[id].parents})


def _check_head(store: Store, report: FsckReport, found: Found) -> None:
    """Whether the branch that HEAD is on has been lost: commits that follow on others were on some branch."""
    try:
        head = _refs.read(store.fs, _refs.HEAD)
        branch = head.value if head and head.value else "refs/heads/main"
        there = _refs.read(store.fs, branch) if branch.startswith("refs/heads/") else None
    except CorruptObject:
        return  # it is named already
    followed = [id for id in report.dangling if found.commits[id].parents]
    if there is None and followed and not _refs.names(store.fs, "heads") and not _cloned_in_part(store):
        report.problems.append(Problem(branch, "is gone, and no ref leads to these commits", tuple(followed)))


def _cloned_in_part(store: Store) -> bool:
    """Whether a clone was cut short: there is a remote, and no ref follows it yet. The commits that came are loose."""
    folders = [_refs.folder_of("remotes", name) for name in _refs.names(store.fs, "remotes")]
    return bool(store.fs.list("remotes")) and not any(store.fs.list(folder) for folder in folders)
