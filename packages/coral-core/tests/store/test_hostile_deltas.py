"""Packs whose entries lie, though every sum of the pack itself holds: what they stand for is refused, and nothing else.

A lie takes the place of what a commit has as `w`; the commits before and after it are sound.
"""

from __future__ import annotations

import logging
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import DeltaConfig, Repository, WeightTensor
from coral._digest import BLOCK, fold, sha256
from coral.delta import BLOCK_ELEMENTS, Deflate, GroupedDelta, PackDelta, Planes, Raw, Same, _entropy
from coral.errors import CoralError, CorruptObject, MissingExtra, MissingObject, NewerFormat
from coral.filesystem import LocalFileSystem
from coral.store._pack import Entry, path_of, read_directory
from coral.store._pack_writer import PackWriter

SIZE = 2 * BLOCK_ELEMENTS + 1000
CONFIG = DeltaConfig(entropy="deflate", min_size=0)
CODER = Deflate()
PACK = PackDelta(CODER)


def values(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 8, size, np.uint8)


W = values(0)
"""The base; what is stored as a difference from it is a little more."""
STEPS = values(1) % np.uint8(5)
VICTIM = W + STEPS
SOUND: list[dict[str, np.ndarray]] = [
    {"w": W, "other": values(2), "less": values(3, SIZE - 1), "signed": values(4).view(np.int8)},
    {"w": W + 2 * STEPS, "fine": values(5, 3000)},
]
FINE = values(6, 3000)


@dataclass
class Stored:
    """An encoded tensor in parts, to be tampered with."""

    blocks: list[bytes]
    totals: list[int]  # folded sums
    sizes: list[int] | None = None  # as the table has them
    behind: tuple[bytes, bytes] = (b"", b"")  # before the table, and after it

    def __bytes__(self) -> bytes:
        sizes = self.sizes or list(map(len, self.blocks))
        table = b"".join(struct.pack("<II", *pair) for pair in zip(sizes, self.totals, strict=True))
        before, after = self.behind
        return b"".join(self.blocks) + before + table + struct.pack("<I", zlib.crc32(table)) + after


@dataclass
class Lie:
    """What is written in place of `w`: fields of its entry, before and after its sums are made, and its bytes."""

    why: str
    says: dict[str, Any] = field(default_factory=dict)
    data: bytes | None = None
    row: dict[str, int] = field(default_factory=dict)  # fields that are changed in the directory itself
    error: type[CoralError] = CorruptObject
    match: str | None = None

    def __str__(self) -> str:
        return self.why.replace(" ", "-")


def stored(codec: Any = PACK, current: np.ndarray = VICTIM, base: np.ndarray = W) -> Stored:
    blocks, totals = [], []
    for at in range(0, current.size, BLOCK_ELEMENTS):
        part = slice(at, at + BLOCK_ELEMENTS)
        blocks.append(codec.encode(current[part], base[part]))
        totals.append(fold(current[part].view(np.uint8)))
    return Stored(blocks, totals)


def tampered(change: Callable[[Stored], None]) -> bytes:
    found = stored()
    change(found)
    return bytes(found)


def replaced(number: int, block: Callable[[bytes], bytes]) -> Callable[[Stored], None]:
    def change(found: Stored) -> None:
        found.blocks[number] = block(found.blocks[number])

    return change


def sizes(*moved: int) -> Callable[[Stored], None]:
    def change(found: Stored) -> None:
        found.sizes = [(len(b) + m) % (1 << 32) for b, m in zip(found.blocks, moved, strict=True)]

    return change


def swapped(found: Stored) -> None:
    found.blocks[:2] = found.blocks[1::-1]


def id_of(name: str) -> str:
    return WeightTensor(SOUND[0][name]).id


def entry_digests(data: np.ndarray) -> bytes:
    return b"".join(sha256(data[at : at + BLOCK]) for at in range(0, data.size, BLOCK))


