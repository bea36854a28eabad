"""Refs: a folder of numbered entries each, moved by whoever links the next number first. The folder is the reflog.

    refs/heads/<name>/0000000007    {"ref": <folder>, "seq": 7, "value": <commit>, "prev": <nonce of entry 6>, ...}

An entry is durable before it is linked, and linking fails where the number is taken: compare-and-swap without a lock.
Old entries are folded into segments (`0000000001-0000001024.log`, the entries' lines in order), so that a long
history opens fast. A deleted ref ends in an entry whose value is null.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from coral import _json
from coral.errors import Conflict, CorruptObject, LimitExceeded, UnsafeInput
from coral.filesystem import FileSystem
from coral.objects import is_id, is_time
from coral.store._files import LIMIT, make_folder, nonce, put_if_absent, seal, unseal

_log = logging.getLogger("coral")

HEAD = "refs/HEAD"
FOLD = 1024
"""Entries in a segment."""
_KEEP = 64  # the newest entries stay files of their own

_SAFE = re.compile(r"[A-Za-z0-9._/-]+")
_GAP = 1 << 20  # numbers that may be missing in a row
_ENTRY = re.compile(r"[0-9]{10}")
_SEGMENT = re.compile(r"([0-9]{10})-([0-9]{10})\.log")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_RESERVED = {"HEAD", "best", "last"}


@dataclass(frozen=True, slots=True)
class RefEntry:
    """One value that a ref has had. It says which ref's it is, and which of its values: a file out of place shows."""

    ref: str  # the ref's folder
    seq: int
    value: str | None
    prev: str
    nonce: str
    time: float
    why: str
    synced: bool = True  # written durably; otherwise whoever builds on it for good syncs the folder first
    run: str | None = None  # which run's policy moved it, where it was not moved by hand

    def encode(self) -> bytes:
        fields: dict[str, Any] = {
            "ref": self.ref,
            "seq": self.seq,
            "value": self.value,
            "prev": self.prev,
            "nonce": self.nonce,
            "time": self.time,
            "why": self.why,
        }
        if not self.synced:
            fields["synced"] = False
        if self.run is not None:
            fields["run"] = self.run
        return seal(_json.dumps(fields))

    @classmethod
    def decode(cls, ref: str, seq: int, content: bytes, path: str) -> RefEntry:
        fields = _json.loads(unseal(content, path), path)
        match fields:
            case {"ref": str(its_ref), "seq": int(its_seq)} if (its_ref, its_seq) != (ref, seq):
                raise CorruptObject(f"{path} is entry {its_seq} of {its_ref[:300]}: it is out of place", path=path)
            case {
                "ref": str(),
                "seq": int(),
                "value": (str() | None) as value,
                "prev": str(prev),
                "nonce": str(nonce),
                "time": time,
                "why": str(why),
            } if is_time(time):
                run, synced = fields.get("run"), fields.get("synced", True) is not False
                return cls(
                    ref, seq, value, prev, nonce, float(time), why, synced, run if isinstance(run, str) else None
                )
            case _:
                raise CorruptObject(f"{path} is not a ref entry", path=path)


def check_ref_name(name: object, what: str = "branch") -> str:
    """Return `name` if it may name a branch, tag or remote; UnsafeInput says what is wrong with it."""
    if not isinstance(name, str) or not name:
        raise UnsafeInput(f"a {what} name is a non-empty str, not {name!r}")
    if len(name) > 200:
        raise LimitExceeded(f"the {what} name {name[:40]!r}... has {len(name)} characters; 200 is the limit")
    if len(_component(name)) > 255:
        raise LimitExceeded(
            f"the {what} name {name[:40]!r}... is too long for a file's: shorten it, or use fewer capitals"
        )
    parts = name.split("/")
    if (
        not _SAFE.fullmatch(name)
        or ".." in name
        or not all(parts)
        or any(part[0] in "-." or part.endswith(".lock") for part in parts)
        or name in _RESERVED
        or name.startswith("refs/")
        or is_id(name)
    ):
        raise UnsafeInput(
            f"{name!r} cannot name a {what}: use letters, digits and . _ - / ; no '..', '//', leading '-' or '.', "
            f"no trailing '.lock' or '/', no whole id, none of {', '.join(sorted(_RESERVED))}"
        )
    return name


