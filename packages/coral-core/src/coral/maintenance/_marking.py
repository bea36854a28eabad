"""What is alive: all that running operations rely on, and all that refs lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from coral.errors import CorruptObject, MissingObject
from coral.objects import Commit, State, Tree, decode_commit, decode_tree, is_id
from coral.store import Store, _refs, intents

__all__ = ["Marker", "Marks", "trees_of"]


@dataclass(slots=True)
class Marks:
    """What is alive, by id."""

    commits: list[Commit] = field(default_factory=list)  # reachable ones with their notes, parents before children
    objects: dict[str, str] = field(default_factory=dict)  # trees, states, commits -> kind
    tensors: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)  # of the tensors, those of branch tips: loaded and built on soonest
    packs: set[str] = field(default_factory=set)  # being published, by name
    maybe: set[str] = field(default_factory=set)  # what operations alone rely on: it may have gone before they did
    unsynced_refs: list[str] = field(default_factory=list)  # folders of refs whose newest entry is not durable
    refs: list[str] = field(default_factory=list)  # folders of all refs
    unsynced_notes: set[str] = field(default_factory=set)  # commits whose note that they are pruned is not durable

    def __contains__(self, id: str) -> bool:
        return id in self.tensors or id in self.objects

    def ids(self) -> Iterator[str]:
        """Everything that must stay readable, but for the bases of differences."""
        yield from self.objects
        yield from self.tensors


class Marker:
    """Marks what is alive, time and again: what it has read of commits and trees, which never change, it remembers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, Commit] = {}  # without notes
        self._pruned: dict[str, Commit] = {}  # with notes: nothing that comes later matters
        self._states: dict[str, set[str]] = {}  # the states that a commit, or a note on it, names
        self._tensors: dict[tuple[str, str], tuple[str, ...]] = {}  # (kind, id of tree or state) -> tensors
        self._unsynced: set[str] = set()  # pruned commits with a note that is not durable
        self._ids: dict[str, str] = {}  # one str for each id, however many trees name it

    def mark(self) -> Marks:
        """What is alive now. CorruptObject where a ref or the history cannot be read: nothing is known to be dead then.

        Intents are read before refs: what an operation withdraws from its intent, a ref leads to by then.
        """
        marks = Marks(unsynced_notes=self._unsynced)
        needed = {id for intent in intents(self._store.fs) if intent.alive for id in intent.needs}
        tips = list(self._tips(marks))
        heads = {commit for kind, commit in tips if kind == "heads"}
        marks.packs = needed  # ids among them are no names of packs
        for commit in self._history((commit for _, commit in tips)):
            marks.commits.append(commit)
            marks.objects[commit.id] = "commit"
            if not commit.pruned:
                for kind, id in self._parts(commit):
                    self._mark_part(marks, kind, id)
        packs = {name.removesuffix(".pack") for name in self._store.fs.list("packs")}
        extra = Marks()
        for id in needed - packs - marks.tensors:
            with suppress(MissingObject):
                self._mark_needed(marks, extra, id)
        marks.maybe = {id for id in extra.ids() if id not in marks}
        marks.objects |= extra.objects
        marks.tensors |= extra.tensors
        for commit in marks.commits:
            if commit.id in heads:
                for part in self._parts(commit):
                    marks.whole.update(self._tensors.get(part, ()))
        return marks

    def _mark_needed(self, marks: Marks, extra: Marks, id: str) -> None:
        match marks.objects.get(id) or self._kind(id):
            case "tensor":
                extra.tensors.add(id)
            case "tree" | "state" as kind:
                self._mark_part(extra, kind, id)
            case "commit":
                for commit in self._history([id], marks.objects.keys() | extra.objects.keys()):
                    if not commit.pruned:
                        for part in self._parts(commit):
                            self._mark_part(extra, *part)
                    marks.commits.append(commit)
                    extra.objects[commit.id] = "commit"
                if id in self._pruned:
                    for part in self._parts(self._pruned[id]):
                        with suppress(MissingObject):  # freed before it was held
                            self._mark_part(extra, *part)

    def tensors(self, commit: Commit) -> Iterator[str]:
        """The tensors of a commit that was marked and is not pruned."""
        for part in self._parts(commit):
            yield from self._tensors[part]

    def _tips(self, marks: Marks) -> Iterator[tuple[str, str]]:
        fs = self._store.fs
        for kind in fs.list("refs"):
            folders = ["refs/HEAD"] if kind == "HEAD" else [f"refs/{kind}/{name}" for name in fs.list(f"refs/{kind}")]
            for folder in folders:
                entry = _refs.read(fs, folder)
                if entry is not None and not entry.synced:
                    marks.unsynced_refs.append(folder)
                if entry is not None:
                    marks.refs.append(folder)
                if entry is not None and entry.value is not None and folder != _refs.HEAD:
                    if not is_id(entry.value):
                        raise CorruptObject(f"{folder} names {entry.value[:80]!r}, which is no commit", path=folder)
                    yield kind, entry.value

    def _kind(self, id: str) -> str | None:
        with self._store.copies() as copies:
            found = copies.known(id) or next(copies.all(id), None)
            if found is None and copies.unreadable is not None:
                raise copies.unreadable
            return found.entry.kind if found else None

    def _history(self, start: Iterable[str], known: Iterable[str] = ()) -> Iterator[Commit]:
        """The commits that these lead to and that are not known, each once, parents before children."""
        begun = set(known)
        stack = [(id, False) for id in start]
        while stack:
            id, ready = stack.pop()
            if ready:
                yield self._commit(id)
            elif id not in begun:
                begun.add(id)
                stack.append((id, True))
                stack += [(parent, False) for parent in self._bare(id).parents if parent not in begun]

    def _bare(self, id: str) -> Commit:
        found = self._pruned.get(id) or self._read.get(id)
        if found is None:
            found = self._read[id] = decode_commit(self._store.read_object("commit", id), id)
        return found

    def _commit(self, id: str) -> Commit:
        if id in self._pruned:
            return self._pruned[id]
        notes = self._store.read_notes(id)
        commit = self._read[id].annotated(notes)
        self._states[id] = {state for state in (self._read[id].state, *(note.state for note in notes)) if state}
        if any(note.pruned and not note.synced for note in notes):
            self._unsynced.add(id)
        if commit.pruned:
            self._pruned[id] = commit
            del self._read[id]
        return commit

    def _mark_part(self, marks: Marks, kind: str, id: str) -> None:
        if id in marks.objects:
            return
        marks.objects[id] = kind
        tensors = self._tensors.get((kind, id))
        if tensors is None:
            data, what = self._store.read_object(kind, id), f"{kind} {id[:12]}"
            tree = decode_tree(data, what) if kind == "tree" else State.decode(data, what).tensors
            tensors = tuple({self._ids.setdefault(entry.id, entry.id) for entry in tree.values()})
            self._tensors[kind, id] = tensors
        marks.tensors.update(tensors)

    def _parts(self, commit: Commit) -> Iterator[tuple[str, str]]:
        yield "tree", commit.tree
        for state in self._states[commit.id]:
            yield "state", state


def trees_of(store: Store, commit: Commit) -> tuple[Tree, Tree]:
    """The weights of a commit, and the tensors of its state, by name."""
    weights = decode_tree(store.read_object("tree", commit.tree), f"the tree of commit {commit.id[:12]}")
    state: Tree = {}
    if commit.state:
        what = f"the state of commit {commit.id[:12]}"
        state = State.decode(store.read_object("state", commit.state), what).tensors
    return weights, state
