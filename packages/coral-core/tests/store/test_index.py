"""The index: it finds what is there, is merged rarely, and may be damaged or lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral._digest import object_id
from coral.errors import CorruptObject
from coral.filesystem import LocalFileSystem
from coral.store import _index
from coral.store._index import Index, Location, read_segment
from coral.store._pack import Directory, path_of


@pytest.fixture(autouse=True)
def _cover_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index, "_UNCOVERED", 4)


@pytest.fixture
def grow(fs: LocalFileSystem, write_pack: Callable[..., Directory]) -> Callable[..., list[Directory]]:
    """Adds packs of one tree each to an index."""

    def do(index: Index, first: int, count: int, *, cover: bool = True) -> list[Directory]:
        found = []
        for number in range(first, first + count):
            found.append(write_pack(fs, [], [("tree", str(number).encode()), ("state", str(number).encode())]))
            index.add(found[-1])
            if cover:
                index.cover()
        return found

    return do


def tree(number: int) -> str:
    return object_id("tree", str(number).encode())


def segments(fs: LocalFileSystem) -> list[int]:
    """How many packs each index file covers."""
    return sorted(len(read_segment(fs, name).packs) for name in fs.list("index"))


def test_a_pack_is_found_once_it_is_added(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    index = Index(fs)
    assert index.known(tree(0)) == []
    pack = grow(index, 0, 1)[0]
    assert index.known(tree(0)) == [Location(pack.name, 0)]
    index.add(pack)
    assert index.known(tree(0)) == [Location(pack.name, 0)]
    index.forget(pack.name)
    index.forget(pack.name)
    assert index.known(tree(0)) == []


def test_packs_of_others_are_found_on_refresh(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    mine, other = Index(fs), Index(fs)
    grow(other, 0, 2, cover=False)
    assert mine.known(tree(1)) == []
    assert mine.refresh()
    assert not mine.refresh()
    assert len(mine.known(tree(1))) == 1
    fs.unlink(path_of(mine.known(tree(1))[0].pack))
    assert mine.refresh()
    assert mine.known(tree(1)) == []


def test_the_newest_copy_comes_first(fs: LocalFileSystem, write_pack: Callable[..., Directory]) -> None:
    index = Index(fs)
    packs = [write_pack(fs, [np.array(n)], [("tree", b"same")]) for n in range(3)]
    for pack in packs:
        index.add(pack)
    assert [place.pack for place in index.known(object_id("tree", b"same"))] == [p.name for p in reversed(packs)]


def test_many_packs_are_covered_and_index_files_merged(
    fs: LocalFileSystem, grow: Callable[..., list[Directory]]
) -> None:
    index = Index(fs)
    grow(index, 0, 3)
    assert segments(fs) == []
    grow(index, 3, 1)
    assert segments(fs) == [4]
    grow(index, 4, 4)
    assert segments(fs) == [8]
    grow(index, 8, 8)
    assert segments(fs) == [16]
    grow(index, 16, 4)
    assert segments(fs) == [20]
    grow(index, 20, 4)
    assert segments(fs) == [4, 20]  # a large file is left alone until those beside it have grown
    grow(index, 24, 4)
    assert sum(segments(fs)) == 28
    for reader in (index, Index(fs)):
        for number in range(28):
            (place,) = reader.known(tree(number))
            assert path_of(place.pack)[6:] in fs.list("packs")


def test_covering_reads_no_pack_again(
    fs: LocalFileSystem, grow: Callable[..., list[Directory]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(Index(fs), 0, 8)
    monkeypatch.setattr(_index, "read_directory", lambda *_: pytest.fail("a covered pack was opened"))
    fresh = Index(fs)
    assert len(fresh.known(tree(5))) == 1
    fresh.refresh()


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "flipped", "magic", "stray"])
def test_a_damaged_index_is_harmless(
    fs: LocalFileSystem, folder: Path, grow: Callable[..., list[Directory]], flip: Callable[..., None], damage: str
) -> None:
    grow(Index(fs), 0, 6)
    path = next((folder / "index").iterdir())
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "torn":
            path.write_bytes(path.read_bytes()[:-5])
        case "flipped":
            flip(path, 100)
        case "magic":
            flip(path, 0)
        case "stray":
            (folder / "index" / "junk.idx").write_bytes(b"junk")
            (folder / "index" / ".DS_Store").write_bytes(b"junk")
    index = Index(fs)
    index.refresh()
    assert all(len(index.known(tree(number))) == 1 for number in range(6))
    grow(index, 6, 3)
    assert all(len(Index(fs).known(tree(number))) == 1 for number in range(4))


def test_any_bit_of_an_index_file_flipped_is_found(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    grow(Index(fs), 0, 4)
    name = fs.list("index")[0]
    data = fs.read(f"index/{name}", 1 << 20)
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        with pytest.raises(CorruptObject):
            _index._Segment.decode(name, bytes(bad))
    for size in range(0, len(data), 7):
        with pytest.raises(CorruptObject):
            _index._Segment.decode(name, data[:size])


def test_an_index_that_names_lost_packs(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    pack = grow(Index(fs), 0, 4)[2]
    fs.unlink(path_of(pack.name))
    index = Index(fs)
    assert [place.pack for place in index.known(tree(2))] == [pack.name]  # a hint: whoever follows it finds no pack
    index.forget(pack.name)
    assert len(index.known(tree(1))) == 1


def test_prefixes(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    index = Index(fs)
    grow(index, 0, 6)  # four are covered, two are not
    ids = {object_id(kind, str(n).encode()) for n in range(6) for kind in ("tree", "state")}
    for id in ids:
        for length in (1, 6, 15, 16, 17, 40, 64):
            prefix = id[:length]
            assert index.with_prefix(prefix) == {other for other in ids if other.startswith(prefix)}
    assert index.with_prefix("") == ids
    assert index.with_prefix(tree(99)[:20]) == set()
    assert index.with_prefix("f" * 64) == set()
    assert index.with_prefix("0" * 64) == set()


def test_two_who_cover_at_once(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    one, two = Index(fs), Index(fs)
    grow(one, 0, 4, cover=False)
    two.refresh()
    one.cover()
    two.cover()
    for number in range(4):
        assert len({place.pack for place in Index(fs).known(tree(number))}) == 1
    assert 0 not in segments(fs)


def test_index_files_of_as_many_packs_do_not_take_each_others_place(
    fs: LocalFileSystem, grow: Callable[..., list[Directory]]
) -> None:
    one, two = Index(fs), Index(fs)
    grow(one, 0, 4, cover=False)
    grow(two, 100, 4, cover=False)
    for index in (one, two):
        index._write(list(index._loose), [_index._rows_of(index._loose.values(), 0)])
    assert segments(fs) == [4, 4]
    assert all(Index(fs).known(tree(number)) for number in (0, 1, 2, 3, 100, 101, 102, 103))


def test_no_pack_is_kept_twice(fs: LocalFileSystem, grow: Callable[..., list[Directory]]) -> None:
    """Two that cover the same packs at once leave two index files of them; the next merge makes one."""
    one, other = Index(fs), Index(fs)
    packs = grow(one, 0, 4, cover=False)
    for pack in packs:
        other.add(pack)
    one.cover()
    (first,) = fs.list("index")
    kept = fs.read(f"index/{first}", 1 << 20)
    fs.unlink(f"index/{first}")
    grow(other, 4, 1)
    file = fs.create(f"index/{first}")
    file.write([kept])
    file.close()
    assert segments(fs) == [4, 5]
    merging = Index(fs)
    merging.refresh()
    grow(merging, 5, 4)
    listed = [pack for name in fs.list("index") for pack in read_segment(fs, name).packs]
    assert len(listed) == len(set(listed)) == 9
    again = Index(fs)
    again.refresh()
    for number in range(9):
        assert len(again.known(tree(number))) == 1
    assert sum(len(read_segment(fs, name).rows) for name in fs.list("index")) == 18