LIES = [
    Lie("another base", {"base": id_of("other")}),
    Lie("no such base", {"base": "ab" * 32}, match="which no pack holds"),
    Lie("a base of another size", {"base": id_of("less")}, match="not of its size and dtype"),
    Lie("a base of another dtype", {"base": id_of("signed")}, match="not of its size and dtype"),
    Lie("its own base", {"base": "itself"}, match="leads back to itself"),
    Lie("a commit for a base", {"base": "commit"}),
    Lie("no base", {"base": None}),
    Lie("raw with a base", {"codec": 0, "params": 0}, VICTIM.tobytes()),
    Lie("planes with a base", {"codec": Planes.code}),
    Lie("the same as what it is not", {"codec": Same.code, "params": 0}, b""),
    Lie("the same in some bytes", {"codec": Same.code, "params": 0}, b"\1"),
    Lie("a difference, said to be planes", {"codec": Planes.code, "base": None}),
    Lie("groups, said to be a difference", data=bytes(stored(GroupedDelta(CODER))), row={"codec": PackDelta.code}),
    Lie("an unknown codec", {"codec": 99}, error=NewerFormat),
    Lie("an unknown codec without a base", {"codec": 99, "base": None}, error=NewerFormat),
    Lie("an unknown coder", {"params": 77}, error=NewerFormat),
    Lie("more parameters", {"params": 257}, error=NewerFormat),
    Lie("the same with parameters", {"codec": Same.code, "params": 1, "base": id_of("w")}, b""),
    Lie("another coder", {"params": 2}, error=CorruptObject if _entropy._zstd() else MissingExtra),
    Lie("an unknown dtype", row={"dtype": 200}, error=NewerFormat),
    Lie("another dtype", row={"dtype": 32}),
    Lie("a wider dtype", row={"dtype": 36 + 1}),
    Lie("another shape", {"shape": (2, SIZE // 2)}),
    Lie("one byte less", row={"nbytes": SIZE - 1}),
    Lie("one byte more", row={"nbytes": SIZE + 1}),
    Lie("no bytes", {"digests": b""}, row={"nbytes": 0}),
    Lie("many bytes", {"digests": bytes(32 << 10)}, row={"nbytes": 1 << 30}),
    Lie("no bytes stored", {}, b""),
    Lie("a byte stored", {}, b"\3"),
    Lie("a table alone", {}, bytes(4)),
    Lie("cut short", {}, bytes(stored())[:-1]),
    Lie("cut in front", {}, bytes(stored())[1:]),
    Lie("a byte behind a block", {}, tampered(replaced(1, lambda block: block + b"\0"))),
    Lie("a byte behind the last block", {}, tampered(replaced(2, lambda block: block + b"\0"))),
    Lie("a block too short", {}, tampered(replaced(1, lambda block: block[:-1]))),
    Lie("an empty block", {}, tampered(replaced(1, lambda _: b""))),
    Lie("bytes before the table", {}, tampered(lambda found: setattr(found, "behind", (b"\0" * 8, b"")))),
    Lie("bytes behind the table", {}, tampered(lambda found: setattr(found, "behind", (b"", b"\0" * 8)))),
    Lie("blocks that changed places", {}, tampered(swapped)),
    Lie("blocks of other sizes", {}, tampered(sizes(1, -1, 0))),
    Lie("blocks larger than all", {}, tampered(sizes(1 << 31, 0, 0))),
    Lie("blocks that wrap around", {}, tampered(sizes(1 << 31, -(1 << 31), 0))),
    Lie("a table of one block less", {}, bytes(stored(current=VICTIM[:-1000], base=W[:-1000]))),
    Lie("a form that no codec has", {}, tampered(replaced(0, lambda block: b"\7" + block[1:]))),
    Lie("a form that its codec never writes", {}, tampered(replaced(0, lambda block: b"\4" + block[1:]))),
    Lie("the block of the base", {}, tampered(replaced(0, lambda _: b"\1"))),
    Lie("no layout", {}, tampered(replaced(0, lambda block: block[:1] + b"\377\377" + block[3:]))),
    Lie("more escapes", {}, tampered(replaced(0, lambda b: b[:3] + struct.pack("<I", 1 << 31) + b[7:]))),
    Lie("one escape", {}, tampered(replaced(0, lambda b: b[:3] + struct.pack("<I", 1) + b[7:]))),
    Lie("bits flipped in a block", {}, tampered(replaced(1, lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:]))),
    Lie("a block of chance", {}, tampered(replaced(1, lambda b: b[:1] + values(9).tobytes()[: len(b)]))),
    Lie("other bits as they are", {}, tampered(replaced(1, lambda _: Raw().encode(W[:BLOCK_ELEMENTS], None)))),
    Lie("sums of other bits", {}, tampered(lambda found: found.totals.__setitem__(1, 1))),
]


@dataclass
class Case:
    """A repository in which one commit's `w` is a lie."""

    folder: Path
    first: str
    victim: str
    last: str
    tensor: str  # the id of the victim's `w`

    def packs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "packs").iterdir()}

    def open(self) -> Repository:
        return Repository(self.folder, durability="fast")

    def read(self) -> bytes:
        found = self.open().load(self.victim)["w"].data.tobytes()
        assert isinstance(found, bytes)
        return found

    def upkeep(self) -> Iterator[Callable[[], object]]:
        yield self.open().gc
        yield lambda: self.open().repack(config=CONFIG)
        yield lambda: self.open().repack(aggressive=True, config=CONFIG)
        yield lambda: self.open().gc(0)
        yield lambda: self.open().prune(self.first)


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """All is sound; the victim's `w` lies in a pack of its own."""
    folder = tmp_path_factory.mktemp("hostile") / "repo"
    repo = Repository(folder, init=True, durability="fast")
    ids = [repo.commit(weights) for weights in (SOUND[0], {"w": VICTIM, "fine": FINE}, SOUND[1])]
    made = Case(folder, *ids, repo.tree(ids[1])["w"].id)
    path, _ = place(made, made.tensor)
    split(made, path, lambda entry: entry.id == made.tensor)
    split(made, path, lambda entry: entry.id != made.tensor)
    path.unlink()
    return made


