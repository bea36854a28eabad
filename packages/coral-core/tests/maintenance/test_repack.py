"""repack: the past becomes smaller, and stays what it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.delta import DeltaConfig, GroupedDelta, PackDelta, Planes
from coral.delta._entropy import _zstd
from coral.errors import ConfigError, Conflict, CorruptObject
from coral.filesystem import FileSystem, LocalFileSystem
from coral.maintenance import _encoding
from coral.store._files import seal
from coral.store._pack import RAW, Entry, path_of

Arrays = dict[str, np.ndarray]
Grow = Callable[..., list[str]]
Restores = Callable[[dict[str, int]], None]
Entries = Callable[[Path], dict[str, list[Entry]]]


def config(**options: Any) -> DeltaConfig:
    return DeltaConfig(**{"entropy": "deflate", "min_size": 0, **options})


@pytest.fixture
def stored(repo: Repository, folder: Path, entries: Entries) -> Callable[[str, str], Entry]:
    """The copy of a commit's tensor that takes least."""

    def find(commit: str, name: str) -> Entry:
        return min(entries(folder)[repo.tree(commit)[name].id], key=lambda entry: entry.size)

    return find


def walk(seed: int, count: int, size: int = 20_000, step: float = 1e-4) -> list[np.ndarray]:
    """Versions of a tensor of which every number moves a little each time."""
    rng = np.random.default_rng(seed)
    first, moves = rng.standard_normal(size), rng.standard_normal((count, size)) * step
    return [(first + part).astype(np.float32) for part in np.cumsum(moves, 0)]


# ---- what it does


def test_the_past_becomes_differences(
    repo: Repository, grow: Grow, folder: Path, restores: Restores, stored: Callable[[str, str], Entry]
) -> None:
    ids = grow(*range(6))
    before = repo.stats().stored_bytes
    seen: list[tuple[int, int]] = []
    done = repo.repack(config=config(), progress=lambda finished, total: seen.append((finished, total)))
    assert done.commits == 4  # not the newest, nor the keyframe: it has noise alone
    assert done.stored_bytes < 0.4 * done.raw_bytes
    assert done.freed is not None
    assert repo.stats().stored_bytes < 0.5 * before
    assert done.freed.bytes_freed > 0.4 * before
    assert seen
    assert seen[-1][0] == seen[-1][1] > 0
    assert [finished for finished, _ in seen] == sorted(finished for finished, _ in seen)
    assert any(stored(id, "weight").base for id in ids)
    restores(dict(zip(ids, range(6), strict=True)))
    assert repo.load_state(ids[1])["n"] == 1  # type: ignore[index, call-overload]


def test_tips_stay_whole(repo: Repository, grow: Grow, stored: Callable[[str, str], Entry]) -> None:
    grow(0, 1, 2)
    (side,) = grow(3, branch="dev")
    repo.repack(aggressive=True, config=config())
    for tip in (repo.resolve(), side):
        assert all(stored(tip, name).codec == RAW for name in repo.tree(tip))


