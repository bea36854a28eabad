"""T7: every bit of every file of a small repository flips, every file is cut off anywhere, removed or mixed up.

What is read then is what was stored, or an error of coral's. What reads which bytes is written down first, so that a
flipped bit is judged by the reads that it can touch, and by fsck now and then.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from memory import MemoryFileSystem
from oracle import Violation, _differs
from power_loss import Tally
from scenarios import (
    BORN,
    Annotate,
    Branch,
    Commit,
    Prune,
    Repack,
    Scenario,
    Tag,
    World,
    build,
    limits,
    same_names,
    state,
    weights,
)

from coral import CoralError, Repository
from coral.errors import CorruptObject, StorageError, storage_errors
from coral.store import _refs
from coral.store._pack import read_directory
from coral.store._refs import RefEntry

STEPS = (
    *BORN,
    Commit(3),
    Commit(4),
    Repack(),
    Branch("Old/1", "main~1"),
    Tag("v1"),
    Prune("main~2"),
    Annotate("main", 9),
)
"""For whole tensors, differences, a record without its tensors, notes, and every kind of ref."""
MANY = 200_000
"""Bytes that the repository may have: every case is to be tried."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to read: `get` reads it; `want` is what that gives where nothing is damaged.

    `needs` are the objects that it is made of. What a note has put in its place may be gone, with a warning: then it is
    what it was `before`.
    """

    name: str
    get: Callable[[Repository], object]
    want: object
    needs: frozenset[str]
    before: object = None

    @property
    def of_refs(self) -> bool:
        return self.name.startswith("the refs") or self.name.startswith("the log")


def _refs_of(repo: Repository) -> object:
    return dict(repo.branches()), dict(repo.tags()), repo.head


def _log_of(repo: Repository, branch: str) -> tuple[list[str | None], list[str]]:
    fs, folder = repo.store.fs, _refs.folder_of("heads", branch)
    with storage_errors("reading the log"):
        entries = list(_refs.history(fs, folder))
        if damaged := [entry for entry in entries if not isinstance(entry, RefEntry)]:
            raise damaged[0]
        if _refs.missing(fs, folder):  # this is how fsck knows
            raise CorruptObject(f"entries of {folder} are missing", path=folder)
    return [entry.value for entry in entries], [commit.id for commit in repo.log(branch)]


def pieces(fs: MemoryFileSystem, world: World) -> list[Piece]:
    """All that can be read: each tensor and state of each commit, the refs, their logs."""
    found, repo = [], Repository(fs)
    for id, made in world.commits.items():
        if id in world.pruned:
            continue
        commit = repo.show(id)
        for name, tensor in weights(made).items():
            needs = frozenset({id, commit.tree, tensor.id, *_bases(repo, tensor.id)})
            found.append(Piece(f"{name} of {id[:8]}", partial(_tensor, id, name), tensor, needs))
        parts = frozenset({id, *([commit.state] if commit.state else ())})
        get, before = partial(Repository.load_state, ref=id), state(replace(made, later=None))
        found.append(Piece(f"the state of {id[:8]}", get, state(made), parts, before))
    found.append(Piece("the refs", _refs_of, _refs_of(repo), frozenset()))
    for name in world.branches:
        want = _log_of(repo, name)
        found.append(Piece(f"the log of {name}", partial(_log_of, branch=name), want, frozenset(want[1])))
    return found


def _bases(repo: Repository, id: str) -> set[str]:
    with repo.store.copies() as copies:
        return {link.entry.id for stored in copies.all(id) for link in copies.chain(stored).links}


def _tensor(id: str, name: str, repo: Repository) -> object:
    tensor = repo.load(id, names=[name])[name]
    tensor.data  # noqa: B018 - it is read now
    return tensor


class Rot:
    """A repository, all that can be read of it, and how often that was found out to be damaged."""

    def __init__(self) -> None:
        with same_names():
            self.fs = MemoryFileSystem()
            self.world = build(self.fs, STEPS)
        self.pieces = pieces(self.fs, self.world)
        self.parts = {path: list(self._parts(path)) for path in self.fs.paths()}
        self.cases = self.caught = 0
        self._open = Repository(self.fs)  # one that has looked at everything before the damage
        if self.read(range(len(self.pieces)), self._open):
            raise Violation("an error before any damage")

    def _parts(self, path: str) -> Iterator[tuple[int, int, list[int], bool]]:
        """(start, end, the pieces that need it, whether it is an object's) for all parts of a file."""
        everything, size, at = list(range(len(self.pieces))), len(self.fs.data(path)), 0
        if path.startswith("packs/"):
            directory = read_directory(self.fs, path[6:].removesuffix(".pack"))
            for entry in sorted(directory.entries(), key=lambda entry: entry.offset):
                yield at, entry.offset, everything, False
                at = entry.offset + entry.size
                yield entry.offset, at, [n for n in everything if entry.id in self.pieces[n].needs], True
        elif path.startswith("refs/"):
            everything = [n for n in everything if self.pieces[n].of_refs]
        elif path.startswith("notes/"):
            everything = [n for n in everything if path[6:14] in self.pieces[n].name]
        yield at, size, everything, False

    def read(
        self, numbers: Iterable[int], repo: Repository | None = None, *, exact: bool = True, refusal: int | None = None
    ) -> int:
        """Read those pieces, in a repository opened now; how many errors of coral's came up.

        Unless `exact`, refs may be what they were earlier: whole entries of them are gone. With a `refusal` errors are
        to be a StorageError with that code.
        """
        errors = 0
        for number in numbers:
            piece = self.pieces[number]
            try:
                repo = repo or Repository(self.fs)
                got = piece.get(repo)
            except CoralError as error:
                if refusal is not None and not (isinstance(error, StorageError) and error.errno == refusal):
                    raise Violation(f"{piece.name}: {type(error).__name__}: {error}") from error
                errors += 1
                continue
            except Exception as error:
                raise Violation(f"{piece.name}: foreign {type(error).__name__}: {error}") from error
            difference = _differs(got, piece.want)
            if difference and piece.before is not None and not _differs(got, piece.before):
                errors += 1  # a note is left out, with a warning
            elif difference and (exact or not piece.of_refs):
                raise Violation(f"SILENTLY WRONG: {piece.name}: {difference}")
        return errors

    def judge(self, numbers: list[int], *, opened: bool = False, exact: bool = True, fsck: bool = False) -> None:
        """Read, and hold fsck to it that it finds what reading did; `opened`: the damage came after the opening."""
        self.cases += 1
        errors = self.read(numbers, self._open if opened else None, exact=exact)
        self.caught += bool(errors)
        if fsck and errors:
            with suppress(CoralError):  # it does not even open
                if Repository(self.fs).fsck().ok:
                    raise Violation("fsck finds nothing, and reading does")


Case = tuple[str, bytes, list[int], bool]
Share = Callable[[int], bool]
"""Which bytes and lengths are whose: the work is shared out."""


def _flips(rot: Rot, path: str, rng: random.Random, mine: Share, bits: int) -> Iterator[Case]:
    """(what, the file then, the pieces to read, whether they may be opened before) for some bits of every byte.

    Over 8, so many more flips of several bits. One flip of each byte is judged by up to four of the pieces that need
    it, the others by one.
    """
    data = rot.fs.data(path)
    for start, end, readers, inside in rot.parts[path]:
        for at in filter(mine, range(start, end)):
            masks = [1 << (at + 3 * n) % 8 for n in range(min(bits, 8))]
            masks += [rng.choice((0xFF, rng.randrange(3, 255))) for _ in range(bits - 8)]
            for number, mask in enumerate(masks):
                some = rng.sample(readers, min(len(readers), 1 if number else 4))
                yield f"byte {at} ^ {mask:#x}", _changed(data, at, mask), some, inside


def _changed(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def _cuts(rot: Rot, path: str, rng: random.Random, mine: Share) -> Iterator[Case]:
    data, readers = rot.fs.data(path), rot.parts[path][-1][2]
    for size in filter(mine, range(len(data))):
        yield f"cut to {size} bytes", data[:size], rng.sample(readers, min(2, len(readers))), False


def _mixed_up(rot: Rot) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """(what, which files then hold what): removed, emptied, zeros, doubled, one in another's place, two exchanged."""
    paths = rot.fs.paths()
    for path in paths:
        data = rot.fs.data(path)
        yield f"{path} removed", {path: None}
        yield f"{path} zeroed", {path: bytes(len(data))}
        yield f"{path} doubled", {path: data + data}
    for a, b in itertools.permutations(paths, 2):
        yield f"{a} over {b}", {b: rot.fs.data(a)}
        if a < b:
            yield f"{a} and {b} exchanged", {a: rot.fs.data(b), b: rot.fs.data(a)}


def run(*, part: int = 0, parts: int = 1, bits: int = 8, seed: int = 0, stop: int = 5) -> Tally:
    """Damage the files at every byte, or one in `parts` of them; stop after so many violations.

    `bits` of each byte; over 8, so many more flips of several bits of it.
    """
    began, tally = time.perf_counter(), Tally()
    with limits(Scenario("", (), ())):
        rot = Rot()
        size = sum(len(rot.fs.data(path)) for path in rot.fs.paths())
        assert size <= MANY, f"{size} bytes"
        for what in _damage(rot, lambda number: (number + seed) % parts == part, random.Random(seed), bits):
            tally.violations.append(what)
            if len(tally.violations) >= stop:
                break
    tally.cases, tally.judged, tally.seconds = rot.cases, rot.caught, time.perf_counter() - began
    return tally


def _damage(rot: Rot, mine: Share, rng: random.Random, bits: int) -> Iterator[str]:
    """What is found wrong."""
    for path in rot.fs.paths():
        good = rot.fs.data(path)
        for what, data, readers, inside in itertools.chain(
            _flips(rot, path, rng, mine, bits), _cuts(rot, path, rng, mine)
        ):
            rot.fs.damage(path, data)
            try:
                rot.judge(readers, opened=inside and rot.cases % 8 > 0, fsck=not rot.cases % 101)
            except Violation as violation:
                yield f"{path}, {what}: {violation}"
            rot.fs.damage(path, good)
    everything, kept = list(range(len(rot.pieces))), rot.fs
    for number, (what, files) in enumerate(_mixed_up(rot)):
        if mine(number):
            rot.fs = kept.copy()
            for path, content in files.items():
                if content is None:
                    rot.fs.unlink(path)
                else:
                    rot.fs.damage(path, content)
            try:
                rot.judge(rng.sample(everything, 12), exact=False)
            except Violation as violation:
                yield f"{what}: {violation}"
            rot.fs = kept
