"""Encoding commits: read, encode, write, read back, compare."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from coral._digest import fold, pool
from coral.delta import BLOCK_ELEMENTS, Choice, DeltaConfig, carrier
from coral.errors import CorruptObject
from coral.filesystem import ReadFile
from coral.maintenance._bases import Bases, Encoding
from coral.maintenance._marking import trees_of
from coral.objects import Tree
from coral.store import Copies, Operation, Store, Stored
from coral.store._chain import encoded, verify_tensors
from coral.store._pack import Directory, Entry
from coral.store._pack_writer import PackWriter

__all__ = ["Done", "Encoder", "Task", "Unreadable", "write_encoded"]

_log = logging.getLogger("coral")
_T = TypeVar("_T")

Block: TypeAlias = tuple[bytes, int]
"""An encoded block, and the folded sum of what it encodes."""


@dataclass(frozen=True, slots=True)
class Task:
    """A commit to encode: as a keyframe, or against the commit `key`. A keyframe's is the one before it, if any.

    `tensors` are the ids of those to encode, and the bytes that each is stored in now.
    """

    commit: str
    keyframe: bool
    key: str | None
    tensors: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """As JSON, for another process."""
        return {"commit": self.commit, "keyframe": self.keyframe, "key": self.key, "tensors": dict(self.tensors)}


@dataclass(frozen=True, slots=True)
class Done:
    """What came of some tasks. Sizes in bytes."""

    pack: str = ""  # the pack that was written, and read back
    commits: int = 0
    tensors: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0


class _Stale(Exception):
    """What was planned is no longer so: a commit was pruned meanwhile. Or nothing is worth encoding."""


class Unreadable(Exception):
    """A tensor, or what it was to be a difference from, cannot be read."""

    def __init__(self, id: str, error: Exception) -> None:
        super().__init__(str(error))
        self.id = id


class Encoder:
    """Encodes commits, one pack at a time."""

    def __init__(self, store: Store, config: DeltaConfig, operation: Operation, *, aggressive: bool) -> None:
        self._store = store
        self._config = config
        self._operation = operation
        self._aggressive = aggressive
        self._unreadable: set[str] = set()
        self._sound: set[str] = set()  # bases that were compared with their SHA-256
        self._known: dict[tuple[str, bool], dict[str, Choice]] = {}  # what was chosen for the same keyframe

    def run(self, tasks: list[Task]) -> Done:
        """Write one pack with what these commits have, encoded; none if nothing becomes shorter.

        What cannot be read is left as it is, for fsck to name.
        """
        while True:
            try:
                return self._run(tasks)
            except _Stale:
                return Done()
            except Unreadable as problem:
                _log.warning("%s: tensor %s is not repacked: %s", self._store.fs.root, problem.id[:12], problem)
                self._unreadable.add(problem.id)

    def _run(self, tasks: list[Task]) -> Done:
        self._operation.needs(task.key for task in tasks if task.key)
        with self._store.copies() as copies:

            def fill(writer: PackWriter) -> list[tuple[str, int, int]]:
                return list(self._encode(tasks, copies, writer))

            written, directory = self._store.write_pack(
                fill, self._operation, durable=True, check=lambda *pack: _verify(copies, self._sound, *pack)
            )
        return Done(
            pack=directory.name,
            commits=len({commit for commit, _, _ in written}),
            tensors=len(written),
            raw_bytes=sum(nbytes for _, nbytes, _ in written),
            stored_bytes=sum(size for _, _, size in written),
        )

    def _encode(self, tasks: list[Task], copies: Copies, writer: PackWriter) -> Iterator[tuple[str, int, int]]:
        """Encode tensors and write them; (commit, raw bytes, stored bytes) of each."""
        for task, stored in write_encoded(writer, self._encodings(tasks, copies)):
            yield task.commit, stored.nbytes, stored.size

    def _encodings(self, tasks: list[Task], copies: Copies) -> Iterator[tuple[Task, Encoding]]:
        seen: set[str] = set()
        for task in tasks:
            own = set(task.tensors) - seen - self._unreadable
            seen |= own
            of_key = self._trees(task.key) if task.key else ({}, {})
            for part, (mine, theirs) in enumerate(zip(self._trees(task.commit), of_key, strict=True)):
                candidates = theirs if self._config.max_depth > 1 or not task.keyframe else {}
                key = task.key if task.key and not task.keyframe else task.commit
                known = self._known.setdefault((key, bool(part)), {})
                bases = Bases(
                    copies, self._config, candidates, self._unreadable, task.keyframe, self._aggressive, known
                )
                for name, entry in mine.items():
                    if entry.id in own and entry.nbytes >= self._config.min_size and entry.nbytes:
                        own.discard(entry.id)
                        try:
                            encoding = bases.encoding(name, entry)
                        except (CorruptObject, EOFError) as error:
                            raise Unreadable(entry.id, error) from error
                        if encoding.pays(task.tensors[entry.id]):
                            yield task, encoding

    def _trees(self, commit: str) -> tuple[Tree, Tree]:
        try:
            return trees_of(self._store, self._store.read_commit(commit))
        except CorruptObject as error:
            raise _Stale from error


def write_encoded(writer: PackWriter, encodings: Iterable[tuple[_T, Encoding]]) -> Iterator[tuple[_T, Entry]]:
    """Encode tensors side by side, and write them in turn; the entry of each, with what came with its encoding."""
    waiting: list[tuple[_T, Encoding, int]] = []

    def units() -> Iterator[tuple[Encoding, int, int]]:
        for what, encoding in encodings:
            parts = list(encoding.source.units())
            waiting.append((what, encoding, len(parts)))
            yield from ((encoding, start, end) for start, end in parts)

    results = pool().map(_encode_unit, units())
    for first in results:
        what, encoding, parts = waiting.pop(0)

        def blocks(first: list[Block] = first, parts: int = parts) -> Iterator[Block]:
            yield from first
            for _ in range(parts - 1):
                yield from next(results)

        codec, base = encoding.choice.codec, encoding.base
        entry = encoding.source.entry._replace(
            codec=codec.code, params=codec.params, base=base.entry.id if base else None
        )
        yield what, writer.add_stored(entry, encoded(blocks()))


def _encode_unit(unit: tuple[Encoding, int, int]) -> list[Block]:
    """The blocks of a unit, each with the folded sum of its bits."""
    encoding, start, end = unit
    source, base, codec = encoding.source, encoding.base, encoding.choice.codec
    assert source.entry.dtype is not None
    bits = carrier(source.entry.dtype)
    try:
        current = source.peek(start, end - start, "source").view(bits)  # what is wrong shows when it is verified
        other = None if base is None else base.peek(start, end - start, "base").view(bits)
    except (CorruptObject, EOFError) as error:
        raise Unreadable(source.entry.id, error) from error
    found = []
    for at in range(0, current.size, BLOCK_ELEMENTS):
        part = slice(at, at + BLOCK_ELEMENTS)
        block = codec.encode(current[part], None if other is None else other[part])
        found.append((block, fold(current[part].view(np.uint8))))
    return found


def _verify(copies: Copies, sound: set[str], directory: Directory, file: ReadFile) -> None:
    """Read back a pack that has no name yet, decode all that is in it, and look at the bases that are not yet `sound`.

    A difference from a damaged base decodes to what it should, as long as that is damaged in the same way.
    """
    if not len(directory):
        raise _Stale
    chains = [copies.chain(Stored(directory, file, entry)) for entry in directory.entries()]
    bases = {base.entry.id: base for chain in chains for base in chain.bases() if base.entry.id not in sound}
    for chain, problem in verify_tensors([*bases.values(), *chains]):
        if problem is not None:
            raise Unreadable(chain.entry.id, problem) from problem
    sound.update(bases)
