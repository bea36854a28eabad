"""fsck: read every byte, check it by every sum there is, and say what a damage touches."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from coral._digest import pool
from coral.errors import CoralError, CorruptObject
from coral.objects import Note, State, Tree, decode_commit, decode_tree, is_id
from coral.store import Copies, Store, Stored, _notes, _refs
from coral.store._format import check_format
from coral.store._index import read_segment
from coral.store._pack import Entry, directory_of, path_of, read_object
from coral.store._partial import partial_names

__all__ = ["FsckReport", "Problem"]

_GROUP, _GROUP_BYTES = 64, 8 << 20  # packs, and bytes, that a thread checks at a time


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage: the file it is in, what is wrong, and the commits it touches."""

    path: str
    message: str
    commits: tuple[str, ...] = ()

    def __str__(self) -> str:
        touched = f" (touches {', '.join(id[:12] for id in self.commits[:5])})" if self.commits else ""
        return f"{self.path}: {self.message}{touched}"


@dataclass(slots=True)
class FsckReport:
    """What fsck found; `ok` if it found no damage. Sizes in bytes."""

    problems: list[Problem] = field(default_factory=list)
    packs: int = 0
    tensors: int = 0
    commits: int = 0
    bytes_checked: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def __str__(self) -> str:
        head = f"{self.commits} commits, {self.tensors} tensors in {self.packs} packs: "
        return head + (
            "no damage" if self.ok else "\n".join([f"{len(self.problems)} damaged", *map(str, self.problems)])
        )


@dataclass(frozen=True, slots=True)
class _Record:
    """What a commit needs, from the commit itself."""

    parents: tuple[str, ...]
    tree: str
    state: str | None


@dataclass(slots=True)
class _Found:
    """What the packs hold that is whole. Tensors are numbered, so that many trees take little memory."""

    numbers: dict[str, int] = field(default_factory=dict)
    tensors: set[int] = field(default_factory=set)
    needs: dict[str, array[int]] = field(default_factory=dict)  # tree or state id -> numbers of its tensors
    commits: dict[str, _Record] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
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
            case _:
                tensors = State.decode(payload or b"", what).tensors
        self.needs[entry.id] = array("L", (self.number(tensor.id) for tensor in tensors.values()))


def fsck(store: Store) -> FsckReport:
    """Check a whole repository. Damage is reported, never raised; only the filesystem's own refusals are."""
    report, found = FsckReport(), _Found()
    # what refs and notes name is looked at before the packs: what is committed meanwhile is not missed then
    refs = [_check_ref(store, folder) for folder in _ref_folders(store)]
    noted = list(_take_notes(store, found))
    names = []
    for folder in ("packs", *(f"trash/{name}" for name in store.fs.list("trash"))):
        for file in sorted(store.fs.list(folder)):
            name = file.removesuffix(".pack")
            if is_id(name) and file.endswith(".pack"):
                names.append(name)
            else:
                report.problems.append(Problem(f"{folder}/{file}", "is not a pack"))
    names = list(dict.fromkeys(names))
    try:
        check_format(store.fs)
    except (CoralError, FileNotFoundError) as error:
        report.problems.append(Problem("format", str(error)))
    groups = pool().map(lambda group: [(name, *_check_pack(store, name)) for name in group], _groups(store, names))
    for name, entries, problems in chain.from_iterable(groups):
        report.packs += 1
        report.problems += problems
        for entry, payload in entries:
            try:
                found.take(entry, payload)
                report.bytes_checked += entry.size
            except CoralError as error:
                report.problems.append(Problem(path_of(name), str(error)))
    report.tensors, report.commits = len(found.tensors), len(found.commits)
    report.problems += _check_index(store)
    tips = []
    for problems, values in refs:
        report.problems += problems
        tips += values
    report.problems += noted
    found.pruned |= _pruned(store)  # what was pruned meanwhile may have gone
    report.problems += _check_reachable(found, tips, partial=partial_names(store.fs) is not None)
    return report


def _groups(store: Store, names: list[str]) -> Iterator[list[str]]:
    """Packs for one thread at a time: a large one, or many small ones, between which handing over would cost more."""
    group: list[str] = []
    size = 0
    for name in names:
        group.append(name)
        with suppress(OSError):
            size += store.fs.stat(path_of(name)).size
        if size >= _GROUP_BYTES or len(group) >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _check_pack(store: Store, name: str) -> tuple[list[tuple[Entry, bytes | None]], list[Problem]]:
    good: list[tuple[Entry, bytes | None]] = []
    problems = []
    try:
        file = store.open_pack(name)
    except FileNotFoundError:
        return good, []  # collected since it was listed
    except (OSError, CorruptObject) as error:
        return good, [Problem(path_of(name), f"cannot be opened: {error}")]
    copies = Copies(store)
    try:
        directory = directory_of(file, name)
        for number in range(len(directory)):
            try:
                entry = directory.checked(number)
                if entry.kind == "tensor":
                    copies.chain(Stored(directory, file, entry)).verify()
                    good.append((entry, None))
                else:
                    good.append((entry, read_object(file, entry)))
            except (CoralError, EOFError, OSError) as error:
                problems.append(Problem(path_of(name), str(error)))
    except (CoralError, EOFError, OSError) as error:
        problems.append(Problem(path_of(name), str(error)))
    finally:
        file.close()
        copies.close()
    return good, problems