def folder_of(kind: str, name: str) -> str:
    """The folder of a ref: the name is one path component, capitals escaped (some filesystems fold them)."""
    return f"refs/{kind}/{_component(name)}"


def _component(name: str) -> str:
    return "".join(c if c in _PLAIN else f"%{ord(c):02X}" for c in name)


def names(fs: FileSystem, kind: str) -> list[str]:
    """The names that have a folder under refs/<kind>, sorted; deleted ones too."""
    return components(fs.list(f"refs/{kind}"))


def components(folders: Iterable[str]) -> list[str]:
    """The names whose path components these are, sorted; what is none is left out."""
    found = []
    for component in folders:
        name = re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), component)
        with suppress(UnsafeInput):
            if _component(check_ref_name(name)) == component:
                found.append(name)
    return sorted(found)


def read(fs: FileSystem, folder: str, *, lenient: bool = False) -> RefEntry | None:
    """The newest entry, or None where there is none.

    A newest entry that is torn or changed raises CorruptObject, which names the last one that is whole. A `lenient`
    reader (one that is about to write the next entry) goes on from that one, numbered as the damaged one, with a
    warning.
    """
    files, segments = listing(fs, folder)
    for seq in sorted(files, reverse=True):
        if segments and seq <= segments[-1][1]:
            break
        try:
            entry = _entry(fs, folder, seq)
        except CorruptObject as error:
            last = _last_whole(fs, folder, seq)
            known = f"the entry before it names {last.value}" if last else "no entry before it is whole"
            if not lenient:
                raise CorruptObject(f"{error}; {known}. Run fsck.", path=error.path) from error
            _log.warning("%s; %s: going on from there", error, known)
            return replace(last, seq=seq) if last else RefEntry(folder, seq, None, "", "", 0.0, "damaged", synced=False)
        if entry is not None:
            return entry
    return _segment(fs, folder, segments[-1])[-1] if segments else None


def _last_whole(fs: FileSystem, folder: str, below: int) -> RefEntry | None:
    for entry in history(fs, folder):
        if isinstance(entry, RefEntry) and entry.seq < below:
            return entry
    return None


def history(fs: FileSystem, folder: str) -> Iterator[RefEntry | CorruptObject]:
    """Every entry, newest first; a damaged one as the error that reading it gives."""
    files, segments = listing(fs, folder)
    folded = segments[-1][1] if segments else 0
    for seq in sorted(files, reverse=True):
        if seq > folded:
            try:
                entry = _entry(fs, folder, seq)
            except CorruptObject as error:
                yield error
            else:
                if entry is not None:
                    yield entry
    for segment in reversed(segments):
        try:
            yield from reversed(_segment(fs, folder, segment))
        except CorruptObject as error:
            yield error


def missing(fs: FileSystem, folder: str) -> list[int]:
    """Numbers below the newest that neither a file nor a segment has."""
    files, segments = listing(fs, folder)
    if not files:  # only what was folded is there: the newest entries are never folded
        return [segments[-1][1] + 1] if segments else []
    gaps: list[int] = []
    following = 1
    for first, last in sorted([*segments, *((seq, seq) for seq in files)]):
        gaps += range(following, min(first, following + 100))
        following = max(following, last + 1)
    return gaps[:100]


def append(
    fs: FileSystem,
    folder: str,
    value: str | None,
    *,
    after: RefEntry | None,
    why: str,
    durable: bool,
    run: str | None = None,
) -> RefEntry:
    """Give the ref its next value, if `after` is still its newest entry; Conflict if somebody else was first."""
    if after is None or not after.synced:
        make_folder(fs, folder, durable=durable)
    if durable and after is not None:
        _sync_before(fs, folder, after)
    seq = after.seq + 1 if after else 1
    entry = RefEntry(folder, seq, value, after.nonce if after else "", nonce(), fs.now(), why, durable, run)
    if not put_if_absent(fs, f"{folder}/{seq:010d}", entry.encode(), durable=durable):
        raise Conflict(f"{folder} was moved by somebody else")
    _check_not_stale(fs, folder, entry)
    return entry


