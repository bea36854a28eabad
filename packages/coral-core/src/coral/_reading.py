"""The part of a repository that reads: commits, their history, their weights and states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from coral import _resolve
from coral._loading import StoredTensors
from coral._naming import Naming
from coral._summaries import Diff
from coral.errors import CommitPruned, ConfigError, MissingObject, UnknownRef
from coral.objects import Commit, Note, State, TensorEntry, decode_tree
from coral.state import StateValue, unflatten
from coral.store._partial import made_here, partial_names


class Reading(Naming):
    """What a repository shows of its commits."""

    def resolve(self, ref: str = "HEAD") -> str:
        """The id of the commit that `ref` means: a branch, a tag, HEAD, 6 or more digits of an id, `best`, `last`,
        `step:500`.

        The last three mean HEAD's branch, or the one named as in `experiment@best` or `origin/main@best`: `last` its
        newest commit, the others those of the newest run there. `~2` behind any of them goes two parents back. Raises
        UnknownRef (with near names) or AmbiguousRef.
        """
        with self._doing(f"resolving {ref}"):
            return _resolve.resolve(self._store, ref)

    def show(self, ref: str = "HEAD") -> Commit:
        """The record of a commit, with its notes merged in."""
        with self._doing(f"reading {ref}"):
            return self._store.read_commit(_resolve.resolve(self._store, ref))

    def log(self, ref: str = "HEAD", limit: int | None = None) -> list[Commit]:
        """The commit `ref` means and its ancestors, newest first, `limit` at most. Empty if HEAD has none."""
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ConfigError(f"limit is {limit!r}; it must be a number of commits, 0 or more, or None for all")
        with self._doing(f"reading the log of {ref}"):
            try:
                start = _resolve.resolve(self._store, ref)
            except UnknownRef:
                if ref not in ("HEAD", self.head):
                    raise
                return []
            return list(islice(self._ancestors([start]), limit))

    def _ancestors(self, start: Iterable[str]) -> Iterator[Commit]:
        """Commits from `start` on, each once, the newest of those known first."""
        waiting = {id: self._store.read_commit(id) for id in start}
        seen = set(waiting)
        while waiting:
            commit = (
                waiting.pop(max(waiting, key=lambda id: waiting[id].time)) if len(waiting) > 1 else waiting.popitem()[1]
            )
            yield commit
            for parent in commit.parents:
                if parent not in seen:
                    seen.add(parent)
                    waiting[parent] = self._store.read_commit(parent)

    def chain(self, ref: str = "HEAD") -> Iterator[Commit]:
        """A checkpoint and those its training went on from, newest first, across the runs that resumed one another."""
        with self._doing(f"reading the run of {ref}"):
            yield from _resolve.chain(self._store, _resolve.resolve(self._store, ref))

    def notes(self, ref: str = "HEAD") -> list[Note]:
        """What was added to a commit after it was made, oldest first."""
        with self._doing(f"reading the notes on {ref}"):
            return sorted(self._store.read_notes(self.resolve(ref)), key=lambda note: note.time)

    def tree(self, ref: str = "HEAD") -> dict[str, TensorEntry]:
        """Name, dtype, shape, size and id of each weight of a commit, without reading any."""
        with self._doing(f"reading the tree of {ref}"):
            return self._tree(self.show(ref))

    def _tree(self, commit: Commit) -> dict[str, TensorEntry]:
        try:
            data = self._store.read_object("tree", commit.tree)
        except MissingObject:
            self._refuse_pruned(commit, commit.id)
            raise
        return decode_tree(data, f"the tree of commit {commit.id[:12]}")

    def load(self, ref: str = "HEAD", names: Iterable[str] | None = None) -> StoredTensors:
        """The weights of a commit, or only those of `names`: a mapping of names to WeightTensors.

        Each is read when its `.data` is first asked for, without a copy where it is large, and checked as it is read.
        Raises UnknownRef, CommitPruned, WeightsMismatch (an unknown name), CorruptObject, StorageError.
        """
        with self._doing(f"loading {ref}"):
            found = self._unpruned(ref)
            with self._not_fetched(found, ": ask for these by names=, or clone it whole.", weights=True):
                return StoredTensors(self._store, self._tree(found), found.id, names)

    def load_state(self, ref: str = "HEAD") -> StateValue:
        """The training state that was committed with the weights, as it was; None where there was none."""
        with self._doing(f"loading the state of {ref}"):
            found = self._unpruned(ref)
            if found.state is None:
                return None
            what = f"the state of commit {found.id[:12]}"
            with self._not_fetched(found, ", and no training state: clone it whole.", weights=False):
                state = State.decode(self._store.read_object("state", found.state), what)
                tensors = StoredTensors(self._store, state.tensors, found.id)
            return unflatten(state.value, tensors.__getitem__, what)

    @contextmanager
    def _not_fetched(self, commit: Commit, advice: str, *, weights: bool) -> Iterator[None]:
        """Say of what a clone of some weights alone never had that it was not asked for: it is no damage."""
        try:
            yield
        except MissingObject as error:
            held = partial_names(self._store.fs)
            if held is None or commit.id in made_here(self._store.fs):
                raise
            if weights and (error.tensor is None or error.tensor in held):
                raise
            raise MissingObject(
                f"{str(error).removesuffix(' Run fsck.')} Of what was fetched, this clone has only "
                f"{', '.join(sorted(held))}{advice}",
                tensor=error.tensor,
                commits=error.commits,
            ) from error

    def _unpruned(self, ref: str) -> Commit:
        found = self.show(ref)
        self._refuse_pruned(found, ref)
        return found

    def _refuse_pruned(self, commit: Commit, ref: str) -> None:
        if commit.pruned and any(note.local for note in self._store.read_notes(commit.id)):
            raise CommitPruned(
                f"{ref} ({commit.id[:12]}, step {commit.step}) is not in this clone, which was made with a depth: only "
                "its record was fetched. Clone anew, with a greater depth.",
                ref=ref,
            )
        if commit.pruned:
            raise CommitPruned(
                f"{ref} ({commit.id[:12]}, step {commit.step}) was pruned: its record is kept, its tensors are gone. "
                "`log` shows those that can be loaded.",
                ref=ref,
            )

    def diff(self, a: str, b: str = "HEAD") -> Diff:
        """Which weights differ between two commits."""
        old, new = self.tree(a), self.tree(b)
        both = [name for name in old if name in new]
        return Diff(
            added=sorted(name for name in new if name not in old),
            removed=sorted(name for name in old if name not in new),
            modified=sorted(name for name in both if old[name].id != new[name].id),
            unchanged=sorted(name for name in both if old[name].id == new[name].id),
        )
