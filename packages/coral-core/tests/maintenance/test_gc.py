"""gc, prune and stats: what nothing needs goes, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral._digest import fold, sha256
from coral.delta import DeltaConfig
from coral.errors import CommitInUse, CommitPruned, ConfigError, CorruptObject, MissingObject, StorageError
from coral.filesystem import FileSystem, LocalFileSystem
from coral.maintenance import Collector
from coral.maintenance._trash import Trash
from coral.store import intent
from coral.store._files import nonce, seal, tag_of
from coral.store._pack import Entry, path_of, read_directory
from coral.store._pack_writer import PackWriter

Grow = Callable[..., list[str]]
Restores = Callable[[dict[str, int]], None]
CONFIG = DeltaConfig(entropy="deflate", min_size=0)


def packs(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in (folder / "packs").iterdir()}


def dead_pid(start: Callable[..., subprocess.Popen[str]]) -> int:
    process = start("")
    process.communicate()
    return process.pid


# ---- what goes


def test_there_is_nothing_to_collect(repo: Repository, grow: Grow, folder: Path, unchanged: Callable[[], None]) -> None:
    assert repo.gc().bytes_freed == 0
    grow(1, 2)
    unchanged()
    assert repo.gc().packs_removed == 0
    unchanged()


def test_a_deleted_branch(repo: Repository, grow: Grow, folder: Path, restores: Restores) -> None:
    one, two = grow(1, 2)
    before = packs(folder)
    grow(3, 4, branch="dev")
    added = sum(packs(folder).values()) - sum(before.values())
    repo.delete_branch("dev")
    assert repo.stats().reclaimable_bytes == added
    done = repo.gc()
    assert (done.packs_removed, done.packs_written, done.bytes_freed) == (2, 0, added)
    assert packs(folder) == before
    assert os.listdir(folder / "trash") == []
    restores({one: 1, two: 2})


def put(repo: Repository, *arrays: np.ndarray) -> str:
    """Write a pack of its own with these tensors, as another process might have; its name."""

    def fill(writer: PackWriter) -> None:
        for tensor in map(WeightTensor, arrays):
            data = tensor.bytes()
            writer.add_tensor(tensor.id, tensor.dtype, tensor.shape, data, sha256(data), [fold(data)])

    with intent(repo.store.fs, "commit", []) as operation:
        return repo.store.write_pack(fill, operation)[1].name


def rot(repo: Repository, pack: str, id: str | None = None) -> None:
    """Flip a bit of each tensor in a pack, or of that one."""
    with (repo.path / path_of(pack)).open("r+b") as file:
        for entry in read_directory(repo.store.fs, pack).entries():
            if entry.kind == "tensor" and id in (None, entry.id):
                file.seek(entry.offset + entry.size // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("counts", [(1, 30), (30, 1)], ids=["small first", "large first"])
def test_equal_copies_in_two_packs(repo: Repository, folder: Path, seed: int, counts: tuple[int, int]) -> None:
    """Who has looked before goes by the same copy as who comes new: neither leaves what the other could free."""
    arrays = np.random.default_rng(seed).standard_normal((30, 300))
    for count in counts:
        put(repo, *arrays[:count])
        repo.stats()
    repo.commit({str(number): array for number, array in enumerate(arrays)})
    assert repo.gc().packs_removed == 1
    assert Repository(folder).stats().reclaimable_bytes == 0


def test_a_damaged_copy_in_a_pack_that_goes_is_not_moved(repo: Repository, folder: Path) -> None:
    """Another one, in a pack that stays, is whole."""
    one, *others = np.random.default_rng(0).standard_normal((12, 3000))
    leaving = put(repo, one, *(other + 1 for other in others), others[0] + 2)
    put(repo, one, *others)
    id = repo.commit({"one": one, **{str(number): other for number, other in enumerate(others)}})
    rot(repo, leaving, WeightTensor(one).id)
    assert repo.gc().packs_removed == 1
    assert np.array_equal(Repository(folder).load(id)["one"].data, one)
    assert Repository(folder).fsck().problems == []


def test_a_repair_that_sets_aside_what_is_about_to_be_removed(
    repo: Repository, grow: Grow, folder: Path, restores: Restores, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = grow(1, 2)
    grow(3, branch="dev")
    repo.delete_branch("dev")
    remove = Trash.remove

    def late(self: Trash, pack: str) -> int:
        for path in (folder / "trash").rglob("*.pack"):
            path.unlink()
        return remove(self, pack)

    monkeypatch.setattr(Trash, "remove", late)
    assert repo.gc().bytes_freed == 0
    restores({one: 1, two: 2})


def test_what_was_read_back_may_rot(
    repo: Repository, grow: Grow, folder: Path, version: Callable[..., dict[str, np.ndarray]],
    assert_bits: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A repack that ended early has verified what it wrote; a gc long after it reads that again."""
    monkeypatch.setattr("coral.maintenance._repack._BATCH", 1)
    commits = grow(*range(8))
    before = packs(folder)

    def stop(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repo.repack(config=CONFIG, progress=stop)
    written = packs(folder).keys() - before
    assert len(written) > 1
    for pack in written:
        rot(repo, pack)
    repo.gc()
    for number, id in enumerate(commits):
        assert_bits(Repository(folder).load(id), version(number))


def test_what_nobody_knows_is_swept_up_or_left(repo: Repository, grow: Grow, folder: Path) -> None:
    """Torn intents that are old go; a young one may be being written; what is no file stops nothing."""
    grow(*range(4))
    for name, age in (("a" * 32, 1e9), ("b" * 32, 0)):
        (folder / "intents" / name).touch()
        if age:
            os.utime(folder / "intents" / name, (age, age))
    (folder / "tmp/folder").mkdir()
    os.utime(folder / "tmp/folder", (1e9, 1e9))
    (folder / "refs/heads/dangling").symlink_to("nowhere")
    assert Repository(folder).prune("HEAD~2").packs_removed == 1
    assert os.listdir(folder / "intents") == ["b" * 32]


def test_commits_that_another_branch_leads_to_stay(repo: Repository, grow: Grow, restores: Restores) -> None:
    grow(1)
    three, four = grow(3, 4, branch="dev")
    repo.tag("kept", three)
    repo.delete_branch("dev")
    assert repo.gc().packs_removed == 1
    restores({three: 3})
    with pytest.raises(LookupError):
        repo.load(four)


def test_what_a_commit_that_failed_left(
    repo: Repository, fs: FileSystem, grow: Grow, folder: Path, around: Callable[..., FileSystem]
) -> None:
    grow(1)
    before = packs(folder)

    def broken(kind: str, path: str) -> None:
        if kind == "link" and path.startswith("refs/heads"):
            raise OSError(errno.EIO, "no", path)

    with pytest.raises(StorageError):
        Repository(around(fs, broken)).commit({"x": np.arange(9000.0)})
    assert len(packs(folder)) == 2
    assert repo.gc().packs_removed == 1
    assert packs(folder) == before


def test_what_dead_processes_left_and_not_what_living_ones_have(
    repo: Repository, fs: LocalFileSystem, folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    living, here = start("import sys; sys.stdin.read()"), fs.origin()
    try:
        kept = {}
        for pid in (dead_pid(start), living.pid, here.pid):
            origin = here._replace(pid=pid)
            tmp, announced = folder / "tmp" / f"{nonce()}-{tag_of(origin)}", folder / "intents" / nonce()
            tmp.write_bytes(b"half a pack")
            content = f'{{"host":"{here.host}","boot":"{here.boot}","pid":{pid},"kind":"commit","needs":[]}}'
            announced.write_bytes(seal(content.encode()))
            kept[pid] = {tmp, announced}
        (folder / "tmp" / "of another kind").write_bytes(b"")
        dead, *others = kept.values()
        repo.gc()
        assert not any(path.exists() for path in dead)
        assert all(path.exists() for paths in others for path in paths)
        assert (folder / "tmp" / "of another kind").exists()
    finally:
        living.communicate("")


def test_what_another_boot_left(repo: Repository, fs: LocalFileSystem, folder: Path) -> None:
    earlier = fs.origin()._replace(boot="earlier")
    tmp = folder / "tmp" / f"{nonce()}-{tag_of(earlier)}"
    tmp.write_bytes(b"")
    repo.gc()
    assert not tmp.exists()


def test_packs_of_which_only_a_part_lives_are_written_anew(
    repo: Repository, grow: Grow, folder: Path, restores: Restores, entries: Callable[[Path], dict[str, list[Entry]]]
) -> None:
    one, two = grow(1, 2)
    repo.prune(one)
    found = entries(folder)
    assert {id for id, entry in repo.tree(two).items()} == {"weight", "bias", "frozen", "n"}
    assert repo.tree(two)["frozen"].id in found  # came with the first commit, and is in the second
    assert all(len(copies) == 1 for copies in found.values())
    assert repo.stats().reclaimable_bytes == 0
    restores({two: 2})


def test_many_small_packs_are_put_together(repo: Repository, grow: Grow, folder: Path, restores: Restores) -> None:
    commits = dict(zip(grow(*range(20)), range(20), strict=True))
    assert len(packs(folder)) == 20
    done = repo.gc()
    assert (done.packs_removed, done.packs_written) == (20, 1)
    assert len(packs(folder)) == 1
    restores(commits)
    assert repo.gc().packs_removed == 0


# ---- what stays, and for how long


def test_grace_is_for_what_nothing_ever_led_to(repo: Repository, fs: FileSystem, grow: Grow, folder: Path) -> None:
    grow(1)
    before = packs(folder)
    grow(2, branch="dev")
    repo.delete_branch("dev")
    assert repo.gc(grace=1000).packs_removed == 0
    (new,) = packs(folder).keys() - before.keys()
    an_hour_ago = (folder / "packs" / f"{new}.pack").stat().st_mtime - 3600
    os.utime(folder / "packs" / f"{new}.pack", (an_hour_ago, an_hour_ago))
    assert repo.gc(grace=7200).packs_removed == 0
    assert repo.gc(grace=1000).packs_removed == 1
    assert packs(folder) == before


def test_a_link_whose_reply_was_lost_is_one_that_was_made(
    repo: Repository, grow: Grow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(1)
    before = packs(folder)
    grow(2, branch="dev")
    repo.delete_branch("dev")
    link = LocalFileSystem.link

    def lose_the_reply(self: LocalFileSystem, source: str, target: str) -> None:
        link(self, source, target)
        if target.startswith("trash/"):
            raise FileExistsError(errno.EEXIST, "sent again", target)

    monkeypatch.setattr(LocalFileSystem, "link", lose_the_reply)
    assert repo.gc().packs_removed == 1
    assert packs(folder) == before


def test_a_clock_that_is_wrong_makes_nothing_old(
    repo: Repository, fs: FileSystem, grow: Grow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(1)
    grow(2, branch="dev")
    repo.delete_branch("dev")
    written = folder / "tmp" / f"{nonce()}-{'0' * 8}-{'0' * 8}-1"
    written.write_bytes(b"another machine is at it")
    now = fs.now()
    monkeypatch.setattr(LocalFileSystem, "now", lambda self: now + 10 * 365 * 86400.0)
    assert repo.gc(grace=1000).packs_removed == 0
    assert written.exists()


def test_what_was_pruned_has_no_grace(repo: Repository, grow: Grow) -> None:
    one, _ = grow(1, 2)
    repo.annotate(one, pruned=True)
    done = repo.gc(grace=1e9)
    assert done.packs_removed == 1
    assert done.bytes_freed > 100_000


def test_a_filesystem_that_others_share_has_a_grace_of_days(
    repo: Repository, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(1)
    grow(2, branch="dev")
    repo.delete_branch("dev")
    monkeypatch.setattr(LocalFileSystem, "shared", lambda self: True)
    assert repo.gc().packs_removed == 0
    assert repo.gc(grace=0).packs_removed == 1


@pytest.mark.parametrize("grace", [-1, float("nan"), True, "1"])
def test_a_grace_that_cannot_be(repo: Repository, grace: object) -> None:
    with pytest.raises(ConfigError, match="grace"):
        repo.gc(grace=grace)  # type: ignore[arg-type]


def test_what_an_open_run_relies_on_stays(repo: Repository, fs: FileSystem, grow: Grow, restores: Restores) -> None:
    grow(1)
    (three,) = grow(3, branch="dev")
    with intent(fs, "run", [three]):
        repo.delete_branch("dev")
        assert repo.gc().packs_removed == 0
        restores({three: 3})
    assert repo.gc().packs_removed == 1


def test_a_reader_goes_on_reading(
    repo: Repository, grow: Grow, version: Callable[..., object], folder: Path, assert_bits: Callable[..., None]
) -> None:
    grow(1)
    (three,) = grow(3, branch="dev")
    tensors = Repository(folder).load(three)
    repo.delete_branch("dev")
    assert repo.gc().packs_removed == 1
    assert_bits(tensors, version(3))


def test_somebody_relies_on_what_was_pruned_and_freed_before(repo: Repository, fs: FileSystem, grow: Grow) -> None:
    one, _ = grow(1, 2)
    repo.prune(one)
    grow(3, branch="dev")
    repo.delete_branch("dev")
    with intent(fs, "commit", [one, "ab" * 32]):
        assert repo.gc().packs_removed == 1
        assert repo.stats().commits == 2


# ---- refusals


def damage_ref(folder: Path) -> None:
    newest = max((folder / "refs/heads/main").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])


def damage_pack(folder: Path) -> None:
    largest = max((folder / "packs").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def lose_a_tip(folder: Path) -> None:
    repo = Repository(folder)
    with repo.store.copies() as copies:
        (folder / path_of(next(copies.all(repo.resolve())).pack.name)).unlink()


def ref_to_nothing(folder: Path) -> None:
    fs = LocalFileSystem(folder)
    Repository(fs).store.move_ref("refs/heads/odd", "cd" * 32, after=None, why="test")


@pytest.mark.parametrize("damage", [damage_ref, damage_pack, lose_a_tip, ref_to_nothing])
@pytest.mark.parametrize("operation", ["gc", "prune", "repack", "stats"])
def test_nothing_is_deleted_where_something_is_missing(
    repo: Repository, grow: Grow, folder: Path, damage: Callable[[Path], None], operation: str,
    files_of: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    _, two, _ = grow(1, 2, 3)
    grow(4, branch="dev")
    repo.delete_branch("dev")  # there would be something to collect
    damage(folder)
    before = files_of(folder / "packs")
    again = Repository(folder, durability="fast")
    doing: dict[str, Callable[[], object]] = {
        "gc": again.gc,
        "prune": lambda: again.prune(two),
        "repack": lambda: again.repack(config=CONFIG),
        "stats": again.stats,
    }
    with pytest.raises(CorruptObject) as raised:
        doing[operation]()
    if damage in (lose_a_tip, damage_pack, ref_to_nothing):
        assert isinstance(raised.value, MissingObject)
    assert files_of(folder / "packs") == before
    assert os.listdir(folder / "intents") == os.listdir(folder / "trash") == []


# ---- prune


def test_a_pruned_commit(repo: Repository, grow: Grow, folder: Path, restores: Restores) -> None:
    one, two, three = grow(1, 2, 3)
    done = repo.prune(["HEAD~1", one])
    assert done.bytes_freed > 200_000
    again = Repository(folder)
    assert [(commit.id, commit.pruned) for commit in again.log()] == [(three, False), (two, True), (one, True)]
    for ref in (one, two):
        for read in (again.load, again.load_state, again.tree):
            with pytest.raises(CommitPruned):
                read(ref)
    restores({three: 3})
    assert again.prune(one).packs_removed == 0  # once more
    assert again.diff(three, three).identical


def test_a_commit_that_is_needed_is_not_pruned(
    repo: Repository, fs: FileSystem, grow: Grow, restores: Restores
) -> None:
    zero, one, two, three, four = grow(0, 1, 2, 3, 4)
    repo.tag("t", two)
    repo.branch("b", three)
    with intent(fs, "run", [one]):
        for ref, why in ((four, "the branch main"), ("t", "the tag t"), ("b", "the branch b"), (one, "an open run")):
            with pytest.raises(CommitInUse, match=why) as raised:
                repo.prune([zero, ref])
            assert raised.value.ref == ref
    assert not any(commit.pruned for commit in repo.log())
    restores({zero: 0, one: 1, two: 2, three: 3, four: 4})


def test_a_pruned_keyframe_stays_while_something_is_a_difference_from_it(
    repo: Repository, grow: Grow, folder: Path, restores: Restores
) -> None:
    one, two, three, four = grow(1, 2, 3, 4)
    repo.repack(config=CONFIG)
    whole = repo.stats()
    assert whole.base_bytes == 0
    repo.prune(one)
    stats = repo.stats()
    assert 50_000 < stats.base_bytes < 130_000
    restores({two: 2, three: 3, four: 4})
    repo.prune([two, three])
    assert repo.stats().base_bytes == 0
    assert repo.stats().stored_bytes < stats.stored_bytes - 50_000
    restores({four: 4})


# ---- what collections left that died


def test_trash_of_the_dead_is_read_and_put_back(
    repo: Repository, grow: Grow, folder: Path, restores: Restores, version: Callable[..., object]
) -> None:
    one, two = grow(1, 2)
    trash = folder / "trash" / nonce()
    shutil.move(folder / "packs", trash)
    (folder / "packs").mkdir()
    restores({one: 1, two: 2})  # nobody knows of these packs
    names = sorted(os.listdir(trash))
    repo.gc()
    assert sorted(os.listdir(folder / "packs")) == names
    assert os.listdir(folder / "trash") == []


def test_trash_of_the_living_is_left_alone_but_for_what_is_needed(
    repo: Repository, fs: FileSystem, grow: Grow, folder: Path, restores: Restores
) -> None:
    (one,) = grow(1)
    needed = packs(folder)
    grow(2, branch="dev")
    repo.delete_branch("dev")
    with intent(fs, "gc", []) as other:
        trash = folder / "trash" / other.name
        shutil.move(folder / "packs", trash)
        (folder / "packs").mkdir()
        repo.repack(config=CONFIG)
        assert packs(folder) == needed
        assert len(os.listdir(trash)) == 2
    restores({one: 1})


# ---- stats


def test_stats_to_the_byte(
    repo: Repository, grow: Grow, folder: Path, version: Callable[..., dict[str, np.ndarray]]
) -> None:
    commits = grow(1, 2, 3)
    nbytes = sum(tensor.nbytes for tensor in version(1).values()) + 500 * 8
    own = nbytes - version(1)["frozen"].nbytes - 500 * 8  # the state's tensor does not change either
    found = repo.stats()
    assert (found.commits, found.packs) == (3, 3)
    assert found.raw_bytes == 3 * nbytes
    assert found.stored_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (found.reclaimable_bytes, found.base_bytes) == (0, 0)
    assert [each.id for each in found.by_commit] == commits
    assert [each.raw_bytes for each in found.by_commit] == [nbytes] * 3
    assert [each.stored_bytes for each in found.by_commit] == [nbytes, own, own]


def test_stats_of_what_is_encoded(
    repo: Repository, grow: Grow, folder: Path, entries: Callable[[Path], dict[str, list[Entry]]]
) -> None:
    one, two, _ = grow(1, 2, 3)
    tree = repo.tree(two)
    repo.repack(config=CONFIG)
    found = entries(folder)
    own = [tree[name].id for name in ("weight", "bias", "n")]
    by_commit = {each.id: each.stored_bytes for each in repo.stats().by_commit}
    assert by_commit[two] == sum(min(entry.size for entry in found[id]) for id in own)
    first = repo.tree(one)
    repo.prune(one)
    base = [entry for name in ("weight", "bias") for entry in entries(folder)[first[name].id]]
    assert repo.stats().base_bytes == sum(entry.size for entry in base) > 0
    assert repo.stats().commits == 3
    assert [each.id for each in repo.stats().by_commit] == [two, repo.resolve()]


def test_stats_of_an_empty_repository(repo: Repository) -> None:
    found = repo.stats()
    assert (found.commits, found.packs, found.raw_bytes, found.reclaimable_bytes, found.by_commit) == (0, 0, 0, 0, ())


# ---- copies that are damaged


def damage(folder: Path, path: Path, number: int, flip: Callable[..., None]) -> None:
    flip(path, read_directory(LocalFileSystem(folder), path.stem).entry(number).offset + 9)


@pytest.mark.parametrize("times", range(4))  # in whichever order the packs are looked at
def test_a_damaged_copy_stands_for_nothing(
    repo: Repository, folder: Path, flip: Callable[..., None], times: int
) -> None:
    data = np.arange(1000.0) + times
    first = repo.commit({"a": data})
    (path,) = (folder / "packs").iterdir()
    damage(folder, path, 0, flip)
    second = repo.commit({"a": data, "b": data[:9]})  # it is stored once more, as the first copy is not what it was
    for _ in range(2):
        Repository(folder).gc()
        for commit in (first, second):
            assert Repository(folder).load(commit)["a"].data.tolist() == data.tolist()
    assert Repository(folder).fsck().ok  # the damaged copy is gone


def test_a_damaged_difference_stands_for_nothing(
    repo: Repository, grow: Grow, folder: Path, restores: Restores, flip: Callable[..., None]
) -> None:
    """A repack was killed before it could free the whole copies; then what it had written rotted."""
    ids = grow(*range(4))
    whole = folder.with_name("whole")
    shutil.copytree(folder / "packs", whole)
    before = packs(folder)
    repo.repack(config=CONFIG)
    (made,) = (
        folder / "packs" / f"{name}.pack" for name in packs(folder).keys() - before.keys() if encoded(folder, name)
    )
    shutil.copytree(whole, folder / "packs", dirs_exist_ok=True)
    for number in range(len(read_directory(LocalFileSystem(folder), made.stem))):
        damage(folder, made, number, flip)
    Repository(folder).gc()
    assert not made.exists()
    restores(dict(zip(ids, range(4), strict=True)))


def test_a_damaged_commit_stands_for_nothing(repo: Repository, folder: Path, flip: Callable[..., None]) -> None:
    id = repo.commit({"a": np.arange(9.0)})
    (path,) = (folder / "packs").iterdir()
    entries = list(read_directory(LocalFileSystem(folder), path.stem).entries())
    with repo.store.copies(), intent(repo.store.fs, "test", []) as operation:
        payload = repo.store.read_object("commit", id)
        repo.store.write_pack(lambda writer: writer.add_object("commit", payload), operation)
    (number,) = (n for n, entry in enumerate(entries) if entry.kind == "commit")
    damage(folder, path, number, flip)
    for _ in range(3):
        Repository(folder).gc()
        assert Repository(folder).load(id)["a"].data.tolist() == list(range(9))
    assert Repository(folder).fsck().ok


def encoded(folder: Path, name: str) -> bool:
    return any(entry.codec for entry in read_directory(LocalFileSystem(folder), name).entries())


def test_a_collection_that_begins_is_not_taken_for_one_that_was_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repository(folder, init=True)
    repo.commit({"w": np.arange(9.0)}, "one")
    fs = repo.store.fs
    (pack,) = [name.removesuffix(".pack") for name in fs.list("packs")]
    listing, began = type(fs).list, ExitStack()

    def begin_after(self: LocalFileSystem, path: str) -> list[str]:
        found = listing(self, path)
        if path in ("intents", "trash") and not theirs:
            theirs.append("")  # what follows lists, too
            operation = began.enter_context(intent(fs, "gc", []))
            theirs[0] = operation.name
            Trash(fs, operation.name).take([pack])
        return found

    theirs: list[str] = []
    with began, monkeypatch.context() as patch:
        patch.setattr(type(fs), "list", begin_after)
        Collector(repo.store)._put_back_abandoned("mine")
        assert Trash(fs, theirs[0]).packs() == [pack], "its pack was taken from it"
