"""The part of a repository that is about names: branches, tags, HEAD."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from coral import _resolve
from coral.errors import Conflict, RefExists, UnknownRef, storage_errors
from coral.store import Store, _refs, intent


class Naming:
    """What a repository does with its refs."""

    _store: Store

    @property
    def head(self) -> str:
        """The name of the branch that HEAD is on."""
        with self._doing("reading HEAD"):
            return _resolve.head(self._store)

    def branch(self, name: str, at: str = "HEAD") -> str:
        """Make a branch that begins at a commit; returns the commit's id. RefExists where it is there already."""
        return self._put("heads", name, at, force=False, run=None)

    def branches(self) -> dict[str, str]:
        """Every branch that has a commit, with its newest one's id."""
        with self._doing("listing branches"):
            return _resolve.all_refs(self._store, "heads")

    def tag(self, name: str, ref: str = "HEAD", *, force: bool = False, run: str | None = None) -> str:
        """Give a commit a name that stays; returns the commit's id. RefExists unless `force` moves the tag.

        What is tagged by hand is never pruned; `run` marks a tag as one that a run's policy moves, which never takes
        one that was made by hand.
        """
        return self._put("tags", name, ref, force=force, run=run)

    def tags(self, *, by_hand: bool = False) -> dict[str, str]:
        """Every tag with its commit's id; with `by_hand` only those that no run's policy moves."""
        with self._doing("listing tags"):
            found = _resolve.all_refs(self._store, "tags")
            if by_hand:
                entries = ((name, _refs.read(self._store.fs, _refs.folder_of("tags", name))) for name in found)
                found = {name: found[name] for name, entry in entries if entry and entry.run is None}
            return found

    def _put(self, kind: str, name: str, ref: str, *, force: bool, run: str | None) -> str:
        word = {"heads": "branch", "tags": "tag"}[kind]
        folder = _refs.folder_of(kind, _refs.check_ref_name(name, word))
        with self._doing(f"making the {word} {name}"), intent(self._store.fs, word, []) as operation:
            target = ""
            while target != (target := _resolve.resolve(self._store, ref)):
                operation.needs([target])  # and look again: before that, it could be deleted and collected
            while True:
                before = _refs.read(self._store.fs, folder, lenient=True)
                if before and before.value == target and before.run == run:
                    self._store.ensure_history_synced()
                    self._store.ensure_ref_durable(folder)
                    return target
                if before and before.value and (not force or (run is not None and before.run is None)):
                    raise RefExists(f"there is a {word} {name!r} already, at {before.value[:12]}", ref=name)
                self._store.ensure_history_synced()
                try:
                    self._store.move_ref(folder, target, after=before, why=f"{word}: from {ref}", run=run)
                    break
                except Conflict:
                    continue  # look again at what it was moved to
            self._store.acknowledge()
        return target

    def delete_tag(self, name: str) -> None:
        """Take a tag away; the commit stays."""
        self._delete("tags", name)

    def delete_branch(self, name: str) -> None:
        """Take a branch away; its commits stay until garbage is collected. Not the branch that HEAD is on."""
        if name == self.head:
            raise RefExists(f"HEAD is on {name!r}: check out another branch first", ref=name)
        self._delete("heads", name)

    def _delete(self, kind: str, name: str) -> None:
        folder = _refs.folder_of(kind, _refs.check_ref_name(name))
        with self._doing(f"deleting {name}"):
            before = _refs.read(self._store.fs, folder, lenient=True)
            if before is None or before.value is None:
                if before is not None:
                    self._store.ensure_ref_durable(folder)
                raise UnknownRef(name, _resolve.known_refs(self._store, kind))
            self._store.move_ref(folder, None, after=before, why="deleted")
            self._store.acknowledge()

    def checkout(self, branch: str) -> None:
        """Put HEAD on a branch: what `commit` without a branch goes to. UnknownRef where there is no such branch."""
        with self._doing(f"checking out {branch}"):
            if not isinstance(branch, str) or _resolve.named(self._store, "heads", branch) is None:
                raise UnknownRef(str(branch)[:80], _resolve.known_refs(self._store, "heads"))
            before = _refs.read(self._store.fs, _refs.HEAD, lenient=True)
            self._store.move_ref(_refs.HEAD, f"refs/heads/{branch}", after=before, why="checkout")
            self._store.acknowledge()

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        with storage_errors(f"{what} in {self._store.fs.root}"):
            yield