def test_once_more_changes_nothing(
    repo: Repository, grow: Grow, folder: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    grow(*range(7))
    repo.repack(config=config())
    before = files_of(folder / "packs")
    done = Repository(folder, durability="fast").repack(config=config())
    assert (done.tensors, done.commits) == (0, 0)
    assert files_of(folder / "packs") == before


def test_there_is_nothing_to_do(repo: Repository, grow: Grow) -> None:
    assert repo.repack(config=config()).tensors == 0
    grow(1)
    assert repo.repack(config=config()).tensors == 0
    assert "nothing" in str(repo.repack(config=config())) or "0 bytes" in str(repo.repack(config=config()))


def test_it_goes_on_as_the_history_grows(
    repo: Repository, grow: Grow, restores: Restores, entries: Entries, folder: Path
) -> None:
    commits: dict[str, int] = {}
    for n in range(12):
        (id,) = grow(n)
        commits[id] = n
        repo.repack(config=config(group_size=4), patient=n % 2 == 0)
    restores(commits)
    assert max(depths(entries(folder)).values()) <= 2


def depths(found: dict[str, list[Entry]]) -> dict[str, int]:
    """How many differences reading each tensor takes, by the copies that take least."""

    def depth(id: str) -> int:
        base = min(found[id], key=lambda entry: entry.size).base
        return 0 if base is None else 1 + depth(base)

    return {id: depth(id) for id in found}


@pytest.mark.parametrize("deepest", [1, 2])
def test_depth_has_a_limit(repo: Repository, folder: Path, entries: Entries, deepest: int) -> None:
    for data in walk(0, 14):
        repo.commit({"w": data})
    repo.repack(config=config(max_depth=deepest, group_size=3))
    found = depths(entries(folder))
    assert 1 <= max(found.values()) <= deepest


def test_aggressive_takes_less(
    repo: Repository, folder: Path, assert_bits: Callable[..., None], stored: Callable[[str, str], Entry]
) -> None:
    versions = walk(1, 6)
    ids = [repo.commit({"w": data}) for data in versions]
    repo.repack(config=config())
    before = {id: stored(id, "w").size for id in ids}
    done = repo.repack(aggressive=True, config=config())
    after = {id: stored(id, "w").size for id in ids}
    assert done.tensors > 0
    assert sum(after.values()) < sum(before.values())
    assert {stored(id, "w").codec for id in ids[:-1]} & {GroupedDelta.code}
    assert repo.repack(aggressive=True, config=config()).tensors == 0
    for id, data in zip(ids, versions, strict=True):
        assert_bits(Repository(folder).load(id), {"w": data})


def test_patience_leaves_whole_what_may_be_nearer_to_a_keyframe_to_come(
    repo: Repository, stored: Callable[[str, str], Entry]
) -> None:
    ids = [repo.commit({"w": data}) for data in walk(2, 8)]
    repo.repack(config=config(group_size=8), patient=True)
    whole = [n for n, id in enumerate(ids) if stored(id, "w").codec == RAW]
    assert 5 in whole
    assert 1 not in whole
    repo.repack(config=config(group_size=8))
    assert [n for n, id in enumerate(ids) if stored(id, "w").codec == RAW] != whole


def test_of_a_keyframe_what_nothing_is_a_difference_from_is_encoded_too(
    repo: Repository, stored: Callable[[str, str], Entry]
) -> None:
    """Planes do not shrink it enough to make up for reading them with each difference: here there is none."""
    rng = np.random.default_rng(1)
    ids = [repo.commit({"w": data, "m": rng.standard_normal(20_000).astype(np.float32)}) for data in walk(2, 4)]
    repo.repack(config=config())
    key = ids[0]
    assert stored(key, "w").codec == RAW
    assert stored(ids[1], "w").base == repo.tree(key)["w"].id
    assert stored(ids[1], "m").codec == stored(key, "m").codec == Planes.code
    assert repo.repack(config=config()).tensors == 0


# ---- each option


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("planes", {Planes.code}), ("pack", {PackDelta.code, Planes.code}), ("grouped", {GroupedDelta.code, Planes.code})],
)
def test_codec(repo: Repository, codec: Any, expected: set[int], stored: Callable[[str, str], Entry]) -> None:
    ids = [repo.commit({"w": data}) for data in walk(3, 4)]
    repo.repack(config=config(codec=codec))
    assert {stored(id, "w").codec for id in ids[:-1]} - {RAW} <= expected
    assert stored(ids[1], "w").codec == max(expected - {Planes.code}, default=Planes.code)


def test_codec_raw(repo: Repository, grow: Grow) -> None:
    grow(1, 2, 3)
    assert repo.repack(config=config(codec="raw")).tensors == 0


def test_level(repo: Repository, folder: Path) -> None:
    sizes = {}
    for level in (1, 9):
        here = Repository(folder.with_name(f"level{level}"), init=True, durability="fast")
        rng = np.random.default_rng(0)
        for n in range(3):
            here.commit({"w": np.repeat(rng.integers(0, 50, 3000), 7).astype(np.int32) + n})
        sizes[level] = here.repack(config=config(level=level)).stored_bytes
    assert sizes[9] < sizes[1]


def test_entropy(repo: Repository, stored: Callable[[str, str], Entry]) -> None:
    if _zstd() is None:
        with pytest.raises(ConfigError, match="zstd"):
            config(entropy="zstd")
        return
    ids = [repo.commit({"w": data}) for data in walk(3, 4)]
    repo.repack(config=config(entropy="zstd"))
    assert stored(ids[1], "w").params == 2


def test_similarity(repo: Repository, stored: Callable[[str, str], Entry]) -> None:
    """What was renamed finds its older version; what is unrelated, or little like it, finds none."""
    old, new = walk(4, 2)
    other = np.random.default_rng(9).standard_normal(old.size).astype(np.float32)
    first = repo.commit({"old.name": old})
    second = repo.commit({"new.name": new, "unrelated": other})
    repo.commit({"x": np.zeros(3)})
    repo.repack(config=config())
    assert stored(second, "new.name").base == repo.tree(first)["old.name"].id
    assert stored(second, "unrelated").base is None


