"""From what a user calls a commit to its id.

HEAD   <branch>   <tag>   <remote>/<branch>   <6 or more hex digits>
best   last   step:500   <branch>@best   <branch>@step:500   <remote>/<branch>@best
<any>~2   <any>^
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from coral.errors import AmbiguousRef, CorruptObject, MissingObject, UnknownRef, UnsafeInput
from coral.objects import Commit, is_id
from coral.store import Store, _refs

_SUFFIX = re.compile(r"(?:\^|~[0-9]{0,6})\Z")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_KINDS = ("heads", "tags", "remotes")
_IN_RUN = re.compile(r"best|last|step:[0-9]{1,19}")


def head(store: Store) -> str:
    """The name of the branch that HEAD is on; `main` in a new repository."""
    entry = _refs.read(store.fs, _refs.HEAD)
    if entry is None or entry.value is None:
        return "main"
    try:
        if entry.value.startswith("refs/heads/"):
            return _refs.check_ref_name(entry.value.removeprefix("refs/heads/"))
    except UnsafeInput:
        pass
    raise CorruptObject(f"HEAD names {entry.value[:80]!r}, which is no branch. Run fsck.", path=_refs.HEAD)


def tip(store: Store, kind: str, name: str) -> str | None:
    """The commit a branch (kind "heads") or tag ("tags") names, or None where there is no such ref."""
    entry = _refs.read(store.fs, _refs.folder_of(kind, name))
    if entry is None or entry.value is None:
        return None
    if not is_id(entry.value):
        raise CorruptObject(f"{name} names {entry.value[:80]!r}, which is no commit")
    return entry.value


def all_refs(store: Store, kind: str) -> dict[str, str]:
    """Every branch or tag with its commit, by name."""
    found = ((name, tip(store, kind, name)) for name in _refs.names(store.fs, kind))
    return {name: commit for name, commit in found if commit is not None}


def known_refs(store: Store, *kinds: str) -> list[str]:
    """Names for an error to suggest: of those refs that can be read."""
    found = []
    for kind in kinds:
        for name in _refs.names(store.fs, kind):
            with suppress(CorruptObject):
                found += [name] if tip(store, kind, name) else []
    return found


def resolve(store: Store, ref: str) -> str:
    """The id of the commit that `ref` means. UnknownRef (with near names) or AmbiguousRef where it is no single one."""
    if not isinstance(ref, str) or not ref or len(ref) > 300:
        raise UnknownRef(str(ref)[:80], detail="a ref is a non-empty str")
    suffixes = []
    while match := _SUFFIX.search(ref):
        suffixes.append(match[0])
        ref = ref[: match.start()]
    commit = _base(store, ref)
    for suffix in reversed(suffixes):
        for _ in range(1 if suffix in ("^", "~") else int(suffix[1:])):
            parents = store.read_commit(commit).parents
            if not parents:
                raise UnknownRef(ref + "".join(reversed(suffixes)), detail=f"{commit[:12]} has no parent")
            commit = parents[0]
    return commit


def _base(store: Store, ref: str) -> str:
    if ref == "HEAD":
        return _branch(store, head(store), ref)
    if is_id(ref):
        with store.copies() as copies:
            if any(stored.entry.kind == "commit" for stored in copies.all(ref)):
                return ref
            if copies.unreadable is not None:
                raise copies.unreadable
        return _unknown(store, ref)
    branch, at, in_run = ref.rpartition("@")
    if _IN_RUN.fullmatch(in_run):
        return _in_run(store, _branch(store, branch if at else head(store), ref), in_run, ref)
    for kind in _KINDS:
        if ref.startswith(f"refs/{kind}/"):
            return named(store, kind, ref.removeprefix(f"refs/{kind}/")) or _unknown(store, ref)
    found = {kind: commit for kind in _KINDS if (commit := named(store, kind, ref))}
    if len(set(found.values())) > 1:
        raise AmbiguousRef(ref, [f"refs/{kind}/{ref}" for kind in found])
    if found:
        return next(iter(found.values()))
    if _PREFIX.fullmatch(ref):
        ids = sorted(id for id in store.index.with_prefix(ref) if _is_commit(store, id))
        if len(ids) > 1:
            raise AmbiguousRef(ref, ids)
        if ids:
            return ids[0]
        if store.index.unreadable is not None:
            raise store.index.unreadable
    return _unknown(store, ref)


def named(store: Store, kind: str, name: str) -> str | None:
    """The commit that the branch or tag of any name, even one that cannot be, names; or None."""
    try:
        _refs.check_ref_name(name)
    except ValueError:  # UnsafeInput: no ref can have that name
        return None
    return tip(store, kind, name)


def _branch(store: Store, branch: str, ref: str) -> str:
    """The commit that a branch here is at, or else one that follows a remote."""
    for kind in ("heads", "remotes"):
        if found := named(store, kind, branch.removeprefix(f"refs/{kind}/")):
            return found
    known = known_refs(store, "heads", "remotes")
    if ref in ("HEAD", "best", "last") or ref.startswith("step:"):
        there = f"; there are: {', '.join(sorted(known)[:10])}" if known else ""
        raise UnknownRef(ref, detail=f"branch {branch!r} has no commit yet{there}")
    raise UnknownRef(branch, known)


def _unknown(store: Store, ref: str) -> NoReturn:
    raise UnknownRef(ref, ["HEAD", *known_refs(store, *_KINDS)])


def _is_commit(store: Store, id: str) -> bool:
    with store.copies() as copies:
        found = copies.known(id)
        if found is None and copies.unreadable is not None:
            raise copies.unreadable
    return found is not None and found.entry.kind == "commit"


def chain(store: Store, commit: str) -> Iterator[Commit]:
    """A checkpoint and those its training went on from, newest first: its run's, then what that resumed, and so on.

    It ends where what was resumed is not here: that need not be an ancestor, and may have been another branch's.
    """
    seen = set()
    at: str | None = commit
    while at is not None and at not in seen:
        seen.add(at)
        try:
            found = store.read_commit(at)
        except MissingObject:
            if at == commit:
                raise
            return
        yield found
        at = found.previous if is_id(found.previous) else None


def _newest_of_a_run(store: Store, commit: str) -> str:
    """The newest commit that a run made, behind any made by hand; the given one if there is none."""
    at = commit
    while True:
        found = store.read_commit(at)
        if found.run is not None:
            return at
        if not found.parents:
            return commit
        at = found.parents[0]


def _in_run(store: Store, tip: str, what: str, ref: str) -> str:
    if what == "last":
        return tip
    for commit in chain(store, _newest_of_a_run(store, tip)):
        if what == "best" and "best" in commit.reasons and not commit.pruned:
            return commit.id
        if what.startswith("step:") and commit.step == int(what[5:]):
            return commit.id
    raise UnknownRef(ref, detail=f"the newest run there has no {'best yet' if what == 'best' else what}")
