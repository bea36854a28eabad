"""Refs: moved by whoever is first, read whole or not at all, named safely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import Conflict, CorruptObject, LimitExceeded, UnsafeInput
from coral.filesystem import LocalFileSystem
from coral.store import _refs
from coral.store._refs import RefEntry, append, check_ref_name, folder_of, history, names, read

A, B, C = "a" * 64, "b" * 64, "c" * 64
MAIN = folder_of("heads", "main")


def put(fs: LocalFileSystem, *values: str | None, folder: str = MAIN) -> RefEntry:
    """Give a ref some more values."""
    entry = None
    for value in values:
        entry = append(fs, folder, value, after=read(fs, folder), why="test", durable=False)
    assert entry is not None
    return entry


def test_a_ref_that_is_not_there(fs: LocalFileSystem) -> None:
    assert read(fs, MAIN) is None
    assert list(history(fs, MAIN)) == []


def test_values_one_after_another(fs: LocalFileSystem) -> None:
    put(fs, A, B, None, C)
    assert [e.value for e in history(fs, MAIN)] == [C, None, B, A]  # type: ignore[union-attr]
    newest = read(fs, MAIN)
    assert newest is not None
    assert (newest.seq, newest.value, newest.why) == (4, C, "test")
    entries = list(history(fs, MAIN))
    assert [e.prev for e in entries[:-1]] == [e.nonce for e in entries[1:]]  # type: ignore[union-attr]
    assert sorted(fs.list(MAIN)) == [f"{n:010d}" for n in (1, 2, 3, 4)]


def test_only_one_writer_moves_it(fs: LocalFileSystem) -> None:
    before = put(fs, A)
    append(fs, MAIN, B, after=before, why="first", durable=False)
    with pytest.raises(Conflict):
        append(fs, MAIN, C, after=before, why="second", durable=False)
    with pytest.raises(Conflict):
        append(fs, MAIN, C, after=None, why="third", durable=False)
    assert [e.value for e in history(fs, MAIN)] == [B, A]  # type: ignore[union-attr]
    assert fs.list("tmp") == []


def test_a_lost_reply_is_no_conflict(fs: LocalFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fs.link

    def link(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(target)  # NFS: done, the reply was lost, and asked again

    monkeypatch.setattr(fs, "link", link)
    assert put(fs, A).value == A
    assert [e.value for e in history(fs, MAIN)] == [A]  # type: ignore[union-attr]


def test_entries_keep_their_fields(fs: LocalFileSystem) -> None:
    append(fs, MAIN, A, after=None, why="é: because\nof it", durable=True, run="run-1")
    found = read(fs, MAIN)
    assert found is not None
    assert (found.why, found.synced, found.run) == ("é: because\nof it", True, "run-1")
    assert not put(fs, B).synced


@pytest.mark.parametrize("size", [0, 1, 30, -1])
def test_a_torn_newest_entry(fs: LocalFileSystem, folder: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    put(fs, A, B, C)
    path = folder / MAIN / "0000000003"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptObject, match=f"0000000003.*names {B}.*fsck") as caught:
        read(fs, MAIN)
    assert caught.value.path == f"{MAIN}/0000000003"
    found = read(fs, MAIN, lenient=True)
    assert found is not None
    assert (found.value, found.seq) == (B, 3)
    assert "going on from there" in caplog.text
    append(fs, MAIN, A, after=found, why="after damage", durable=True)
    again = read(fs, MAIN)
    assert again is not None
    assert (again.value, again.seq) == (A, 4)
    values = [e if isinstance(e, CorruptObject) else e.value for e in history(fs, MAIN)]
    assert values[0] == A
    assert isinstance(values[1], CorruptObject)
    assert values[2:] == [B, A]


def test_no_entry_is_whole(fs: LocalFileSystem, folder: Path) -> None:
    put(fs, A)
    (folder / MAIN / "0000000001").write_bytes(b"")
    with pytest.raises(CorruptObject, match="no entry before it is whole"):
        read(fs, MAIN)
    found = read(fs, MAIN, lenient=True)
    assert found is not None
    assert (found.value, found.seq) == (None, 1)
    append(fs, MAIN, B, after=found, why="again", durable=False)
    assert read(fs, MAIN).value == B  # type: ignore[union-attr]


def test_any_bit_flipped_in_an_entry(fs: LocalFileSystem, folder: Path) -> None:
    put(fs, A)
    path = folder / MAIN / "0000000001"
    data = path.read_bytes()
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        with pytest.raises(CorruptObject):
            RefEntry.decode(MAIN, 1, bytes(bad), "path")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"ref":"r","seq":1,"value":1,"prev":"","nonce":"","time":1,"why":""}',
        '{"ref":"r","seq":1,"value":null}',
        '{"ref":"s","seq":1,"value":null,"prev":"","nonce":"","time":1,"why":""}',
        '{"ref":"r","seq":2,"value":null,"prev":"","nonce":"","time":1,"why":""}',
        '{"seq":1,"value":null,"prev":"","nonce":"","time":1,"why":""}',
        '{"ref":"r","value":null,"prev":"","nonce":"","time":1,"why":""}',
        '{"ref":"r","seq":"1","value":null,"prev":"","nonce":"","time":1,"why":""}',
        "x",
        "NaN",
    ],
)
def test_an_entry_that_is_sealed_but_none(text: str) -> None:
    from coral.store._files import seal

    with pytest.raises(CorruptObject):
        RefEntry.decode("r", 1, seal(text.encode()), "path")


def test_a_time_out_of_range_is_no_foreign_error() -> None:
    from coral.store._files import seal

    text = '{"ref":"r","seq":1,"value":null,"prev":"","nonce":"","time":1' + "0" * 400 + ',"why":""}'
    with pytest.raises(CorruptObject):
        RefEntry.decode("r", 1, seal(text.encode()), "path")


@pytest.mark.parametrize("target", [f"{MAIN}/0000000002", "refs/heads/exp/0000000001"])
def test_an_entry_that_is_out_of_place(fs: LocalFileSystem, folder: Path, target: str) -> None:
    put(fs, A)
    (folder / target).parent.mkdir(exist_ok=True)
    (folder / MAIN / "0000000001").rename(folder / target)
    with pytest.raises(CorruptObject, match="out of place"):
        read(fs, target.rpartition("/")[0])


def test_stray_files_in_a_ref(fs: LocalFileSystem, folder: Path) -> None:
    put(fs, A)
    for name in ("junk", ".DS_Store", "000000002", "00000000002", "0000000002.tmp", "1-2.log"):
        (folder / MAIN / name).write_bytes(b"junk")
    assert read(fs, MAIN).value == A  # type: ignore[union-attr]
    assert len(list(history(fs, MAIN))) == 1


GOOD = ["main", "a", "exp/1", "A-b_c.9", "x" * 200, "a.b", "v1.0", "feature/x/y", "1", "heads", "best-1", "a/HEAD"]
BAD = [
    "", ".", "..", "../x", "../../../pwned", "a/../b", "a..b", "/a", "a/", "a//b", "-a", "a/-b", ".a", "a/.b", "a.lock",
    "a.lock/b", "a b", "a\\b", "a:b", "a~1", "a^", "a@b", "a*", "a\n", "\n", "a\0", "é", "\ud800", "a?", "HEAD", "best",
    "last", "refs/heads/a", "C:/x", "%2e%2e", "a\tb", "$(x)", "\u202egnp",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_safe(fs: LocalFileSystem, name: str) -> None:
    assert check_ref_name(name) == name
    folder = folder_of("heads", name)
    assert folder.count("/") == 2
    put(fs, A, folder=folder)
    assert names(fs, "heads") == [name]


@pytest.mark.parametrize("name", [*BAD, None, 1, b"main", ["main"]], ids=ascii)
def test_names_that_are_not(name: object) -> None:
    with pytest.raises(UnsafeInput):
        check_ref_name(name)


def test_names_have_a_limit() -> None:
    with pytest.raises(LimitExceeded):
        check_ref_name("x" * 201)


@pytest.mark.parametrize("name", ["A" * 200, "a/" * 99 + "a"], ids=["capitals", "slashes"])
def test_a_name_that_is_let_in_fits_the_filesystem(fs: LocalFileSystem, name: str) -> None:
    try:
        check_ref_name(name)
    except LimitExceeded:
        return
    put(fs, A, folder=folder_of("heads", name))
    assert names(fs, "heads") == [name]


def test_names_that_differ_in_case_or_slashes_are_apart(fs: LocalFileSystem) -> None:
    every = ["exp", "Exp", "EXP", "exp/1", "exp-1", "Exp/1"]
    folders = {folder_of("heads", name) for name in every}
    assert len({folder.lower() for folder in folders}) == len(every)
    for number, name in enumerate(every):
        put(fs, f"{number:064d}", folder=folder_of("heads", name))
    assert names(fs, "heads") == sorted(every)
    assert [read(fs, folder_of("heads", name)).value for name in every] == [f"{n:064d}" for n in range(6)]  # type: ignore[union-attr]


def test_folders_that_are_no_name_are_passed_over(fs: LocalFileSystem) -> None:
    put(fs, A)
    for component in ("%", "%zz", "a%2fb", "%2E%2E", "%61", "UP", "a%0Ab", "%FF"):
        fs.mkdir(f"refs/heads/{component}")
    assert names(fs, "heads") == ["main"]


def test_a_ref_folder_that_is_a_file(fs: LocalFileSystem, folder: Path) -> None:
    """A file manager leaves such things behind."""
    put(fs, A)
    (folder / "refs/heads/.DS_Store").write_bytes(b"junk")
    (folder / "refs/heads/thumbs").write_bytes(b"junk")
    values = [read(fs, folder_of("heads", name)) for name in names(fs, "heads")]
    assert [entry.value for entry in values if entry] == [A]


@pytest.mark.parametrize("name", ["9999999999", "0000000001-9999999999.log", "0000000009-0000000002.log"])
def test_a_number_that_no_writer_can_have_come_to(tmp_path: Path, name: str) -> None:
    repo = Repository(tmp_path / "repo", init=True)
    for number in range(3):
        repo.commit({"w": np.full(3, number)}, str(number))
    (tmp_path / "repo/refs/heads/main" / name).write_text("garbage")
    assert _refs.listing(repo.store.fs, MAIN) == ({1, 2, 3}, [])
    assert _refs.missing(repo.store.fs, MAIN) == []
    assert repo.fsck(repair=True).problems == []
    again = Repository(tmp_path / "repo")
    assert again.commit({"w": np.full(3, 9)}, "new") == again.resolve("main")


def test_what_is_missing_is_told_without_counting_up_to_it(fs: LocalFileSystem, folder: Path) -> None:
    (folder / MAIN).mkdir(parents=True)
    for seq in (3, 900_000):
        (folder / MAIN / f"{seq:010d}").write_text("garbage")
    assert _refs.missing(fs, MAIN) == [1, 2, *range(4, 102)]


def test_numbers_have_room() -> None:
    assert _refs._ENTRY.fullmatch(f"{10**9:010d}")
