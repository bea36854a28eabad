"""The states in which a loss of power can leave a disk, made from a trace of filesystem operations.

Two models. *weak*, the least that POSIX promises: each directory entry that was not synced has any of the values it
had since (so a new folder may be missing with all that is in it, and a rename may have added the new name, or removed
the old one, or both, or neither). *ext4*: entries reach the disk in order, so any prefix of the operations; a sync
takes all that came before it along. In both, what was written to a file and not synced is there in full, or not
at all, or half, or as zeros, or as garbage.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from memory import Op, Tree

MODES = ("none", "full", "half", "zeros", "garbage")
MODELS = ("weak", "ext4")

Key = tuple[int, str]  # a folder's inode and a name in it


class Plan(NamedTuple):
    """One state: how many of its pending operations each entry has seen, and how each unsynced file fared."""

    seen: tuple[int, ...]
    modes: tuple[str, ...]
    cut: int = 2  # `half` keeps one byte in so many; `garbage` begins there


class Journal:
    """What a disk is sure to hold, and what it may hold, after the operations applied so far."""

    def __init__(self, tree: Tree, model: str = "weak") -> None:
        assert model in MODELS
        self.model = model
        self.durable = {inode: dict(entries) for inode, entries in tree.folders.items()}
        self.safe = dict(tree.files)
        self.dirty: dict[int, list[bytes]] = {}
        self.lost: set[int] = set()  # an fsync of it failed: a later one that succeeds proves nothing
        self.pending: list[list[tuple[Key, int | None]]] = []  # in order; one operation may set two entries
        self._fates: dict[tuple[int, int, int, str, int], bytes] = {}  # what became of files, for the next time

    def apply(self, op: Op) -> None:
        """Take one more operation of the trace into account."""
        match op.kind:
            case "create" | "mkdir" | "link":
                if op.kind == "create":
                    self.safe[op.inode] = b""
                elif op.kind == "mkdir":
                    self.durable[op.inode] = {}
                self._enter([((op.folder, op.name), op.inode)])
            case "replace":
                self._enter([((op.folder, op.name), op.inode), (op.source, None)])
            case "unlink":
                self._enter([((op.folder, op.name), None)])
            case "write":
                self.dirty.setdefault(op.inode, []).append(op.data)
            case "fsync_failed":
                self.lost.add(op.inode)
            case "fsync":
                if op.inode in self.dirty and op.inode not in self.lost:
                    self.safe[op.inode] += b"".join(self.dirty.pop(op.inode))
                if self.model == "ext4":
                    self._flush(None)
            case "fsync_dir":
                self._flush(None if self.model == "ext4" else op.folder)
            case "mark":
                pass
            case unknown:
                raise AssertionError(unknown)

    def _enter(self, changes: list[tuple[Key, int | None]]) -> None:
        if self.model == "ext4":
            self.pending.append(changes)
        else:
            self.pending.extend([change] for change in changes)

    def _flush(self, folder: int | None) -> None:
        keep = []
        for changes in self.pending:
            if folder is None or changes[0][0][0] == folder:
                _set(self.durable, changes)
            else:
                keep.append(changes)
        self.pending = keep

    def plans(self, rng: random.Random, cap: int) -> list[Plan]:
        """Up to `cap` different states: all of them where there are no more, else the extremes and a sample."""
        options = self._options()
        total = math.prod(options) * len(MODES) ** len(self.dirty)
        if total <= cap:
            every = itertools.product(
                itertools.product(*(range(n) for n in options)), itertools.product(MODES, repeat=len(self.dirty))
            )
            return [Plan(seen, modes) for seen, modes in every]
        plans = dict.fromkeys(itertools.islice(self._extremes(options, rng), max(2, cap // 2)))
        for _ in range(4 * cap):
            if len(plans) >= cap:
                break
            modes = tuple(rng.choice(MODES) for _ in self.dirty)
            luck = rng.choice((0.1, 0.5, 0.9))  # how much of what came last is there
            seen = tuple(n - 1 if rng.random() < luck else rng.randrange(n) for n in options)
            plans[Plan(seen, modes, rng.choice((2, 3, 7, 64)))] = None
        return list(plans)

    def _options(self) -> list[int]:
        if self.model == "ext4":
            return [len(self.pending) + 1]
        return [len(values) for values in self._values().values()]

    def _values(self) -> dict[Key, list[int | None]]:
        """Each unsynced entry, and what it may hold: what is durable, then what each operation made of it."""
        values: dict[Key, list[int | None]] = {}
        for changes in self.pending:
            for key, value in changes:
                values.setdefault(key, [self.durable[key[0]].get(key[1])]).append(value)
        return values

    def _extremes(self, options: list[int], rng: random.Random) -> Iterator[Plan]:
        """All of the entries, none, all but one, one alone; each with all unsynced data in one mode."""
        everything = tuple(n - 1 for n in options)
        nothing = (0,) * len(options)
        modes = MODES if self.dirty else MODES[:1]
        for mode in modes:
            for seen in (everything, nothing):
                yield Plan(seen, (mode,) * len(self.dirty))
        single = [i for i, n in enumerate(options) if n > 1]
        rng.shuffle(single)
        for i in single:
            for seen in (
                (*everything[:i], 0, *everything[i + 1 :]),
                (*nothing[:i], options[i] - 1, *nothing[i + 1 :]),
            ):
                for mode in modes:
                    yield Plan(seen, (mode,) * len(self.dirty))

    def state(self, plan: Plan) -> Tree:
        """The tree that a plan leaves."""
        folders = {inode: dict(entries) for inode, entries in self.durable.items()}
        if self.model == "ext4":
            for changes in self.pending[: plan.seen[0]]:
                _set(folders, changes)
        else:
            for (key, values), seen in zip(self._values().items(), plan.seen, strict=True):
                _set(folders, [(key, values[seen])])
        files = dict(self.safe)
        for (inode, parts), mode in zip(self.dirty.items(), plan.modes, strict=True):
            fate = inode, len(files[inode]), len(parts), mode, plan.cut
            if fate not in self._fates:
                self._fates[fate] = files[inode] + _mangle(b"".join(parts), mode, plan.cut, inode)
            files[inode] = self._fates[fate]
        return Tree(folders, files)


def _set(folders: dict[int, dict[str, int]], changes: list[tuple[Key, int | None]]) -> None:
    for (folder, name), inode in changes:
        if inode is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = inode


def _mangle(data: bytes, mode: str, cut: int, seed: int) -> bytes:
    match mode:
        case "none":
            return b""
        case "full":
            return data
        case "half":
            return data[: len(data) // cut]
        case "zeros":
            return bytes(len(data))
        case _:
            keep = len(data) // cut
            return data[:keep] + random.Random(seed).randbytes(len(data) - keep)