def split(case: Case, path: Path, taken: Callable[[Entry], bool]) -> None:
    """Put a part of a pack into one of its own."""
    fs = LocalFileSystem(case.folder)
    data, file = path.read_bytes(), fs.create("tmp/pack")
    writer = PackWriter(file)
    for entry in filter(taken, read_directory(fs, path.stem).entries()):
        writer.add_stored(entry, [data[entry.offset : entry.offset + entry.size]])
    name = writer.finish().name
    file.close()
    fs.replace("tmp/pack", path_of(name))


@pytest.fixture
def case(honest: Case, tmp_path: Path) -> Case:
    folder = tmp_path / "repo"
    shutil.copytree(honest.folder, folder)
    return Case(folder, honest.first, honest.victim, honest.last, honest.tensor)


def place(case: Case, id: str) -> tuple[Path, Entry]:
    """The one pack that holds a tensor, and its entry there."""
    fs = LocalFileSystem(case.folder)
    for path in (case.folder / "packs").iterdir():
        for entry in read_directory(fs, path.stem).entries():
            if entry.id == id:
                return path, entry
    raise AssertionError(id)


def write(case: Case, *lies: tuple[Entry, Lie, bytes]) -> None:
    """Put a pack of lies into place, with all of its own sums as they should be."""
    fs = LocalFileSystem(case.folder)
    file = fs.create("tmp/pack")
    writer = PackWriter(file)
    for entry, lie, data in lies:
        said = dict(lie.says)
        if said.get("base") in ("itself", "commit"):
            said["base"] = case.first if said["base"] == "commit" else entry.id
        named = {"codec": PackDelta.code, "params": CODER.id, "base": id_of("w"), **said}
        writer.add_stored(entry._replace(**named), [data])
        if lie.row:
            names = ["id", "base", "kind", "codec", "dtype", "rank", "params", "offset", "size", "nbytes"]
            writer._rows[-1] = tuple(dict(zip(names, writer._rows[-1], strict=True), **lie.row).values())
    with suppress(CorruptObject):  # some lies no directory can hold: it is written all the same
        writer.finish()
    file.close()
    trailer = (case.folder / "tmp/pack").read_bytes()[-64:]
    fs.replace("tmp/pack", path_of(trailer[24:56].hex()))


