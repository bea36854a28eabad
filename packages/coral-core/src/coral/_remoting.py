"""The part of a repository that is about other ones: remotes, push, fetch, pull, clone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Self, TypeAlias

from coral import _resolve
from coral._loading import checked_names
from coral._naming import Naming
from coral.errors import (
    ConfigError,
    Conflict,
    CoralError,
    Diverged,
    NotARepository,
    RefExists,
    UnknownRef,
    storage_errors,
)
from coral.filesystem import FileSystem, LocalFileSystem
from coral.maintenance import Progress
from coral.remotes import DuePush, Fetched, Pushed, RemoteRecord, add_due, dues, open_remote, remove_due
from coral.remotes._fetch import fetch
from coral.remotes._graph import Graph
from coral.remotes._healing import RemoteSource
from coral.remotes._notes import local_notes
from coral.remotes._push import push
from coral.remotes._records import Memory, add_record, is_url, read_record, records, remove_record
from coral.remotes._side import Side
from coral.store import Durability, Operation, Store, _refs, check_ref_name, intent, merged
from coral.store._partial import mark_partial, partial_names

_log = logging.getLogger("coral")

_FIRST = "origin"
Winner: TypeAlias = Literal["ours", "theirs"]


class Remoting(Naming):
    """What a repository does with other ones."""

    def __init__(
        self, path: str | os.PathLike[str] | FileSystem, init: bool = False, *, durability: Durability = "full"
    ) -> None:
        raise NotImplementedError

    def add_remote(self, name: str, url: str | os.PathLike[str], *, single_writer: bool = False) -> RemoteRecord:
        """Give another place a name here: a folder, or a file://, s3://, gs:// or az:// URL, without credentials.

        `single_writer` promises that nobody but this repository writes there: for stores without a conditional put.
        Nothing is asked of the remote yet. Raises UnsafeInput (credentials in the URL), ConfigError (an unknown
        scheme), MissingExtra, RefExists.
        """
        with self._remotely("adding", name):
            record = RemoteRecord(name, os.fspath(url), single_writer)
            open_remote(record.url, single_writer=single_writer)
            return add_record(self._store.fs, record)

    def remotes(self) -> dict[str, str]:
        """Every remote that has a name here, with its URL."""
        with storage_errors(f"listing the remotes of {self._store.fs.root}"):
            return {record.name: record.url for record in records(self._store.fs)}

    def remove_remote(self, name: str) -> None:
        """Forget a remote, where its branches are, and what is due to be pushed to it.

        What was fetched stays until garbage is collected.
        """
        with self._remotely("removing", name):
            read_record(self._store.fs, name)
            for due in dues(self._store.fs):
                if due.remote == name:
                    remove_due(self._store.fs, due)
            remove_record(self._store.fs, name)
            for ref in _refs.names(self._store.fs, "remotes"):
                if ref.startswith(f"{name}/"):
                    self._track(ref, None, why="remove_remote")

    def push(
        self,
        remote: str | os.PathLike[str] = _FIRST,
        branch: str | None = None,
        *,
        tags: bool = True,
        prune: bool = False,
        repair: bool = False,
        progress: Progress | None = None,
    ) -> Pushed:
        """Bring a branch, by default HEAD's, to a remote, with the tags and notes on it; what is there is not sent.

        `remote` is a name or a URL. Where nothing is there yet a repository is made. With `prune`, what was pruned here
        is pruned there, too, and its space given back, but for what a branch or a tag over there names. With `repair`,
        what the remote has lost of its other commits, and of other branches, is sent again, as far as it is here.
        `progress` is called with the bytes that are sent and those there are to send. Raises Diverged, CommitPruned
        (what the branch is at is pruned over there, and whole here), RemoteError and its kinds, NotARepository,
        NewerFormat; it can be called again after any of them, and sends only what is missing.
        """
        name = self.head if branch is None else check_ref_name(branch)
        with self._remotely(f"pushing {name} to", remote):
            tip = _resolve.tip(self._store, "heads", name)
            if tip is None:
                raise UnknownRef(name, _resolve.known_refs(self._store, "heads"), detail="there is nothing to push")
            side, record = self._side(remote)
            entries = self._tag_entries() if tags else {}
            done = push(self._store, side, name, tip, tags=entries, prune=prune, repair=repair, progress=progress)
            if record is not None:
                self._track(f"{record.name}/{name}", tip, why="push")
        _log.info("%s: pushed: %s", self._store.fs.root, done)
        return done

    def push_due(self) -> dict[DuePush, Pushed | CoralError]:
        """Do the pushes that training runs have left due; what came of each. What fails stays due."""
        fs, found = self._store.fs, dict[DuePush, Pushed | CoralError]()
        with storage_errors(f"pushing what is due of {fs.root}"):
            waiting = dues(fs)
            while waiting:
                due = waiting.pop()
                try:
                    found[due] = done = self.push(due.remote, due.branch, prune=due.prune)
                except CoralError as error:
                    found[due] = error
                    continue
                remove_due(fs, due)
                # it may have been saved to meanwhile
                if _resolve.tip(self._store, "heads", due.branch) not in (None, done.commit):
                    add_due(fs, due)
                    waiting.append(due)
        return found

    def fetch(self, remote: str | os.PathLike[str] = _FIRST, *, progress: Progress | None = None) -> Fetched:
        """Bring here what a remote has and this repository has not: its branches as `origin/main`, tags and notes.

        No branch here moves. What comes is checked by SHA-256 before anybody sees it. Raises RemoteError and its kinds,
        NotARepository, NewerFormat, CorruptObject, UnsafeInput; it can be called again, and fetches what is missing.
        """
        return self._fetch(remote, progress=progress)

    def pull(
        self,
        remote: str | os.PathLike[str] = _FIRST,
        branch: str | None = None,
        *,
        merge: Winner | None = None,
        progress: Progress | None = None,
    ) -> Fetched:
        """Fetch, and move a branch here, by default HEAD's, on to where it is at the remote; it is made if need be.

        Where both have commits that the other one has not it raises Diverged; with `merge="ours"` or `"theirs"` it
        makes a commit that follows both, and has the weights and the state of that one.
        """
        if merge not in (None, "ours", "theirs"):
            raise ConfigError(f'merge is {merge!r}; it must be "ours", "theirs" or None')
        name = self.head if branch is None else check_ref_name(branch)
        return self._fetch(remote, keep=name, merge=merge, progress=progress)

    @classmethod
    def clone(
        cls,
        url: str | os.PathLike[str],
        path: str | os.PathLike[str],
        *,
        depth: int | None = None,
        names: Iterable[str] | None = None,
        single_writer: bool = False,
        durability: Durability = "full",
        progress: Progress | None = None,
    ) -> Self:
        """Make a repository in a folder that has all that another one has, which is its remote `origin` from then on.

        With `depth`, tensors come for that many of the newest commits of each branch alone, the records of all; with
        `names`, only these weights, and no training state. HEAD is on the branch that it is on over there. One that
        was cut short is completed when it is called again; with other names as long as no ref is there yet.
        """
        if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
            raise ConfigError(f"depth is {depth!r}; it must be a number of commits, 1 or more, or None for all")
        wanted = None if names is None else frozenset(checked_names(names))
        if wanted is not None and not wanted:
            raise ConfigError("names is empty: a clone without weights is none. Name some, or leave names out for all.")
        fs = LocalFileSystem(path)
        with storage_errors(f"cloning to {fs.root}"):
            there = fs.list("")
            if there and "format" not in there:
                raise NotARepository(
                    f"{fs.root} is neither empty nor a repository: clone to another folder", path=fs.root
                )
            Side(open_remote(url, single_writer=single_writer), fs, Memory(fs, None)).check()  # before a folder is made
            repo = cls(path, init=True, durability=durability)
            if _resolve.all_refs(repo._store, "heads"):
                raise RefExists(f"{fs.root} is a repository with branches: fetch, or clone to another folder")
            repo.add_remote(_FIRST, url, single_writer=single_writer)
            repo._hold(wanted, depth)
            repo._fetch(_FIRST, depth=depth, progress=progress, head=True)
        return repo

    # -- what these share -------------------------------------------------------------------------------------------

    def _hold(self, names: frozenset[str] | None, depth: int | None) -> None:
        """Have what a clone fetches be of these weights alone, and so deep, whatever one that was cut was to be.

        RefExists where refs came already: what they lead to is not fetched again.
        """
        store = self._store
        begun, shallow = partial_names(store.fs), local_notes(store.fs)
        if begun == names and not (shallow and depth is None):
            return
        if any(_resolve.all_refs(store, kind) for kind in ("heads", "tags", "remotes")):
            how = f"with names={sorted(begun)}" if begun else "with a depth" if shallow else "for all weights"
            raise RefExists(f"the clone in {store.fs.root} was begun {how}, not like this: clone to another folder")
        for path in shallow:
            store.fs.unlink(path)
        if begun != names:
            mark_partial(store.fs, names)

    def _side(self, remote: str | os.PathLike[str]) -> tuple[Side, RemoteRecord | None]:
        """The other side, and its record if it has a name here."""
        fs = self._store.fs
        if is_url(remote):
            url = os.fspath(remote)
            return Side(open_remote(url), fs, Memory(fs, None)), None
        record = read_record(fs, os.fspath(remote))
        found = open_remote(record.url, single_writer=record.single_writer)
        return Side(found, fs, Memory(fs, record.name)), record

    def _sources(self, store: Store) -> list[RemoteSource]:
        """Every remote that has a name here and can be opened, as another copy of what this repository holds."""
        found = []
        for record in records(store.fs):
            try:
                remote = open_remote(record.url, single_writer=record.single_writer)
            except CoralError as error:
                _log.warning("%s: the remote %s cannot be asked: %s", store.fs.root, record.name, error)
                continue
            found.append(RemoteSource(store, Side(remote, store.fs, Memory(store.fs, record.name))))
        return found

    def _fetch(
        self,
        remote: str | os.PathLike[str],
        *,
        keep: str | None = None,
        depth: int | None = None,
        head: bool = False,
        merge: Winner | None = None,
        progress: Progress | None = None,
    ) -> Fetched:
        """Fetch, and move refs: those that follow the remote, and a branch of our own to `keep` up."""
        store = self._store
        with self._remotely("fetching from", remote):
            side, record = self._side(remote)
            with intent(store.fs, "fetch", []) as operation:
                names = partial_names(store.fs)
                done, heads, tags = fetch(store, side, operation, depth=depth, names=names, progress=progress)
                moved = []
                if record is not None:
                    for name, entry in heads.items():
                        moved += [name] if self._track(f"{record.name}/{name}", entry.value, why="fetch") else []
                    for ref in _refs.names(store.fs, "remotes"):
                        if ref.startswith(f"{record.name}/") and ref.removeprefix(f"{record.name}/") not in heads:
                            self._track(ref, None, why="fetch: it is gone")
                done.moved = tuple(moved)
                done.tags, done.refused_tags = self._take_tags(tags)
                if head:
                    keep = done.head if done.head in heads else next(iter(heads), None)
                    if keep is not None and keep != _resolve.head(store):
                        self._move(_refs.HEAD, f"refs/heads/{keep}", why="clone")
                if keep is not None and (head or keep in heads):
                    self._keep_up(operation, keep, heads[keep].value or "", side.url, merge)
                elif keep is not None:
                    raise UnknownRef(keep, heads, detail=f"{side.url} has no such branch")
            store.acknowledge()
        _log.info("%s: fetched: %s", store.fs.root, done)
        return done

    def _keep_up(self, operation: Operation, branch: str, theirs: str, url: str, merge: Winner | None) -> None:
        """Move a branch on to where it is over there; where that would lose commits, merge, or raise Diverged."""
        target, folder, graph = theirs, _refs.folder_of("heads", branch), Graph.of(self._store)
        while True:
            before = _refs.read(self._store.fs, folder, lenient=True)
            ours = before.value if before else None
            if ours is not None:
                if any(commit.id == theirs for commit in graph.ancestors([ours])):
                    return
                target = theirs
                if not any(commit.id == ours for commit in graph.ancestors([theirs])):
                    if merge is None:
                        raise Diverged(
                            f"{branch} is at {ours[:12]} here and at {theirs[:12]} at {url}, and neither leads to the "
                            'other: both were committed to. Pull with merge="ours" or merge="theirs", which says whose '
                            "weights the branch goes on with, or go on on another branch.",
                            ref=branch, ours=ours, theirs=theirs,
                        )  # fmt: skip
                    target = merged(self._store, operation, ours, theirs, f"merge {branch} of {url}", merge)
            try:
                self._store.ensure_history_synced()
                self._store.move_ref(folder, target, after=before, why="pull")
                return
            except Conflict:
                continue

    def _track(self, name: str, value: str | None, *, why: str) -> bool:
        """Have a remote-tracking ref name a commit, or none; whether it did not."""
        return self._move(_refs.folder_of("remotes", check_ref_name(name)), value, why=why)

    def _move(self, folder: str, value: str | None, *, why: str) -> bool:
        while True:
            before = _refs.read(self._store.fs, folder, lenient=True)
            if (before.value if before else None) == value:
                return False
            try:
                self._store.move_ref(folder, value, after=before, why=why)
                return True
            except Conflict:
                continue

    def _tag_entries(self) -> dict[str, _refs.RefEntry]:
        fs = self._store.fs
        found = {name: _refs.read(fs, _refs.folder_of("tags", name)) for name in _refs.names(fs, "tags")}
        return {name: entry for name, entry in found.items() if entry is not None and entry.value is not None}

    def _take_tags(self, tags: Mapping[str, _refs.RefEntry]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Put tags that came; one that is elsewhere here is moved only where a run's policy moves it, on both sides."""
        moved, refused = [], []
        for name, theirs in tags.items():
            folder = _refs.folder_of("tags", name)
            ours = _refs.read(self._store.fs, folder, lenient=True)
            if ours is not None and ours.value == theirs.value:
                continue
            if ours is not None and ours.value and (ours.run is None or theirs.run is None):
                refused.append(name)
                continue
            try:
                self._store.move_ref(folder, theirs.value, after=ours, why="fetch", run=theirs.run)
                moved.append(name)
            except Conflict:
                refused.append(name)
        return tuple(moved), tuple(refused)

    @contextmanager
    def _remotely(self, doing: str, remote: str | os.PathLike[str]) -> Iterator[None]:
        where = os.fspath(remote)
        shown = where if not is_url(remote) else where.partition("://")[0] + "://..." if "://" in where else where
        with storage_errors(f"{doing} {shown}"):
            yield
