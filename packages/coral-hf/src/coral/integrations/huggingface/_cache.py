"""The cache: a coral repository with a branch for each model, and a commit for each of its revisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coral import Commit, Repository, WeightTensor
from coral._loading import StoredTensors
from coral.errors import CoralError, storage_errors
from coral.objects import TensorEntry

__all__ = ["Cache"]


class Cache:
    """Models that were downloaded, or uploaded from here. Equal tensors are there once, whatever model they are of."""

    def __init__(self, path: Path) -> None:
        self.repo = Repository(path, init=True)
        self.incoming = path / "incoming"
        with storage_errors(f"making {self.incoming}"):
            self.incoming.mkdir(exist_ok=True)

    def find(self, repo_id: str, revision: str | None) -> Commit | None:
        """The commit of a revision: by its id, or the newest that was asked for by that name; None is `main`."""
        for commit in self._of(branch(repo_id)):
            known = commit.metadata
            if (revision or "main") in (known.get("revision"), known.get("asked")):
                return commit
        return None

    def again(self, commit: Commit, repo_id: str, asked: str | None) -> Commit:
        """Have a revision that is here found by the name that it was now asked for by; its commit of that name."""
        known: Any = commit.metadata
        named = self.find(repo_id, asked)
        if named is not None and named.metadata.get("revision") == known["revision"]:
            return named
        files = known.get("files") or {}
        return self.keep(self.load(commit), repo_id, known["revision"], asked=asked, files=files)

    def files(self) -> dict[str, tuple[Commit, list[str]]]:
        """Weight files whose tensors are here, by SHA-256: a commit that has them, and their names."""
        found: dict[str, tuple[Commit, list[str]]] = {}
        for name in self.repo.branches():
            for commit in self._of(name):
                files: Any = commit.metadata.get("files")
                for digest, names in (files or {}).items():
                    found.setdefault(digest, (commit, names))
        return found

    def _of(self, name: str) -> Iterator[Commit]:
        if name in self.repo.branches():
            yield from (commit for commit in self.repo.log(name) if not commit.pruned)

    def load(self, commit: Commit, names: Iterable[str] | None = None) -> StoredTensors:
        """The tensors of a commit, or those named."""
        return self.repo.load(commit.id, names)

    def holds(self, ids: Iterable[str]) -> set[str]:
        """Which of some tensors are here, and can be read."""
        store, found = self.repo.store, set()
        store.index.refresh()
        with store.copies() as copies:
            for id in ids:
                stored = copies.known(id)
                try:
                    if stored is not None:
                        copies.chain(stored)
                        found.add(id)
                except CoralError:  # what it is a difference from is gone: it is fetched
                    continue
        return found

    def stored(self, entries: Mapping[str, TensorEntry]) -> StoredTensors:
        """Tensors that are here, by ids, under the names that a model has for them."""
        return StoredTensors(self.repo.store, dict(entries), "of the cache")

    def keep(
        self,
        weights: Mapping[str, WeightTensor],
        repo_id: str,
        revision: str,
        *,
        asked: str | None,
        files: Mapping[str, list[str]],
    ) -> Commit:
        """Store a revision; `files` are the SHA-256 of its weight files, each with the names of its tensors."""
        metadata = {"revision": revision, "asked": asked or "main", "files": dict(files)}
        id = self.repo.commit(weights, f"{repo_id} at {revision[:12]}", branch=branch(repo_id), metadata=metadata)
        return self.repo.show(id)


def branch(repo_id: str) -> str:
    """The branch of a model."""
    return "models/" + repo_id.replace("/", "--")
