"""Receiving copies from packs of the other side, by ranges, into packs here that are checked before they count.

Whole tensors are compared with their SHA-256 as they arrive, by the threads that fetch them: one hashes while another
waits, and the sums that their pack here gets are those of the very bytes that were compared. Differences and objects
are read back from the finished pack, and decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from coral._digest import BLOCK, Bytes, sha256, tensor_id
from coral.errors import CorruptObject, MissingExtra
from coral.filesystem import ReadFile
from coral.maintenance import Progress
from coral.maintenance._inventory import Copy
from coral.objects import State, decode_commit, decode_tree
from coral.remotes._objects import RemoteObjects, runs
from coral.remotes._side import Side, each_at_once
from coral.remotes._transfer import Counter
from coral.store import Copies, Operation, Store, Stored
from coral.store._chain import verify_tensors
from coral.store._pack import RAW, Directory, Entry, path_of, read_object
from coral.store._pack_writer import PackWriter

__all__ = ["receive"]

_FULL = 256 << 20  # bytes after which what comes goes on in another pack: what a cut may cost
_STEP = 8 * BLOCK  # bytes asked for at once


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range of a pack to ask for: some whole entries, or some blocks of one."""

    pack: str
    offset: int
    size: int
    entries: tuple[Entry, ...]

    def held(self, entry: Entry) -> slice:
        """Where in the range the entry lies, or what the range has of it."""
        return slice(max(entry.offset - self.offset, 0), min(entry.offset + entry.size - self.offset, self.size))


def receive(
    ours: Store,
    side: Side,
    operation: Operation,
    copies: Mapping[str, Copy],
    objects: RemoteObjects,
    progress: Progress | None,
) -> int:
    """Bring copies here, what they are differences from before them; returns the bytes that came.

    Objects go last: what they name is here by then. Raises CorruptObject for bytes that are not what was stored,
    before anybody can see them.
    """
    counter = Counter(progress, sum(copy.size for copy in copies.values()))
    for batch in _batches(copies, objects):

        def fill(writer: PackWriter, batch: list[tuple[str, list[Entry]]] = batch) -> None:
            _copy(side, batch, writer, counter)

        with ours.copies() as opened, _refused(side):
            ours.write_pack(fill, operation, durable=True, check=lambda *pack: _check(opened, *pack))
    return counter.sent


def _batches(copies: Mapping[str, Copy], objects: RemoteObjects) -> Iterator[list[tuple[str, list[Entry]]]]:
    """What goes into one pack here: entries of some packs over there, none of which needs another of the same batch."""
    depths: dict[str, int] = {}

    def depth(id: str) -> int:
        if id not in depths:
            base = copies[id].base if id in copies else None
            depths[id] = 0 if base is None or base not in copies else depth(base) + 1
        return depths[id]

    levels: dict[int, dict[str, list[Entry]]] = {}
    last = 1 << 30
    for id, copy in copies.items():
        entry = objects.entry(copy)
        level = depth(id) if entry.kind == "tensor" else last
        levels.setdefault(level, {}).setdefault(copy.pack, []).append(entry)
    for level in sorted(levels):
        batch: list[tuple[str, list[Entry]]] = []
        size = 0
        for pack, entries in levels[level].items():
            for entry in sorted(entries, key=lambda entry: entry.offset):
                if not batch or batch[-1][0] != pack:
                    batch.append((pack, []))
                batch[-1][1].append(entry)
                size += entry.size
                if size >= _FULL:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch


def _copy(side: Side, batch: list[tuple[str, list[Entry]]], writer: PackWriter, counter: Counter) -> None:
    """Write what comes, in the order in which it was asked for."""
    pieces = [piece for pack, entries in batch for piece in _pieces(pack, entries)]

    def read(piece: _Piece) -> Bytes:
        data = side.fs.remote.read_array(path_of(piece.pack), piece.offset, piece.size)
        for entry in piece.entries:
            if entry.kind == "tensor" and entry.codec == RAW:
                _compare(entry, data[piece.held(entry)], max(piece.offset - entry.offset, 0))
        return data

    arriving = zip(pieces, each_at_once(read, pieces), strict=True)
    for piece, data in arriving:
        counter.add(sum(data[piece.held(entry)].size for entry in piece.entries), piece.size)
        for entry in piece.entries:
            first = data[piece.held(entry)]
            if first.size == entry.size:
                writer.add_stored(entry, [first] if entry.size else [])
            else:
                writer.add_stored(entry, _long(entry, first, arriving, counter))


def _long(entry: Entry, first: Bytes, arriving: Iterable[tuple[_Piece, Bytes]], counter: Counter) -> Iterator[Bytes]:
    """The parts of an entry that is too long to be asked for at once."""
    yield first
    left = entry.size - first.size
    while left:
        _, data = next(iter(arriving))
        counter.add(data.size, data.size)
        left -= data.size
        yield data


def _pieces(pack: str, entries: list[Entry]) -> Iterator[_Piece]:
    for run in runs(entries):
        start, end = run[0].offset, max(entry.offset + entry.size for entry in run)
        step = _STEP if len(run) == 1 else end - start
        for at in range(start, end, step) if end > start else (start,):
            yield _Piece(pack, at, min(step, end - at), tuple(run))


def _compare(entry: Entry, data: Bytes, at: int) -> None:
    """Compare blocks of a whole tensor, from byte `at` on, with what its id says. CorruptObject if they differ."""
    digests = b"".join(sha256(data[start : start + BLOCK]) for start in range(0, data.size, BLOCK))
    first = at // BLOCK * len(sha256(b""))
    if digests != entry.digests[first : first + len(digests)]:
        raise CorruptObject(f"tensor {entry.id[:12]} has other bytes from byte {at} on")


def _check(copies: Copies, directory: Directory, file: ReadFile) -> None:
    """Compare a pack that has no name yet with what its ids say, but for the bytes of whole tensors: see `_compare`."""
    differences = []
    for entry in directory.entries():
        if entry.kind != "tensor":
            _check_object(file, entry)
        elif entry.codec != RAW:
            differences.append(copies.chain(Stored(directory, file, entry)))
        elif entry.dtype is None or tensor_id(entry.dtype, entry.shape, entry.digests) != entry.id:
            raise CorruptObject(f"tensor {entry.id[:12]} has other sums than its id")
    for _, problem in verify_tensors(differences):
        if problem is not None:
            raise problem


@contextmanager
def _refused(side: Side) -> Iterator[None]:
    """Say where damaged bytes came from, and what to do."""
    try:
        yield
    except MissingExtra:
        raise
    except (CorruptObject, EOFError) as error:
        raise CorruptObject(
            f"what came from {side.url} is not what was stored: {error}. Nothing of it is kept: try again, and run "
            "fsck there."
        ) from error


def _check_object(file: ReadFile, entry: Entry) -> None:
    data, what = read_object(file, entry), f"{entry.kind} {entry.id[:12]}"
    match entry.kind:
        case "commit":
            decode_commit(data, entry.id)
        case "tree":
            decode_tree(data, what)
        case _:
            State.decode(data, what)
