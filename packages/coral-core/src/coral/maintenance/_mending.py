"""Mending refs: each entry of a log that is damaged or missing is written anew, as well as it can be known.

What it was is known, in this order, from what is left of it; from commits that follow on the entry before and that
nothing else leads to; from other copies of the repository; else the entry before stands in its place. Commits that
nothing leads to, then, get branches named `lost-found/<id>`, so that they are not taken for garbage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from coral.errors import Conflict, CoralError, CorruptObject
from coral.maintenance._fsck import Examined
from coral.maintenance._gathering import Gathered
from coral.maintenance._quarantine import Quarantine
from coral.objects import decode_commit, is_id
from coral.store import Store, _refs
from coral.store._files import LIMIT
from coral.store._refs import RefEntry

__all__ = ["mend_refs"]

_COMMIT = re.compile(rb'"value":"([^"]{64})"')
_LIKE = 8  # digits in which what is left of an id may differ from it; other ids differ in about 60
_BRANCH = re.compile(rb'"value":"(refs/heads/[^"]{1,300})"')
_WHY = "fsck: in the place of an entry that was damaged"
_MOST = 1 << 20  # entries of a log that are made up for


def mend_refs(
    store: Store, quarantine: Quarantine, examined: Examined, paths: Iterable[str], gathered: Gathered
) -> list[str]:
    """Mend the refs that damaged paths are of; what was done. What is lost is looked for among what is `gathered`."""
    folders = dict.fromkeys(_folder_of(path) for path in paths)
    work = _Mending(store, quarantine, examined, gathered)
    work.gather(folders)
    for folder in folders:
        work.mend(folder)
    for folder in folders:
        work.check_value(folder)
    work.keep_dangling()
    return work.done


def _folder_of(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[: 2 if parts[1] == "HEAD" else 3])


class _Mending:
    def __init__(self, store: Store, quarantine: Quarantine, examined: Examined, gathered: Gathered) -> None:
        self._store = store
        self._fs = store.fs
        self._quarantine = quarantine
        self._examined = examined
        self._gathered = gathered
        self._displaced: dict[tuple[str, int], RefEntry] = {}  # whole entries that lie where others should
        self.done: list[str] = []

    def gather(self, folders: Iterable[str]) -> None:
        """Find entries that changed places."""
        for folder in folders:
            for seq in _refs.listing(self._fs, folder)[0]:
                raw = self._raw(f"{folder}/{seq:010d}")
                match = re.search(rb'"ref":"([^"]{1,400})","seq":([0-9]{1,10})[,}]', raw)
                if match:
                    with suppress(CorruptObject, UnicodeDecodeError):
                        ref, number = match[1].decode(), int(match[2])
                        self._displaced[ref, number] = RefEntry.decode(ref, number, raw, folder)

    def mend(self, folder: str) -> None:
        """Make a log whole."""
        files, segments = _refs.listing(self._fs, folder)
        if not files and not segments:
            self._make_anew(folder)
            return
        older: RefEntry | None = None
        for first, last in segments:
            older = self._mend_segment(folder, first, last, older)
        folded = segments[-1][1] if segments else 0
        newest = max([*files, folded + 1] if segments else [*files, 0])
        entries = {seq: self._entry(folder, seq) for seq in range(folded + 1, min(newest, folded + _MOST) + 1)}
        for seq, entry in entries.items():
            path = f"{folder}/{seq:010d}"
            made = self._made(folder, seq, entry, older, entries.get(seq + 1), self._raw(path), seq == newest)
            if made is None:  # nothing is known of it, and nothing comes before or after
                with suppress(FileNotFoundError):
                    self._quarantine.take(path)
                self.done.append(f"{path}: set aside; what it named is not known")
            elif made != entry:
                self._quarantine.replace(path, made.encode())
                self.done.append(f"{path}: mended: it names {made.value}")
            older = made or older

    def _make_anew(self, folder: str) -> None:
        """Have a branch that is gone name the one commit that it can have named."""
        value = self._value(folder, None, b"") if folder.startswith("refs/heads/") else None
        if value is not None:
            with suppress(Conflict):
                self._store.move_ref(folder, value, after=None, why="fsck: it was gone")
                self.done.append(f"{folder}: made anew: it names {value}")

    def _mend_segment(self, folder: str, first: int, last: int, older: RefEntry | None) -> RefEntry | None:
        path = f"{folder}/{first:010d}-{last:010d}.log"
        lines = self._raw(path).split(b"\n")
        raws = [b"\n".join([*lines[2 * n : 2 * n + 2], b""]) for n in range(last - first + 1)]
        entries: list[RefEntry | None] = []
        for number, raw in enumerate(raws):
            try:
                entries.append(RefEntry.decode(folder, first + number, raw, path))
            except CorruptObject:
                entries.append(None)
        changed = len(lines) != 2 * len(raws) + 1
        made: list[RefEntry] = []
        for number, entry in enumerate(entries):
            following = entries[number + 1] if number + 1 < len(entries) else self._entry(folder, last + 1)
            found = self._made(folder, first + number, entry, older, following, raws[number], newest=False)
            assert found is not None  # one that is not the newest always has one
            changed = changed or found != entry
            older = found
            made.append(found)
        if changed:
            self._quarantine.replace(path, b"".join(entry.encode() for entry in made))
            self.done.append(f"{path}: mended")
        return older

    def _made(
        self,
        folder: str,
        seq: int,
        entry: RefEntry | None,
        older: RefEntry | None,
        newer: RefEntry | None,
        raw: bytes,
        newest: bool,
    ) -> RefEntry | None:
        """What an entry of a log is to be: itself, if it is whole and follows on the one before."""
        before = older.nonce if older else ""
        found = entry or self._displaced.get((folder, seq))
        if found is not None:
            return found if older is None or found.prev == before else replace(found, prev=before)
        value = self._value(folder, older, raw) if newest else self._former(folder, older, newer, raw)
        if newest and value is None and older is None:
            return None
        # where one writes the next entry meanwhile it follows on the same nonce: as if the damaged one was not there
        nonce = newer.prev if newer else before
        return RefEntry(folder, seq, value, before, nonce, self._fs.now(), _WHY, run=older.run if older else None)

    def _value(self, folder: str, older: RefEntry | None, raw: bytes) -> str | None:
        """What the newest entry of a ref named."""
        last = older.value if older else None
        if folder == _refs.HEAD:
            return self._said(folder, raw) or last or self._any_branch()
        if older is not None and b'"value":null' in raw:
            return None
        kind, branch = folder.split("/")[1], folder.startswith("refs/heads/")
        for value in self._candidates(folder, kind, last, raw):
            if self._fetch(value) and not (branch and last and not self._follows(value, last)):
                return value
        return last

    def _former(self, folder: str, older: RefEntry | None, newer: RefEntry | None, raw: bytes) -> str | None:
        """What an entry that is not the newest named, or may have named."""
        said = self._said(folder, raw)
        if said is not None and (folder == _refs.HEAD or self._is_here(said)):
            return said
        before = older.value if older else None
        after = self._parents(newer.value)[:1] if newer and newer.value and folder != _refs.HEAD else ()
        return next((id for id in after if before is None or self._follows(id, before)), before)

    def _fetch(self, id: str) -> bool:
        return self._gathered.fetch(id, self._examined)

    def _is_here(self, id: str) -> bool:
        return id in self._examined.found.commits or self._fetch(id)

    def _said(self, folder: str, raw: bytes) -> str | None:
        """What is left of a damaged entry says that it named; None where it is another ref's."""
        ref = re.search(rb'"ref":"([^"]{1,400})"', raw)
        if ref and ref[1] != folder.encode() and folder.encode() not in raw and _alike(ref[1], folder.encode()) > 1:
            return None
        match = (_BRANCH if folder == _refs.HEAD else _COMMIT).search(raw)
        if not match or folder == _refs.HEAD:
            return match[1].decode("ascii", "replace") if match else None
        known = self._examined.found.commits
        near = [id for id in known if _alike(match[1], id.encode()) <= _LIKE]
        text = match[1].decode("ascii", "replace")
        return near[0] if len(near) == 1 else text if is_id(text) else None

    def _candidates(self, folder: str, kind: str, last: str | None, raw: bytes) -> Iterator[str]:
        said = self._said(folder, raw)
        if said:
            yield said
        loose = self._examined.report.dangling if kind == "heads" else []
        loose = [id for id in loose if last is None or (id != last and self._follows(id, last))]
        loose = loose if len(loose) == 1 else []  # which of several it was is not known
        there = list(self._elsewhere(folder, kind))
        if any(self._fetch(value) and self._follows(id, value) for value in there for id in loose):
            yield from loose  # it was here that the branch went on
        yield from there
        yield from loose

    def _elsewhere(self, folder: str, kind: str) -> Iterator[str]:
        """What the same ref of other copies names."""
        for name in _refs.components([folder.split("/")[2]]):
            for tips in self._gathered.tips("heads" if kind == "remotes" else kind):
                if value := tips.get(name.partition("/")[2] if kind == "remotes" else name):
                    yield value

    def _any_branch(self) -> str:
        names = _refs.names(self._fs, "heads")
        return f"refs/heads/{'main' if 'main' in names or not names else names[0]}"

    def check_value(self, folder: str) -> None:
        """Where a branch names what no copy is left of, have it name the newest of its earlier values that there is."""
        with suppress(CorruptObject, Conflict):
            newest = _refs.read(self._fs, folder)
            if newest is None or newest.value is None:
                return
            if folder == _refs.HEAD:
                if not newest.value.startswith("refs/heads/"):
                    self._store.move_ref(folder, self._any_branch(), after=newest, why="fsck: it named no branch")
                return
            if folder.startswith("refs/tags/") or self._fetch(newest.value):
                return
            earlier = (entry.value for entry in _refs.history(self._fs, folder) if isinstance(entry, RefEntry))
            value = next((id for id in earlier if id and self._fetch(id)), None)
            self._store.move_ref(folder, value, after=newest, why=f"fsck: {newest.value} is lost")
            self.done.append(f"{folder}: moved back from {newest.value}, which is lost, to {value}")

    def keep_dangling(self) -> None:
        """Name the commits that a damaged ref may have led to."""
        named = {entry.value for entry in self._newest()}
        for id in self._examined.report.dangling:
            if not any(value and self._follows(value, id) for value in named):
                folder = _refs.folder_of("heads", f"lost-found/{id[:12]}")
                with suppress(Conflict):
                    before = _refs.read(self._fs, folder, lenient=True)
                    if before is None or before.value != id:
                        self._store.move_ref(folder, id, after=before, why="fsck: no ref led to it")
                        self.done.append(
                            f"commit {id[:12]}, to which no ref led, is on the branch lost-found/{id[:12]}"
                        )

    def _newest(self) -> Iterator[RefEntry]:
        for kind in self._fs.list("refs"):
            for component in self._fs.list(f"refs/{kind}") if kind != "HEAD" else ():
                with suppress(CorruptObject):
                    entry = _refs.read(self._fs, f"refs/{kind}/{component}")
                    if entry is not None:
                        yield entry

    def _follows(self, commit: str, earlier: str) -> bool:
        """Whether a commit is another one, or leads to it."""
        waiting, seen = [commit], set[str]()
        while waiting:
            id = waiting.pop()
            if id == earlier:
                return True
            if id not in seen:
                seen.add(id)
                waiting += self._parents(id)
        return False

    def _parents(self, id: str) -> tuple[str, ...]:
        record = self._examined.found.commits.get(id)
        if record is not None:
            return record.parents
        try:
            return decode_commit(self._store.read_object("commit", id), id).parents
        except CoralError:
            return ()

    def _raw(self, path: str) -> bytes:
        with suppress(OSError, CorruptObject):
            return self._fs.read(path, LIMIT * 4)
        return b""

    def _entry(self, folder: str, seq: int) -> RefEntry | None:
        path = f"{folder}/{seq:010d}"
        try:
            return RefEntry.decode(folder, seq, self._fs.read(path, LIMIT), path)
        except (OSError, CorruptObject):
            return None


def _alike(a: bytes, b: bytes) -> int:
    """In how many places two texts differ."""
    return abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
