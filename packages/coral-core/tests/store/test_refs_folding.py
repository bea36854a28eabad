"""Old entries of a ref are folded into segments; nobody who slept through it can bring back the past."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coral.errors import Conflict, CorruptObject
from coral.filesystem import LocalFileSystem
from coral.store import _refs
from coral.store._refs import RefEntry, append, folder_of, history, read

MAIN = folder_of("heads", "main")


@pytest.fixture(autouse=True)
def _fold_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_refs, "FOLD", 4)
    monkeypatch.setattr(_refs, "_KEEP", 2)


def value(number: int) -> str:
    return f"{number:064d}"


def put(fs: LocalFileSystem, first: int, last: int) -> list[RefEntry]:
    return [
        append(fs, MAIN, value(number), after=read(fs, MAIN), why="test", durable=False)
        for number in range(first, last + 1)
    ]


def values(fs: LocalFileSystem) -> list[str | None]:
    found = list(history(fs, MAIN))
    assert all(isinstance(entry, RefEntry) for entry in found)
    return [entry.value for entry in found if isinstance(entry, RefEntry)]


def test_old_entries_are_folded(fs: LocalFileSystem) -> None:
    put(fs, 1, 5)
    assert len(fs.list(MAIN)) == 5
    put(fs, 6, 6)
    assert sorted(fs.list(MAIN)) == ["0000000001-0000000004.log", "0000000005", "0000000006"]
    put(fs, 7, 23)
    assert sorted(name for name in fs.list(MAIN) if "-" in name) == [
        f"{first:010d}-{first + 3:010d}.log" for first in (1, 5, 9, 13, 17)
    ]
    assert values(fs) == [value(n) for n in range(23, 0, -1)]
    assert [e.seq for e in history(fs, MAIN)] == list(range(23, 0, -1))  # type: ignore[union-attr]
    assert read(fs, MAIN).value == value(23)  # type: ignore[union-attr]


def test_folded_entries_are_what_they_were(fs: LocalFileSystem) -> None:
    written = put(fs, 1, 6)
    assert list(history(fs, MAIN)) == written[::-1]


def test_a_ref_whose_entries_are_all_folded(fs: LocalFileSystem) -> None:
    put(fs, 1, 6)
    for name in ("0000000005", "0000000006"):
        fs.unlink(f"{MAIN}/{name}")
    newest = read(fs, MAIN)
    assert newest is not None
    assert (newest.seq, newest.value) == (4, value(4))
    append(fs, MAIN, value(50), after=newest, why="", durable=False)
    assert values(fs) == [value(n) for n in (50, 4, 3, 2, 1)]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_writer_that_slept_through_a_fold_gets_a_conflict(fs: LocalFileSystem, after: int) -> None:
    stale = [None, *put(fs, 1, 7)][after]
    before = values(fs)
    with pytest.raises(Conflict):
        append(fs, MAIN, value(99), after=stale, why="stale", durable=False)
    assert values(fs) == before
    assert not [name for name in fs.list(MAIN) if name.isdigit() and int(name) <= 4]


def test_files_left_over_from_a_fold_are_ignored(fs: LocalFileSystem, folder: Path) -> None:
    """Its process died after the segment was in place."""
    put(fs, 1, 5)
    kept = {n: (folder / MAIN / f"{n:010d}").read_bytes() for n in (2, 4)}
    put(fs, 6, 6)
    for number, data in kept.items():
        (folder / MAIN / f"{number:010d}").write_bytes(data)
    assert values(fs) == [value(n) for n in range(6, 0, -1)]
    assert read(fs, MAIN).value == value(6)  # type: ignore[union-attr]
    put(fs, 7, 12)
    assert values(fs) == [value(n) for n in range(12, 0, -1)]


def test_a_fold_that_fails_takes_nothing_away(
    fs: LocalFileSystem, around: Callable[..., LocalFileSystem], failing: Callable[..., Callable[[str, str], None]]
) -> None:
    """The entry was linked before: the ref has moved, and whoever moved it must not be told otherwise."""
    import errno

    put(fs, 1, 5)
    full = around(fs, failing(errno.ENOSPC, at=1, kinds=frozenset({"link"})))
    entry = append(full, MAIN, value(6), after=read(fs, MAIN), why="", durable=False)
    assert entry.seq == 6
    assert values(fs) == [value(n) for n in range(6, 0, -1)]
    assert sorted(fs.list(MAIN)) == [f"{n:010d}" for n in range(1, 7)]
    assert fs.list("tmp") == []


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_segment(fs: LocalFileSystem, folder: Path, flip: Callable[..., None], damage: str) -> None:
    put(fs, 1, 6)
    path = folder / MAIN / "0000000001-0000000004.log"
    match damage:
        case "torn":
            path.write_bytes(path.read_bytes()[:-10])
        case "flipped":
            flip(path, 200)
        case "empty":
            path.write_bytes(b"")
    assert read(fs, MAIN).value == value(6)  # type: ignore[union-attr]
    found = list(history(fs, MAIN))
    assert [e.value for e in found[:2] if isinstance(e, RefEntry)] == [value(6), value(5)]
    assert isinstance(found[-1], CorruptObject)
    for name in ("0000000005", "0000000006"):
        fs.unlink(f"{MAIN}/{name}")
    with pytest.raises(CorruptObject):
        read(fs, MAIN)


def test_a_damaged_old_entry_is_left_for_fsck(fs: LocalFileSystem, folder: Path) -> None:
    put(fs, 1, 4)
    (folder / MAIN / "0000000002").write_bytes(b"junk")
    put(fs, 5, 9)
    assert not [name for name in fs.list(MAIN) if "-" in name]
    found = list(history(fs, MAIN))
    assert [e.seq if isinstance(e, RefEntry) else None for e in found] == [9, 8, 7, 6, 5, 4, 3, None, 1]


def test_two_fold_at_once(fs: LocalFileSystem) -> None:
    put(fs, 1, 5)
    files, _ = _refs.listing(fs, MAIN)
    put(fs, 6, 6)  # folds 1 to 4
    _refs._fold(fs, MAIN, files | {6}, 0)  # a second one with an old listing
    assert values(fs) == [value(n) for n in range(6, 0, -1)]


def test_leftovers_of_a_fold_go_at_the_next_append(fs: LocalFileSystem, folder: Path) -> None:
    put(fs, 1, 5)
    kept = {n: (folder / MAIN / f"{n:010d}").read_bytes() for n in (2, 4)}
    put(fs, 6, 6)
    for number, data in kept.items():
        (folder / MAIN / f"{number:010d}").write_bytes(data)
    put(fs, 7, 7)
    assert sorted(fs.list(MAIN)) == ["0000000001-0000000004.log", *(f"{n:010d}" for n in (5, 6, 7))]
    assert values(fs) == [value(n) for n in range(7, 0, -1)]


def test_a_fold_comes_only_at_every_so_many_entries(fs: LocalFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be folded is not tried anew at each append."""
    monkeypatch.setattr(_refs, "_KEEP", 3)
    put(fs, 1, 8)
    assert len(fs.list(MAIN)) == 8
    put(fs, 9, 9)
    assert sorted(fs.list(MAIN)) == ["0000000001-0000000004.log", *(f"{n:010d}" for n in range(5, 10))]


def test_a_segment_is_never_replaced(fs: LocalFileSystem, folder: Path, around: Callable[..., LocalFileSystem]) -> None:
    """Whoever was first has removed the entries that are in theirs."""
    put(fs, 1, 5)
    path = folder / MAIN / "0000000001-0000000004.log"

    def before(kind: str, target: str) -> None:
        if kind == "link" and target.endswith(".log"):
            path.write_bytes(b"theirs")
        assert not (kind == "replace" and target.startswith(MAIN))

    append(around(fs, before), MAIN, value(6), after=read(fs, MAIN), why="", durable=False)
    assert path.read_bytes() == b"theirs"
    assert {f"{n:010d}" for n in range(1, 7)} <= set(fs.list(MAIN))