def _check_index(store: Store) -> Iterator[Problem]:
    for name in store.fs.list("index"):
        try:
            read_segment(store.fs, name)
        except CorruptObject as error:
            yield Problem(f"index/{name}", f"{error}. It is derived: remove it, and it is made anew")
        except FileNotFoundError:
            pass  # merged since it was listed


def _ref_folders(store: Store) -> Iterator[str]:
    yield _refs.HEAD
    for kind in store.fs.list("refs"):
        if kind != "HEAD":
            yield from (f"refs/{kind}/{component}" for component in store.fs.list(f"refs/{kind}"))


def _check_ref(store: Store, folder: str) -> tuple[list[Problem], list[tuple[str, str]]]:
    """What is wrong with a ref, and the commit that it names, as (commit, folder)."""
    problems = []
    newer: _refs.RefEntry | None = None
    for entry in _refs.history(store.fs, folder):
        if isinstance(entry, CorruptObject):
            problems.append(Problem(entry.path or folder, str(entry)))
            newer = None
            continue
        if newer and newer.seq == entry.seq + 1 and newer.prev != entry.nonce:
            problems.append(Problem(folder, f"entry {newer.seq} of its log does not follow on entry {entry.seq}"))
        newer = entry
    problems += [Problem(folder, f"entry {seq} of its log is missing") for seq in _refs.missing(store.fs, folder)]
    try:
        newest = _refs.read(store.fs, folder)
    except CorruptObject:
        return problems, []
    if newest is None or newest.value is None:
        return problems, []
    if folder == _refs.HEAD:
        if not newest.value.startswith("refs/heads/"):
            problems.append(Problem(folder, f"names {newest.value[:80]!r}, which is no branch"))
        return problems, []
    return problems, [(newest.value, folder)]


def _take_notes(store: Store, found: _Found) -> Iterator[Problem]:
    """Note which commits are pruned or have a later state; yield what is wrong with the notes."""
    for commit in store.fs.list("notes"):
        for note in _notes.read(store.fs, commit):
            if isinstance(note, CorruptObject):
                yield Problem(note.path or f"notes/{commit}", str(note), (commit,))
                continue
            if note.pruned:
                found.pruned.add(commit)
            if note.state:
                found.later.setdefault(commit, set()).add(note.state)


def _pruned(store: Store) -> set[str]:
    notes = ((commit, note) for commit in store.fs.list("notes") for note in _notes.read(store.fs, commit))
    return {commit for commit, note in notes if isinstance(note, Note) and note.pruned}


def _check_reachable(found: _Found, tips: list[tuple[str, str]], *, partial: bool) -> Iterator[Problem]:
    """Whether all that the refs lead to is there; tensors need not be where only some were fetched."""
    missing: dict[str, list[str]] = {}  # what is not there -> the commits that need it
    seen: set[str] = set()
    waiting = [commit for commit, _ in tips]
    for commit, folder in tips:
        if commit not in found.commits:
            yield Problem(folder, f"names commit {commit[:12]}, which no pack holds", (commit,))
    lost = _Lost(found)
    while waiting:
        id = waiting.pop()
        if id in seen or id not in found.commits:
            continue
        seen.add(id)
        record = found.commits[id]
        waiting += record.parents
        for parent in record.parents:
            if parent not in found.commits:
                missing.setdefault(f"commit {parent}", [parent]).append(id)
        if id not in found.pruned:
            parts = {record.tree: "tree"} | dict.fromkeys(found.later.get(id, ()), "state")
            for part, kind in (parts | ({record.state: "state"} if record.state else {})).items():
                for what in lost.of(part, kind):
                    if partial and what.startswith("tensor "):
                        continue
                    missing.setdefault(what, []).append(id)
    for what, commits in missing.items():
        yield Problem("packs", f"no pack holds {what[: what.index(' ') + 13]} whole", tuple(dict.fromkeys(commits)))


class _Lost:
    """What is not there of trees and states, each looked at once."""

    def __init__(self, found: _Found) -> None:
        self._found = found
        self._names = {number: id for id, number in found.numbers.items()}
        self._known: dict[str, list[str]] = {}

    def of(self, part: str, kind: str) -> list[str]:
        if part not in self._known:
            needs = self._found.needs.get(part)
            self._known[part] = (
                [f"{kind} {part}"]
                if needs is None
                else [f"tensor {self._names[number]}" for number in needs if number not in self._found.tensors]
            )
        return self._known[part]