@pytest.mark.parametrize(("threshold", "found"), [(0.5, True), (0.9, False)])
def test_similarity_threshold(
    repo: Repository, stored: Callable[[str, str], Entry], threshold: float, found: bool
) -> None:
    rng = np.random.default_rng(3)
    old = rng.standard_normal(20_000)
    noise = rng.standard_normal(20_000)
    noise[:10_000] = 0  # half of it is as it was: a cosine of about 0.7
    new = np.where(noise == 0, old, noise)
    repo.commit({"a": old.astype(np.float32)})
    second = repo.commit({"b": new.astype(np.float32)})
    repo.commit({"x": np.zeros(3)})
    repo.repack(config=config(similarity_threshold=threshold))
    assert (stored(second, "b").base is not None) == found


@pytest.mark.parametrize(("group_size", "keyframes"), [(2, 4), (4, 2), (8, 1)])
def test_group_size(repo: Repository, stored: Callable[[str, str], Entry], group_size: int, keyframes: int) -> None:
    ids = [repo.commit({"w": data}) for data in walk(5, 9)]
    repo.repack(config=config(group_size=group_size, max_depth=1))
    assert sum(stored(id, "w").base is None for id in ids[:-1]) == keyframes


def test_min_size(repo: Repository, stored: Callable[[str, str], Entry]) -> None:
    for n in range(3):
        repo.commit({"large": walk(6, 3, 2000)[n], "small": walk(7, 3, 1000)[n]})
    repo.repack(config=config(min_size=4001))
    middle = repo.resolve("HEAD~1")
    assert stored(middle, "large").codec != RAW
    assert stored(middle, "small").codec == RAW
    repo.repack(config=config(min_size=4000))
    # what was decided for the commit stays
    assert stored(middle, "large").codec != RAW


# ---- where differences come from


def test_a_fine_tune_that_came_from_elsewhere_under_other_names(
    repo: Repository, folder: Path, stored: Callable[[str, str], Entry], assert_bits: Callable[..., None]
) -> None:
    base, tuned, more = walk(8, 3, step=1e-5)
    first = repo.commit({"transformer.h.0.weight": base})
    repo.commit({"x": np.zeros(2)})
    elsewhere = Repository(folder.with_name("elsewhere"), init=True, durability="fast")
    made = elsewhere.commit({"model.layers.0.weight": tuned})
    second = repo.commit(elsewhere.load(made), branch="tuned")
    repo.commit({"model.layers.0.weight": more}, branch="tuned")
    repo.repack(config=config())
    assert stored(second, "model.layers.0.weight").base == repo.tree(first)["transformer.h.0.weight"].id
    assert stored(second, "model.layers.0.weight").size < 0.6 * tuned.nbytes
    assert_bits(Repository(folder).load(second), {"model.layers.0.weight": tuned})


def test_equal_tensors_are_stored_once(repo: Repository, grow: Grow, folder: Path, entries: Entries) -> None:
    grow(0, 1, 2, 3)
    repo.repack(config=config())
    assert all(len({entry.codec for entry in copies}) == len(copies) for copies in entries(folder).values())
    assert len(entries(folder)[repo.tree()["frozen"].id]) == 1