def ensure_durable(fs: FileSystem, folder: str) -> None:
    """Make the newest entry durable: whoever linked it may have died before that."""
    entry = read(fs, folder)
    if entry is not None:
        _sync_before(fs, folder, entry)
    fs.fsync_dir(folder)
    fs.fsync_dir(folder.rpartition("/")[0])


def _sync_before(fs: FileSystem, folder: str, entry: RefEntry | None) -> None:
    """Sync an entry and those before it, back to one that was written durably."""
    while entry is not None and not entry.synced:
        with suppress(FileNotFoundError):  # folded, which is durable
            fs.fsync_file(f"{folder}/{entry.seq:010d}")
        try:
            entry = _entry(fs, folder, entry.seq - 1) if entry.seq > 1 else None
        except CorruptObject:
            return  # fsck's to name


def _check_not_stale(fs: FileSystem, folder: str, entry: RefEntry) -> None:
    """A writer that slept through a fold may have taken a number that is long past: its entry is no part of the log."""
    files, segments = listing(fs, folder)
    folded = segments[-1][1] if segments else 0
    if entry.seq > folded:
        with suppress(OSError, CorruptObject):  # the ref has moved: upkeep must not say otherwise
            _fold(fs, folder, files, folded)
        return
    for segment in segments:
        if segment[0] <= entry.seq <= segment[1] and _segment(fs, folder, segment)[entry.seq - segment[0]] == entry:
            return
    with suppress(FileNotFoundError):
        fs.unlink(f"{folder}/{entry.seq:010d}")
    raise Conflict(f"{folder} was moved by somebody else, long ago")


def _fold(fs: FileSystem, folder: str, files: set[int], folded: int) -> None:
    """Fold the oldest entries once there are many; where one of them is damaged they are left for fsck to name."""
    for seq in files:
        if seq <= folded:  # left by one who died while folding
            fs.unlink(f"{folder}/{seq:010d}")
    live = [seq for seq in files if seq > folded]
    first, last = folded + 1, folded + FOLD
    if len(live) < FOLD + _KEEP or last > max(live) - _KEEP or len(live) % _KEEP:
        return
    entries = [_entry(fs, folder, seq) for seq in range(first, last + 1)]
    if None in entries:
        return
    data = b"".join(entry.encode() for entry in entries if entry)
    # never in the place of another: entries that were removed are in that one
    if put_if_absent(fs, f"{folder}/{first:010d}-{last:010d}.log", data, durable=True):
        for seq in range(first, last + 1):
            with suppress(FileNotFoundError):
                fs.unlink(f"{folder}/{seq:010d}")


def listing(fs: FileSystem, folder: str) -> tuple[set[int], list[tuple[int, int]]]:
    """The numbers of a log's entries, and the first and last of its segments, sorted.

    Files whose names are numbers that no writer can have come to are no part of it.
    """
    files, segments = set(), []
    for name in fs.list(folder):
        if _ENTRY.fullmatch(name):
            files.add(int(name))
        elif (match := _SEGMENT.fullmatch(name)) and 0 <= int(match[2]) - int(match[1]) < FOLD:
            segments.append((int(match[1]), int(match[2])))
    if files and max(files) - min(files) > _GAP:
        for lower, upper in pairwise(sorted({*files, *(last for _, last in segments)})):
            if upper - lower > _GAP:
                files = {seq for seq in files if seq <= lower}
                break
    return files, sorted(segments)


def _entry(fs: FileSystem, folder: str, seq: int) -> RefEntry | None:
    path = f"{folder}/{seq:010d}"
    try:
        return RefEntry.decode(folder, seq, fs.read(path, LIMIT), path)
    except FileNotFoundError:
        return None  # folded since it was listed


def _segment(fs: FileSystem, folder: str, segment: tuple[int, int]) -> list[RefEntry]:
    first, last = segment
    path = f"{folder}/{first:010d}-{last:010d}.log"
    lines = fs.read(path, LIMIT * 4).split(b"\n")
    if len(lines) != 2 * (last - first + 1) + 1 or lines[-1]:
        raise CorruptObject(f"{path} does not hold {last - first + 1} entries", path=path)
    pairs = zip(lines[0:-1:2], lines[1::2], strict=True)
    return [RefEntry.decode(folder, first + i, a + b"\n" + b + b"\n", path) for i, (a, b) in enumerate(pairs)]
