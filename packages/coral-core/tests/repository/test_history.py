"""Commits, their records, log, diff, notes, states, stats."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.errors import CommitPruned, ConfigError, CorruptObject, LimitExceeded, UnknownRef
from coral.objects import encode_commit
from coral.store import Operation

ONE = {"a": np.ones(3)}
Weights = Callable[..., dict[str, np.ndarray]]


def test_an_empty_repository(repo: Repository) -> None:
    assert (repo.log(), repo.branches(), repo.tags(), repo.head) == ([], {}, {}, "main")
    for ref in ("HEAD", "main", "best", "last", "step:1"):
        with pytest.raises(UnknownRef):
            repo.show(ref)
    stats = repo.stats()
    assert (stats.commits, stats.packs, stats.raw_bytes) == (0, 0, 0)
    assert repo.fsck().ok


def test_the_record_of_a_commit(repo: Repository, folder: Path) -> None:
    first = repo.commit(ONE)
    second = repo.commit(
        {"a": np.ones(3), "b": np.ones(2, np.float32)},
        "second π\nwith a body",
        state={"lr": 0.5, "m": np.ones(2)},
        metadata={"host": "here", "sizes": (1, 2), "n": {3: 10**4000}},
        training={"step": 7, "run": "r"},
        metrics={"loss": math.nan, "acc": 1},
        reasons=["step", "best"],
    )
    commit = repo.show()
    assert len(second) == 64
    assert (commit.id, commit.parents) == (second, (first,))
    assert commit.message == "second π\nwith a body"
    assert commit.metadata == {"host": "here", "sizes": (1, 2), "n": {3: 10**4000}}
    assert (commit.step, commit.run) == (7, "r")
    assert math.isnan(commit.metrics["loss"])
    assert commit.metrics["acc"] == 1.0
    assert commit.reasons == ("best", "step")
    assert commit.nbytes == 24 + 8 + 16
    assert abs(commit.time - repo.store.fs.now()) < 60
    assert repo.path == folder
    assert repr(folder.name)[1:-1] in repr(repo)


def test_log_is_newest_first(repo: Repository) -> None:
    ids = [repo.commit({"a": np.full(2, n)}, str(n)) for n in range(5)]
    assert [c.id for c in repo.log()] == ids[::-1]
    assert [c.message for c in repo.log(limit=2)] == ["4", "3"]
    assert [c.message for c in repo.log("HEAD~3")] == ["1", "0"]
    assert [c.message for c in repo.log(ids[2], limit=1)] == ["2"]
    assert repo.log(limit=0) == []
    assert len(repo.log(limit=100)) == 5
    assert [c.parents for c in repo.log()] == [(id,) for id in ids[-2::-1]] + [()]


def test_log_goes_by_history_where_clocks_do_not(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1000, 0, -1))
    monkeypatch.setattr(repo.store.fs, "now", lambda: float(next(times)))
    ids = [repo.commit({"a": np.full(2, n)}) for n in range(4)]
    assert [c.id for c in repo.log()] == ids[::-1]


def test_log_of_a_commit_with_two_parents(repo: Repository) -> None:
    """The newer of the two lines comes first, and what they share once."""
    root = repo.commit(ONE, "root")
    old = repo.commit(ONE, "old", branch="x")
    new = repo.commit(ONE, "new")
    for parents in ([old, new], [new, old]):
        fields = {"parents": parents, "tree": repo.show().tree, "state": None, "message": "", "time": 4e9, "nbytes": 24}
        payload = encode_commit(**fields, metadata={}, training={}, metrics={}, reasons=[])  # type: ignore[arg-type]
        merge, _ = repo.store.write_pack(
            lambda writer, payload=payload: writer.add_object("commit", payload), Operation(repo.store.fs, "test")
        )  # type: ignore[misc]
        assert [c.id for c in repo.log(merge)] == [merge, new, old, root]
        assert repo.resolve(f"{merge}^") == parents[0]


def test_a_short_log_does_not_read_on(repo: Repository, folder: Path, flip: Callable[..., None]) -> None:
    repo.commit({"a": np.zeros(2)})
    (pack,) = (folder / "packs").iterdir()
    newest = repo.commit({"a": np.ones(2)})
    flip(pack, pack.stat().st_size - 1)
    fresh = Repository(folder)
    assert [c.id for c in fresh.log(limit=1)] == [newest]
    with pytest.raises(CorruptObject):
        fresh.log()


def test_two_equal_commits_are_two(repo: Repository) -> None:
    assert repo.commit(ONE, "x") != repo.commit(ONE, "x")
    assert len(repo.log()) == 2
    assert repo.diff("HEAD", "HEAD~1").identical


def test_branches_grow_apart(repo: Repository) -> None:
    root = repo.commit(ONE)
    x = repo.commit({"a": np.zeros(3)}, branch="x")
    main = repo.commit({"a": np.full(3, 5.0)})
    assert repo.branches() == {"main": main, "x": x}
    assert [c.id for c in repo.log("x")] == [x, root]
    assert [c.id for c in repo.log("main")] == [main, root]
    assert repo.head == "main"


def test_diff(repo: Repository) -> None:
    first = repo.commit({"same": np.ones(2), "new_bits": np.ones(2), "gone": np.ones(1), "shape": np.ones(4)})
    second = repo.commit({"same": np.ones(2), "new_bits": np.zeros(2), "come": np.ones(1), "shape": np.ones((2, 2))})
    found = repo.diff(first, second)
    assert (found.added, found.removed) == (["come"], ["gone"])
    assert (found.modified, found.unchanged) == (["new_bits", "shape"], ["same"])
    assert not found.identical
    back = repo.diff(second, first)
    assert (back.added, back.removed) == (["gone"], ["come"])
    assert repo.diff("HEAD").identical


def test_tree(repo: Repository) -> None:
    repo.commit({"b": np.ones((2, 3), np.float32), "a": np.zeros(0)})
    tree = repo.tree()
    assert {name: (e.dtype, e.shape, e.nbytes) for name, e in tree.items()} == {
        "a": ("float64", (0,), 0),
        "b": ("float32", (2, 3), 24),
    }
    assert tree["b"].id == repo.load()["b"].id


def test_states(repo: Repository, assert_bits: Callable[..., None]) -> None:
    state = {
        "optimizer": {
            "state": {0: {"step": np.float32(3), "exp_avg": np.arange(3.0)}},
            "groups": [{"betas": (0.9, 0.999)}],
        },
        "rng": (3, tuple(range(5)), None, 2**64 - 1, b"\0\1", -0.0),
    }
    repo.commit(ONE, state=state)
    repo.commit(ONE)
    repo.commit(ONE, state={})
    found = repo.load_state("HEAD~2")
    assert_bits(found["optimizer"]["state"][0]["exp_avg"], np.arange(3.0))
    assert repr(found["optimizer"]["groups"]) == "[{'betas': (0.9, 0.999)}]"
    assert repr(found["rng"]) == repr(state["rng"])
    assert type(found["optimizer"]["state"][0]["step"]) is np.float32
    assert repo.load_state("HEAD~1") is None
    assert repo.load_state() == {}


def test_state_that_did_not_change_is_not_stored_again(repo: Repository) -> None:
    moments = np.random.default_rng(0).standard_normal(100_000)
    repo.commit(ONE, state={"m": moments, "n": 1})
    size = repo.stats().stored_bytes
    repo.commit(ONE, state={"m": moments.copy(), "n": 2})
    assert repo.stats().stored_bytes < size + 10_000
    assert repo.load_state()["n"] == 2


def test_notes(repo: Repository) -> None:
    commit = repo.commit(ONE, metrics={"loss": 1.0}, reasons=["step"], training={"step": 1})
    repo.annotate("HEAD", metrics={"loss": 0.5, "acc": np.float32(0.5)}, reasons=["best"])
    repo.annotate(commit[:10], metrics={"loss": 0.25}, training={"epoch": 3}, state={"late": np.ones(2)})
    found = repo.show()
    assert found.id == commit
    assert (found.metrics, found.reasons) == ({"loss": 0.25, "acc": 0.5}, ("best", "step"))
    assert (found.step, found.epoch) == (1, 3)
    assert repo.load_state()["late"].tolist() == [1, 1]
    assert [note.metrics.get("loss") for note in repo.notes()] == [0.5, 0.25]
    assert [c.metrics for c in Repository(repo.path).log()] == [found.metrics]
    assert repo.fsck().ok


def test_a_pruned_commit_keeps_its_record(repo: Repository) -> None:
    first = repo.commit({"a": np.zeros(2)}, "first", metrics={"loss": 3.0}, state=1)
    second = repo.commit({"a": np.ones(2)}, "second")
    before = repo.stats()
    repo.annotate(first, pruned=True)
    for load in (repo.load, repo.load_state):
        with pytest.raises(CommitPruned, match="pruned") as caught:
            load(first)
        assert caught.value.ref == first
    assert [(c.id, c.pruned) for c in repo.log()] == [(second, False), (first, True)]
    assert repo.show(first).metrics == {"loss": 3.0}
    assert repo.diff(first, second).modified == ["a"]
    assert repo.stats().commits == 2
    assert repo.stats().raw_bytes == before.raw_bytes - 16
    assert repo.load(second)["a"].data.tolist() == [1, 1]
    assert repo.fsck().ok


@pytest.mark.parametrize("limit", [-1, 1.5, "2", True])
def test_a_limit_that_cannot_be(repo: Repository, limit: Any) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="limit"):
            repo.log(limit=limit)
        repo.commit(ONE)


def test_chain_goes_by_what_training_went_on_from(repo: Repository) -> None:
    def save(step: int, previous: str | None, **more: Any) -> str:
        return repo.commit(ONE, training={"step": step, "previous": previous, "run": "r"}, **more)

    a = save(1, None)
    b = save(2, a)
    repo.commit(ONE, "by hand")
    c = save(3, b)
    assert [commit.id for commit in repo.chain()] == [c, b, a]
    d = save(4, "not an id")
    assert [commit.id for commit in repo.chain(d)] == [d]


def test_a_chain_ends_where_a_branch_is_gone(repo: Repository) -> None:
    def save(step: int, previous: str | None, branch: str, *reasons: str) -> str:
        training = {"step": step, "previous": previous, "run": branch}
        return repo.commit({"a": np.full(2, step)}, branch=branch, training=training, reasons=reasons)

    start = repo.commit(ONE)
    repo.branch("other", start)
    before = save(1, None, "other", "best")
    ids = [save(2, before, "main")]
    ids.append(save(3, ids[0], "main"))
    repo.delete_branch("other")
    repo.gc(0)
    assert [commit.id for commit in repo.chain()] == ids[::-1]
    assert repo.resolve("step:2") == ids[0]
    for ref in ("best", "step:1"):
        with pytest.raises(UnknownRef):
            repo.resolve(ref)
    with pytest.raises(UnknownRef):
        list(repo.chain(before))


def test_stats(repo: Repository, folder: Path, weights: Weights) -> None:
    repo.commit(weights())
    repo.commit(weights(1), branch="x", state={"m": np.ones(4)})
    repo.tag("t", "x")
    stats = repo.stats()
    raw = sum(a.nbytes for a in weights().values())
    assert (stats.commits, stats.packs, stats.raw_bytes) == (2, 2, 2 * raw + 32)
    assert stats.stored_bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_messages_may_be_long_and_lines_many(repo: Repository) -> None:
    message = "π" * 100_000 + "\n\x00\x1b[31m" + "x" * 1000
    repo.commit(ONE, message)
    assert repo.show().message == message
    with pytest.raises(LimitExceeded):
        repo.commit(ONE, "x" * (17 << 20))
    assert len(repo.log()) == 1
