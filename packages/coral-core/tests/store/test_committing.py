"""A commit while others are at work: between any two of its steps somebody may move the ref, or take a pack away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.errors import Conflict
from coral.filesystem import FileSystem, LocalFileSystem
from coral.store import _committing, needed

Bits = Callable[[Any, Any], None]
FROZEN = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)


class Once:
    """Does something just before the first operation of a kind on a path that begins so."""

    def __init__(self, kind: str, path: str, do: Callable[[], object], times: int = 1) -> None:
        self.kind, self.path, self.do, self.times = kind, path, do, times

    def __call__(self, kind: str, path: str) -> None:
        if kind == self.kind and path.startswith(self.path) and self.times:
            self.times -= 1
            self.do()


@pytest.fixture
def meddled(fs: LocalFileSystem, around: Callable[..., FileSystem]) -> Callable[..., Repository]:
    """A repository in which something happens at a certain operation."""
    return lambda *args: Repository(around(fs, Once(*args)), durability="fast")


@pytest.mark.parametrize("times", [1, 3])
def test_another_writer_is_first(
    repo: Repository, meddled: Callable[..., Repository], assert_bits: Bits, times: int
) -> None:
    first = repo.commit({"a": np.zeros(2)}, "first")
    others: list[str] = []

    def other() -> None:
        others.append(repo.commit({"a": np.full(2, len(others) + 5)}, "other"))

    mine = meddled("link", "refs/heads/main", other, times).commit({"a": np.ones(2)}, "mine", state={"m": np.ones(1)})
    assert [c.id for c in repo.log()] == [mine, *reversed(others), first]
    assert repo.show(mine).parents == (others[-1],)
    assert_bits(repo.load(mine), {"a": np.ones(2)})
    assert repo.load_state(mine)["m"].tolist() == [1]
    assert repo.fsck().ok


@pytest.mark.parametrize("branch", ["main", "new"])
def test_another_writer_is_first_on_a_new_branch(
    repo: Repository, meddled: Callable[..., Repository], branch: str
) -> None:
    first = repo.commit({"a": np.zeros(2)}, "first", branch="main") if branch != "main" else None
    others: list[str] = []
    mine = meddled(
        "link", f"refs/heads/{branch}", lambda: others.append(repo.commit({"a": np.full(2, 5)}, branch=branch))
    ).commit({"a": np.ones(2)}, branch=branch)
    assert [c.id for c in repo.log(branch)] == [mine, others[0], *([first] if first else [])]


def test_a_branch_that_never_holds_still(
    repo: Repository, meddled: Callable[..., Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_committing, "_TRIES", 3)
    repo.commit({"a": np.zeros(2)})
    busy = meddled("link", "refs/heads/main", lambda: repo.commit({"a": np.ones(2)}), 99)
    with pytest.raises(Conflict):
        busy.commit({"a": np.full(2, 7.0)})
    assert len(repo.log()) == 4
    assert repo.fsck().ok
    assert repo.store.fs.list("tmp") == repo.store.fs.list("intents") == []


def test_a_pack_that_is_built_on_is_taken_away(
    repo: Repository, folder: Path, meddled: Callable[..., Repository], assert_bits: Bits
) -> None:
    """As a collector of garbage might: what was to be reused is written from memory."""
    repo.commit({"frozen": FROZEN, "a": np.zeros(2)})
    (old,) = (folder / "packs").iterdir()
    id = meddled("replace", "packs/", old.unlink).commit({"frozen": FROZEN.copy(), "a": np.ones(2)})
    for opened in (repo, Repository(folder)):
        assert_bits(opened.load(id), {"frozen": FROZEN, "a": np.ones(2)})


def test_a_pack_of_another_branch_is_taken_away(
    repo: Repository, folder: Path, meddled: Callable[..., Repository], assert_bits: Bits
) -> None:
    repo.commit({"a": np.zeros(2)})
    (first,) = (folder / "packs").iterdir()
    repo.commit({"other_name": FROZEN}, branch="x")
    (old,) = set((folder / "packs").iterdir()) - {first}
    mine = meddled("replace", "packs/", old.unlink)
    mine.store.index.refresh()
    id = mine.commit({"frozen": FROZEN, "a": np.ones(2)})
    assert_bits(Repository(folder).load(id), {"frozen": FROZEN, "a": np.ones(2)})


def test_a_loaded_tensor_outlives_its_pack(repo: Repository, folder: Path, assert_bits: Bits) -> None:
    repo.commit({"frozen": FROZEN, "a": np.ones(2)})
    loaded = repo.load()
    for pack in (folder / "packs").iterdir():
        pack.unlink()
    assert_bits(loaded, {"frozen": FROZEN, "a": np.ones(2)})


def test_the_parent_is_announced_until_the_ref_has_moved(repo: Repository, meddled: Callable[..., Repository]) -> None:
    first = repo.commit({"frozen": FROZEN, "a": np.zeros(2)})
    seen: list[set[str]] = []
    for kind, path in (("replace", "packs/"), ("link", "refs/heads/main")):
        repo_then = meddled(kind, path, lambda: seen.append(needed(repo.store.fs)))
        repo_then.commit({"frozen": FROZEN, "a": np.full(2, len(seen) + 1.0)})
    assert first in seen[0]
    assert repo.resolve("HEAD~1") in seen[1]
    assert needed(repo.store.fs) == set()


def test_a_parent_that_cannot_be_read_is_no_hindrance(
    repo: Repository, folder: Path, assert_bits: Bits, caplog: pytest.LogCaptureFixture
) -> None:
    repo.commit({"frozen": FROZEN})
    for pack in (folder / "packs").iterdir():
        pack.write_bytes(pack.read_bytes()[:-9])
    fresh = Repository(folder, durability="fast")
    id = fresh.commit({"frozen": FROZEN})
    assert "storing everything whole" in caplog.text
    assert_bits(Repository(folder).load(id), {"frozen": FROZEN})
    assert not fresh.fsck().ok


@pytest.mark.parametrize("how", ["commit", "annotate"])
def test_a_copy_of_another_branch_has_an_intent_of_its_own(
    fs: LocalFileSystem, repo: Repository, around: Callable[..., FileSystem], how: str
) -> None:
    """The parent's does not keep it, and the other branch may be deleted meanwhile."""
    z = np.arange(2000.0)
    repo.commit({"p": z + 1, "q": z + 2}, state={"p": z + 1, "q": z + 2})
    repo.commit({"p": z, "q": z}, branch="o")
    shared = repo.tree("o")["p"].id
    seen: list[set[str]] = []
    target = {"commit": "refs/heads/main", "annotate": "notes/"}[how]

    def before(kind: str, path: str) -> None:
        if kind == "link" and path.startswith(target):
            seen.append(needed(fs))

    packs = set(fs.list("packs"))
    mine = Repository(around(fs, before), durability="fast")
    main = mine.resolve("main")
    if how == "commit":
        mine.commit({"p": z, "q": z})
        assert {entry.id for entry in mine.tree().values()} == {shared}
    else:
        mine.annotate("main", state={"p": z, "q": z})
    (new,) = set(fs.list("packs")) - packs
    assert fs.stat(f"packs/{new}").size < z.nbytes
    assert len(seen) == 1
    assert {shared, main} <= seen[0]
    assert needed(fs) == set()


def test_few_packs_are_open_at_a_commit(
    fs: LocalFileSystem, repo: Repository, monkeypatch: pytest.MonkeyPatch, assert_bits: Bits
) -> None:
    """What lies in more of them is written anew, and so brought together."""
    monkeypatch.setattr(_committing, "_MAX_OPEN", 4)
    weights = {f"t{n}": np.full(300, n, np.float32) for n in range(12)}
    written: dict[str, dict[str, np.ndarray]] = {}
    for number in range(30):
        weights[f"t{number % 12}"] = np.full(300, 1000 + number, np.float32)
        written[repo.commit(weights)] = dict(weights)
    for id, expected in written.items():
        assert_bits(Repository(fs).load(id), expected)
    with repo.store.copies() as copies:
        packs = {next(copies.all(entry.id)).pack.name for entry in repo.tree().values()}
    assert len(packs) <= 5
    assert repo.fsck().ok