def plant(case: Case, lie: Lie, *, keep: bool = False) -> None:
    path, entry = place(case, case.tensor)
    write(case, (entry, lie, bytes(stored()) if lie.data is None else lie.data))
    if not keep:
        path.unlink()


def healthy(case: Case) -> None:
    repo = case.open()
    for commit, made in ((case.first, SOUND[0]), (case.last, SOUND[1])):
        if not repo.show(commit).pruned:
            found = repo.load(commit)
            assert {name: found[name].data.tobytes() for name in found} == {n: a.tobytes() for n, a in made.items()}
    assert repo.load(case.victim, names=["fine"])["fine"].data.tobytes() == FINE.tobytes()


def test_without_a_lie_it_is_what_it_should_be(case: Case) -> None:
    plant(case, Lie("the truth"))
    assert case.read() == VICTIM.tobytes()
    assert case.open().fsck().ok
    for work in case.upkeep():
        work()
        healthy(case)
        assert case.read() == VICTIM.tobytes()
    assert case.open().fsck().ok


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_it_is_refused_and_named(case: Case, lie: Lie) -> None:
    plant(case, lie)
    tracemalloc.start()
    with pytest.raises(lie.error, match=lie.match):
        case.read()
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    healthy(case)
    report = case.open().fsck()
    assert {id for problem in report.problems for id in problem.commits} == {case.victim}
    assert any(case.tensor[:12] in problem.message for problem in report.problems)


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_upkeep_does_no_harm(case: Case, lie: Lie, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    plant(case, lie)
    before = case.packs()
    with suppress(CoralError):
        case.open().gc(0)
    assert case.packs() == before  # nothing is garbage, and of what it is the only copy is left alone
    for work in case.upkeep():
        with suppress(CoralError):
            work()
        healthy(case)
        with pytest.raises(CoralError):
            case.read()


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_where_there_is_another_copy_that_is_read_and_kept(case: Case, lie: Lie) -> None:
    plant(case, lie, keep=True)
    assert case.read() == VICTIM.tobytes()
    for work in case.upkeep():
        with suppress(CoralError):
            work()
        healthy(case)
        assert case.read() == VICTIM.tobytes()
    again = case.open()
    again.commit({"w": VICTIM}, branch="y")
    assert again.load("y")["w"].data.tobytes() == VICTIM.tobytes()


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_what_is_committed_anew_is_stored_anew(case: Case, lie: Lie) -> None:
    plant(case, lie)
    id = case.open().commit({"w": VICTIM})
    assert case.open().load(id)["w"].data.tobytes() == VICTIM.tobytes()
    assert case.read() == VICTIM.tobytes()


@pytest.mark.parametrize("nbytes", [3999, 3998, 3996, 4001, 4004, 0])
@pytest.mark.parametrize("whole", [False, True])
def test_bytes_that_are_no_elements(repo: Repository, folder: Path, nbytes: int, whole: bool) -> None:
    """A keyframe's tensor that has not the bytes that its dtype and shape say, as a copy and as a base."""
    made = [np.random.default_rng(number).standard_normal(1000).astype(np.float32) for number in range(4)]
    ids = [repo.commit({"w": data, "fine": data[:-1]}) for data in made]
    tensor = repo.tree(ids[0])["w"].id
    case = Case(folder, ids[0], ids[0], ids[-1], tensor)
    path, entry = place(case, tensor)
    split(case, path, lambda entry: entry.id != tensor)
    path.unlink()
    says = {"codec": 0, "params": 0, "base": None} if whole else {"codec": Planes.code, "base": None}
    lie = Lie("", says | {"digests": bytes(32 if nbytes else 0)}, row={"nbytes": nbytes})
    write(case, (entry, lie, bytes(nbytes) if whole else b"\0" * (nbytes // 2) + bytes(12)))
    for work in case.upkeep():
        with suppress(CoralError):
            work()
        for id, data in zip(ids[1:], made[1:], strict=True):
            assert case.open().load(id)["w"].data.tobytes() == data.tobytes()
    with pytest.raises(CoralError):
        case.read()


@pytest.mark.parametrize("length", [2, 17, 20])
def test_a_chain_that_is_too_long_or_has_no_end(case: Case, length: int) -> None:
    """Each is what it says, of the one after it; the last of the first, or of what is there."""
    path, entry = place(case, case.tensor)
    path.unlink()
    ids = [case.tensor, *(f"{number:064x}" for number in range(1, length))]
    bases = [*ids[1:], ids[0] if length == 2 else id_of("w")]
    data = bytes(stored())
    write(case, *((entry._replace(id=i), Lie("", {"base": b}), data) for i, b in zip(ids, bases, strict=True)))
    with pytest.raises(CorruptObject):
        case.read()
    report = case.open().fsck()
    assert {id for problem in report.problems for id in problem.commits} == {case.victim}
    before = case.packs()
    with pytest.raises(MissingObject):
        case.open().gc(0)
    with pytest.raises(MissingObject):
        case.open().repack(config=CONFIG)
    with pytest.raises(MissingObject):
        case.open().prune(case.first)
    assert case.packs() == before
    healthy(case)


@pytest.mark.parametrize("length", [16, 17])
def test_as_long_as_may_be(case: Case, length: int) -> None:
    """Each difference is true, and none is of what is stored whole elsewhere: sixteen are followed, no more."""
    place(case, case.tensor)[0].unlink()
    tensors = [VICTIM, *(W + np.uint8(number) * STEPS for number in range(3, length + 2)), W]
    ids = [WeightTensor(data).id for data in tensors]
    _, entry = place(case, id_of("w"))
    lies = [
        (
            entry._replace(id=ids[number], digests=entry_digests(tensors[number])),
            Lie("", {"base": ids[number + 1]}),
            bytes(stored(current=tensors[number], base=tensors[number + 1])),
        )
        for number in range(length)
    ]
    write(case, *lies)
    if length == 16:
        assert case.read() == VICTIM.tobytes()
        assert case.open().fsck().ok
    else:
        with pytest.raises(CorruptObject, match="too far"):
            case.read()


def test_a_base_that_is_a_lie_itself(case: Case) -> None:
    """It is named with the commit that has it; what was stored as a difference from it is touched as well."""
    plant(case, Lie("the truth"))
    path, entry = place(case, id_of("other"))
    split(case, path, lambda entry: entry.id != id_of("w"))
    path.unlink()
    lie = Lie("another base", {"base": id_of("other"), "digests": entry_digests(W)})
    write(case, (entry._replace(id=id_of("w")), lie, bytes(stored(current=W))))
    with pytest.raises(CorruptObject):
        case.read()
    report = case.open().fsck()
    assert {id for problem in report.problems for id in problem.commits} == {case.first, case.victim}


def test_sums_that_were_made_for_the_lie(case: Case) -> None:
    """Loading goes by sums, as it does for what is stored whole; fsck goes by SHA-256, and so does a repack."""
    other = values(2)
    plant(case, Lie("another base", {"base": id_of("other")}, bytes(stored(current=other + STEPS, base=other))))
    report = case.open().fsck()
    assert {id for problem in report.problems for id in problem.commits} == {case.victim}
    assert "SHA-256" in str(report)
    case.open().repack(config=CONFIG)
    healthy(case)
    assert {id for problem in case.open().fsck().problems for id in problem.commits} == {case.victim}


def test_zstd_that_is_not_installed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_entropy, "_zstd", lambda: None)
    plant(case, Lie("zstd", {"params": 2}))
    with pytest.raises(MissingExtra, match="zstd"):
        case.read()
    healthy(case)
    report = case.open().fsck()
    assert {id for problem in report.problems for id in problem.commits} == {case.victim}
    assert "zstd" in str(report)
    before = case.packs()
    case.open().gc(0)
    assert case.packs() == before