def test_commits_that_are_pruned_are_left_out(repo: Repository, grow: Grow, restores: Restores) -> None:
    ids = grow(*range(6))
    repo.prune([ids[0], ids[3]])
    assert repo.repack(config=config()).commits == 2  # and not the keyframe
    restores({ids[n]: n for n in (1, 2, 4, 5)})


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "uint8", "bool", "complex64"]
)
def test_every_bit_comes_back(repo: Repository, folder: Path, dtype: str, assert_bits: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    itemsize = np.dtype(dtype).itemsize
    bits = rng.integers(0, 2 if dtype == "bool" else 256, (5, 4001 * itemsize), np.uint8)
    bits[1:, : 3000 * itemsize] = bits[0, : 3000 * itemsize]  # the rest is noise, NaNs and all
    versions = [row.view(dtype).copy() for row in bits]
    ids = [repo.commit({"w": data, "empty": np.zeros((0, 3), dtype)}) for data in versions]
    assert repo.repack(config=config()).tensors > 0
    again = Repository(folder)
    for id, data in zip(ids, versions, strict=True):
        assert_bits(again.load(id)["w"], data)
    assert again.fsck().ok


# ---- damage


def damage(repo: Repository, folder: Path, commit: str, name: str, at: int) -> None:
    with repo.store.copies() as copies:
        found = next(copies.all(repo.tree(commit)[name].id))
    path = folder / path_of(found.pack.name)
    data = bytearray(path.read_bytes())
    data[found.entry.offset + at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def rotten(repo: Repository, folder: Path) -> list[str]:
    """Commits of a tensor of nine blocks; in the third block of the second one a bit has flipped."""
    data = np.random.default_rng(0).standard_normal(9 << 18).astype(np.float32)
    ids = []
    for number in range(4):
        data[:10] += number
        ids.append(repo.commit({"w": data, "small": walk(1, 4, 5000)[number]}))
    damage(repo, folder, ids[1], "w", (2 << 20) + 5)
    return ids


def test_damage_is_not_passed_on(
    repo: Repository, folder: Path, rotten: list[str], stored: Callable[[str, str], Entry]
) -> None:
    again = Repository(folder, durability="fast")
    assert again.repack(config=config()).tensors > 0
    assert stored(rotten[1], "w").codec == RAW
    assert stored(rotten[1], "small").codec != RAW
    assert stored(rotten[2], "w").codec != RAW
    for read in (lambda: Repository(folder).load(rotten[1])["w"].data,):
        with pytest.raises(CorruptObject):
            read()
    assert any(rotten[1] in problem.commits for problem in Repository(folder).fsck().problems)
    for id in (rotten[0], rotten[2], rotten[3]):
        Repository(folder).load(id)["w"].data  # noqa: B018 - checked as it is read


def test_nothing_becomes_a_difference_from_what_is_damaged(
    repo: Repository, folder: Path, rotten: list[str], stored: Callable[[str, str], Entry]
) -> None:
    """The keyframe: in a block that no sample is of, so that only reading it whole shows it."""
    damage(repo, folder, rotten[0], "w", (3 << 20) + 5)
    kept = {id: Repository(folder).load(id)["w"].data.tobytes() for id in rotten[2:]}
    key = repo.tree(rotten[0])["w"].id
    again = Repository(folder, durability="fast")
    assert again.repack(config=config()).tensors > 0
    assert stored(rotten[0], "w").codec == RAW
    assert {stored(id, "w").base for id in rotten} == {None}
    assert stored(rotten[2], "small").base is not None
    for id, data in kept.items():
        assert Repository(folder).load(id)["w"].data.tobytes() == data
    assert any(key[:12] in problem.message for problem in Repository(folder).fsck().problems)


def test_without_reading_back_it_would_be(folder: Path, rotten: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_encoding, "_verify", lambda *_: None)
    Repository(folder, durability="fast").repack(config=config())
    Repository(folder).load(rotten[1])["w"].data  # noqa: B018 - silently wrong


# ---- one at a time


def lease(fs: LocalFileSystem, folder: Path, pid: int, number: int = 3) -> Path:
    origin = fs.origin()
    content = f'{{"host":"{origin.host}","boot":"{origin.boot}","pid":{pid},"kind":"lease","needs":[]}}'
    path = folder / "intents" / f"repack-{number:010d}"
    path.write_bytes(seal(content.encode()))
    return path


def test_another_repack_is_at_work(
    repo: Repository, fs: LocalFileSystem, grow: Grow, folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    grow(1, 2, 3)
    process = start("import sys; sys.stdin.read()")
    path = lease(fs, folder, process.pid)
    with pytest.raises(Conflict, match="repacking"):
        repo.repack(config=config())
    assert path.exists()
    assert repo.gc().packs_removed == 0  # that is no repack
    process.communicate("")
    assert repo.repack(config=config()).tensors > 0
    assert os.listdir(folder / "intents") == []


def test_a_torn_lease_is_of_before_a_loss_of_power(
    repo: Repository, fs: LocalFileSystem, grow: Grow, folder: Path
) -> None:
    grow(1, 2, 3)
    path = lease(fs, folder, os.getpid())
    path.write_bytes(path.read_bytes()[:20])
    assert repo.repack(config=config()).tensors > 0
    assert os.listdir(folder / "intents") == []


def test_a_lease_that_could_not_be_removed(
    repo: Repository, fs: LocalFileSystem, grow: Grow, folder: Path, around: Callable[..., FileSystem]
) -> None:
    grow(1, 2, 3)

    def broken(kind: str, path: str) -> None:
        if kind == "unlink" and path.startswith("intents/repack-"):
            raise OSError(5, "no", path)

    Repository(around(fs, broken)).repack(config=config())
    assert len(os.listdir(folder / "intents")) == 1
    assert repo.repack(config=config()).tensors == 0
    assert os.listdir(folder / "intents") == []
