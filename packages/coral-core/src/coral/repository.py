"""Repository: what a user does with a store. It composes, and owns no format."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from coral import _resolve
from coral._reading import Reading
from coral._remoting import Remoting
from coral._summaries import CommitStats, Diff, Stats
from coral.delta import DeltaConfig
from coral.errors import (
    CommitInUse,
    ConfigError,
    CoralError,
    EmptyCommit,
    StorageError,
    UnsafeInput,
    UnsupportedValue,
    storage_errors,
)
from coral.filesystem import FileSystem, LocalFileSystem
from coral.maintenance import Collected, Collector, FsckReport, Progress, Repacked, fsck, repack, scrubbing, statistics
from coral.maintenance import repair as repair_store
from coral.objects import (
    Note,
    clean_fields,
    clean_metrics,
    clean_reasons,
    clean_weights,
)
from coral.state import StateValue
from coral.store import Draft, Durability, Store, _refs, annotate, commit, needed
from coral.store._format import open_or_create
from coral.weights import Array, WeightTensor

__all__ = ["CommitStats", "Diff", "Repository", "Stats"]

_log = logging.getLogger("coral")


class Repository(Reading, Remoting):
    """Version control for model weights, in one folder.

        repo = Repository("./checkpoints", init=True)
        repo.commit({"weight": np.ones(3, np.float32)}, "first")
        repo.load("HEAD")["weight"].data

    `path` is a folder (or any `coral.filesystem.FileSystem`). With `init=True` the repository is created where there is
    none, and opened where there is one. `durability` is what "committed" promises: "full" (survives a loss of power),
    "batch" (does so after `sync()`, which every 8 commits and `close()` do) or "fast" (survives a killed process).

    Raises NotARepository, NewerFormat, CorruptObject, StorageError.
    """

    def __init__(
        self, path: str | os.PathLike[str] | FileSystem, init: bool = False, *, durability: Durability = "full"
    ) -> None:
        if "\0" in str(path):
            raise UnsafeInput(f"a path cannot hold a NUL character: {str(path)!r}")
        fs = LocalFileSystem(path) if isinstance(path, (str, os.PathLike)) else path
        with storage_errors(f"opening the repository {fs.root}"):
            self._store = Store(fs, durability)
            self._collector = Collector(self._store)
            open_or_create(fs, init=init)
        if durability == "batch":
            weakref.finalize(self, _sync_at_the_end, self._store)

    @property
    def path(self) -> Path:
        """The repository's folder."""
        return Path(self._store.fs.root)

    @property
    def store(self) -> Store:
        """The store underneath, for maintenance and remotes."""
        return self._store

    def with_durability(self, durability: Durability) -> Repository:
        """The same repository with another promise for what is committed through it."""
        return self if durability == self._store.durability else Repository(self._store.fs, durability=durability)

    def __repr__(self) -> str:
        return f"Repository({self._store.fs.root!r})"

    def __reduce__(self) -> tuple[object, ...]:  # a process that is spawned with it opens it anew
        fs = self._store.fs
        return partial(type(self), durability=self._store.durability), (fs.root if type(fs) is LocalFileSystem else fs,)

    # -- saving -----------------------------------------------------------------------------------------------------

    def commit(
        self,
        weights: Mapping[str, WeightTensor | Array],
        message: str = "",
        branch: str | None = None,
        state: StateValue = None,
        metadata: Mapping[str, StateValue] | None = None,
        *,
        training: Mapping[str, StateValue] | None = None,
        metrics: Mapping[str, float] | None = None,
        reasons: Iterable[str] = (),
    ) -> str:
        """Save tensors as a commit on a branch; returns its id, 64 hex digits.

        `branch` is created from HEAD where it does not exist; None means the branch that HEAD is on. `state` is any
        nested training state (`coral.state`), `metadata` the same without tensors; `training`, `metrics` and
        `reasons` are what a run says of the checkpoint (`coral.training`). What this returns is acknowledged: see
        `durability`. Nothing is left behind by a commit that fails.

        Raises EmptyCommit, UnsafeInput, UnsupportedValue, StorageError (DiskFull, ReadOnly).
        """
        if not isinstance(weights, Mapping):
            raise UnsupportedValue(f"weights are a mapping of names to tensors, not a {type(weights).__name__}")
        if not weights:
            raise EmptyCommit("nothing to commit: there is not a single tensor in the weights")
        if not isinstance(message, str):
            raise UnsupportedValue(f"a commit message is a str, not a {type(message).__name__}")
        draft = Draft(
            weights=clean_weights(weights),
            message=message,
            state=state,
            metadata=clean_fields(metadata, "metadata"),
            training=clean_fields(training, "training"),
            metrics=clean_metrics(metrics),
            reasons=clean_reasons(reasons),
        )
        name = self.head if branch is None else _refs.check_ref_name(branch)
        with self._doing(f"committing to {name}"):
            return commit(self._store, _refs.folder_of("heads", name), draft, lambda: self._start(name))

    def _start(self, branch: str) -> str | None:
        """Where a branch that does not exist yet begins: at HEAD's commit."""
        head = _resolve.head(self._store)
        return None if head == branch else _resolve.tip(self._store, "heads", head)

    def annotate(
        self,
        ref: str,
        *,
        metrics: Mapping[str, float] | None = None,
        reasons: Iterable[str] = (),
        pruned: bool = False,
        state: StateValue = None,
        training: Mapping[str, StateValue] | None = None,
    ) -> None:
        """Add a note to a commit: late metrics and reasons, that it is pruned, a later training state or record."""
        with self._doing(f"annotating {ref}"):
            found = self.show(ref)
            later = Note(
                metrics=clean_metrics(metrics),
                reasons=frozenset(clean_reasons(reasons)),
                pruned=pruned,
                training=clean_fields(training, "training"),
                time=self._store.fs.now(),
            )
            annotate(self._store, found, later, state)
            self._store.acknowledge()

    def sync(self) -> None:
        """With durability "batch": make everything that was committed so far survive a loss of power."""
        with self._doing("syncing"):
            self._store.sync()

    def close(self) -> None:
        """Sync what a batch still holds. The repository can go on being used."""
        self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def held(self) -> dict[str, str]:
        """The commits that cannot be pruned, each with what holds it: branches, tags, open runs."""
        found = dict.fromkeys(needed(self._store.fs, "run"), "an open run")
        found |= {commit: f"the tag {name}" for name, commit in self.tags().items()}
        return found | {commit: f"the branch {name}" for name, commit in self.branches().items()}

    def prune(self, refs: str | Iterable[str]) -> Collected:
        """Drop the tensors of commits and free their space; `log` still shows their records.

        Raises CommitInUse, before anything is pruned, for one that a branch, a tag or an open run holds.
        """
        with self._doing("pruning"):
            commits = {self.resolve(ref): ref for ref in ([refs] if isinstance(refs, str) else refs)}
            held = self.held()
            for commit, ref in commits.items():
                if commit in held:
                    raise CommitInUse(f"{ref} ({commit[:12]}) cannot be pruned: {held[commit]} holds it", ref=ref)
            for commit in commits:
                self.annotate(commit, pruned=True)
            return self._collector.collect()

    def repack(
        self,
        aggressive: bool = False,
        *,
        config: DeltaConfig | None = None,
        patient: bool = False,
        progress: Progress | None = None,
    ) -> Repacked:
        """Store what lies behind the tips of branches as differences, and free the copies that these stand for.

        `aggressive` makes them 2 to 20 % smaller, and several times slower to read. `patient` leaves commits whole that
        are likely to find a nearer keyframe, as a run goes on. `progress` is called with the bytes that are done and
        those there are to do. What is written is decoded and compared before anything is freed; it may be killed at
        any time, and goes on when called again. Raises Conflict while another repack is at work.
        """
        with self._doing("repacking"):
            return repack(
                self._collector,
                config or DeltaConfig(),
                aggressive=aggressive,
                patient=patient,
                progress=progress,
            )

    def gc(self, grace: float | None = None) -> Collected:
        """Free what nothing leads to any more: tensors of pruned commits, of deleted branches, of saves that failed.

        Packs that nothing ever led to are kept for `grace` seconds: by default 0, and 14 days where the repository is
        on a filesystem that other machines share. It may run beside anything else. Raises CorruptObject where the
        history cannot be read, before anything is freed.
        """
        if grace is not None and (isinstance(grace, bool) or not isinstance(grace, int | float) or not grace >= 0):
            raise ConfigError(f"grace is {grace!r}; it must be a number of seconds, 0 or more, or None")
        with self._doing("collecting garbage"):
            return self._collector.collect(grace)

    def fsck(self, repair: bool = False) -> FsckReport:
        """Read and check every byte of the repository; the report names what is damaged and what that touches.

        With `repair`, what can be mended is: from other copies here, and from every remote that has a name here, whose
        bytes are checked as those of a fetch; indexes are made anew. Damaged files go to `quarantine/`, and nothing is
        deleted. The report's `problems` are what is left then, `repaired` what was mended.
        """
        if not repair:
            with self._doing("checking the repository"):
                return fsck(scrubbing(self._store))
        with self._doing("repairing the repository"):
            try:
                self._store.sync()  # before a ref is durable anew that names it
            except StorageError as error:  # a repair is what is needed then
                _log.warning("%s: repairing what may not be durable: %s", self._store.fs.root, error)
            store = scrubbing(self._store)
            found = repair_store(store, self._sources(store))
            store.sync()
            self._collector = Collector(self._store)  # what it remembers may be gone
            return found

    def stats(self) -> Stats:
        """How many commits there are, how much space they take, each and in all, and what of it `gc` would free."""
        with self._doing("measuring the repository"):
            return statistics(self._collector)


def _sync_at_the_end(store: Store) -> None:
    """What a batch still holds when nobody is left to tell of an error."""
    try:
        store.sync()
    except (OSError, CoralError) as error:
        _log.error("%s: the last commits of a batch could not be synced: %s", store.fs.root, error)
