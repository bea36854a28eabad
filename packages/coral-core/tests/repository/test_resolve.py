"""What a ref means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral._digest import object_id
from coral.errors import AmbiguousRef, CorruptObject, UnknownRef
from coral.objects import encode_commit
from coral.store import Operation


@pytest.fixture
def ids(repo: Repository) -> list[str]:
    """Five commits on main, each by a run: step 0, 10, ... 40; the second and the fourth were best."""
    found: list[str] = []
    for number in range(5):
        training = {"step": 10 * number, "run": "r", "previous": found[-1] if found else None}
        reasons = ["best"] if number in (1, 3) else []
        found.append(repo.commit({"a": np.full(2, number)}, training=training, reasons=reasons))
    return found


@pytest.mark.parametrize(
    ("ref", "number"),
    [
        ("HEAD", 4),
        ("main", 4),
        ("refs/heads/main", 4),
        ("HEAD~0", 4),
        ("HEAD~1", 3),
        ("HEAD~", 3),
        ("HEAD^", 3),
        ("HEAD^^", 2),
        ("HEAD~4", 0),
        ("HEAD^~2^", 0),
        ("main~2", 2),
        ("HEAD~000002", 2),
        ("last", 4),
        ("best", 3),
        ("best~1", 2),
        ("best^", 2),
        ("main@best", 3),
        ("main@best^", 2),
        ("main@last", 4),
        ("main@step:10", 1),
        ("step:0", 0),
        ("step:20", 2),
        ("step:40^", 3),
        ("last~2", 2),
    ],
)
def test_the_grammar(repo: Repository, ids: list[str], ref: str, number: int) -> None:
    assert repo.resolve(ref) == ids[number]
    assert repo.show(ref).id == ids[number]
    assert Repository(repo.path).load(ref)["a"].data.tolist() == [number, number]


@pytest.mark.parametrize(
    "ref",
    [
        "", "nope", "HEAD~5", "HEAD^^^^^", "HEAD~999999", "HEAD~1234567", "step:5", "step:", "step:-1", "step:x",
        "main~9", "step:99999999999999999999", "nope@best", "@best", "main@", "main@nope", "best@best", "~1", "^",
        "HEAD~-1", "HEAD^2", "head", "0" * 64, "../../../pwned", "refs/heads/nope", "refs/tags/x", "refs/", "HEAD\n",
        "x" * 301, "a\0b", "\ud800", "abcde", "g" * 8, "ABCDEF", "HEAD ", "*", "é", "HEAD~1\n",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_means_nothing(repo: Repository, ids: list[str], ref: str) -> None:
    with pytest.raises(UnknownRef):
        repo.resolve(ref)


@pytest.mark.parametrize("ref", [None, 5, b"HEAD", ["HEAD"]])
def test_what_is_no_text(repo: Repository, ids: list[str], ref: Any) -> None:
    with pytest.raises(UnknownRef):
        repo.resolve(ref)


@pytest.mark.parametrize("length", [6, 7, 12, 16, 17, 40, 63, 64])
def test_the_beginning_of_an_id(repo: Repository, ids: list[str], length: int) -> None:
    for id in ids:
        assert repo.resolve(id[:length]) == id
        assert Repository(repo.path).resolve(id[:length]) == id
    assert repo.resolve(ids[3][:length] + "~1") == ids[2]


def test_five_digits_are_too_few(repo: Repository, ids: list[str]) -> None:
    with pytest.raises(UnknownRef):
        repo.resolve(ids[0][:5])


def test_trees_and_tensors_are_no_commits(repo: Repository, ids: list[str]) -> None:
    for id in (repo.show().tree, repo.tree()["a"].id):
        for ref in (id, id[:12]):
            with pytest.raises(UnknownRef):
                repo.resolve(ref)


def test_a_beginning_that_several_have(repo: Repository, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    record: dict[str, Any] = {"parents": [], "tree": "0" * 64, "state": None, "time": 1.0, "nbytes": 1}
    record |= {"metadata": {}, "training": {}, "metrics": {}, "reasons": []}
    made: dict[str, str] = {}
    for number in range(20_000):
        id = object_id("commit", encode_commit(message=str(number), **record))
        if id[:6] in made:
            break
        made[id[:6]] = str(number)
    else:
        pytest.skip("no two began alike")
    for message in (made[id[:6]], str(number)):
        payload = encode_commit(message=message, **record)
        repo.store.write_pack(
            lambda writer, payload=payload: writer.add_object("commit", payload), Operation(repo.store.fs, "test")
        )  # type: ignore[misc]
    with pytest.raises(AmbiguousRef, match="ambiguous") as caught:
        repo.resolve(id[:6])
    assert len(caught.value.candidates) == 2
    assert id in caught.value.candidates
    assert repo.resolve(id[:20]) == id


def test_a_branch_and_a_tag_of_one_name(repo: Repository, ids: list[str]) -> None:
    repo.branch("both", "HEAD~1")
    repo.tag("both", "HEAD~1")
    assert repo.resolve("both") == ids[3]
    repo.tag("both", "HEAD~2", force=True)
    with pytest.raises(AmbiguousRef) as caught:
        repo.resolve("both")
    assert caught.value.candidates == ["refs/heads/both", "refs/tags/both"]
    assert repo.resolve("refs/heads/both") == ids[3]
    assert repo.resolve("refs/tags/both") == ids[2]


def test_a_name_comes_before_the_beginning_of_an_id(repo: Repository, ids: list[str]) -> None:
    repo.tag(ids[0][:6], "HEAD")
    assert repo.resolve(ids[0][:6]) == ids[4]
    assert repo.resolve(ids[0][:7]) == ids[0]


def test_a_branch_that_looks_like_a_whole_id_is_found_or_refused(repo: Repository, ids: list[str]) -> None:
    try:
        repo.branch("a" * 64)
    except ValueError:
        return
    assert repo.resolve("a" * 64) == ids[4]


def test_near_names_are_suggested(repo: Repository, ids: list[str]) -> None:
    repo.branch("experiment")
    repo.tag("release-1.0")
    for ref, near in (("experimnt", "experiment"), ("mian", "main"), ("release-1", "release-1.0"), ("HAED", "HEAD")):
        with pytest.raises(UnknownRef, match="Did you mean") as caught:
            repo.load(ref)
        assert near in caught.value.near
    with pytest.raises(UnknownRef, match=r"There are: .*'main'"):
        repo.load("zzzzzzz")


def test_best_and_steps_are_those_of_the_named_branch(repo: Repository, ids: list[str]) -> None:
    repo.branch("other", ids[1])
    training = {"step": 15, "run": "s", "previous": ids[1]}
    new = repo.commit({"a": np.ones(2)}, branch="other", training=training, reasons=["best"])
    assert repo.resolve("other@best") == new
    assert repo.resolve("other@step:15") == new
    assert repo.resolve("other@step:10") == ids[1]  # what the run went on from
    assert repo.resolve("best") == ids[3]
    with pytest.raises(UnknownRef):
        repo.resolve("other@step:20")
    repo.checkout("other")
    assert (repo.resolve("best"), repo.resolve("last")) == (new, new)


def test_a_pruned_best_is_not_best(repo: Repository, ids: list[str]) -> None:
    repo.annotate(ids[3], pruned=True)
    assert repo.resolve("best") == ids[1]
    repo.annotate(ids[4], reasons=["best"])
    assert repo.resolve("best") == ids[4]


def test_a_ref_that_names_no_id(repo: Repository, ids: list[str]) -> None:
    store = repo.store
    from coral.store import _refs

    store.move_ref("refs/heads/odd", "../../x", after=None, why="test")
    with pytest.raises(CorruptObject):
        repo.resolve("odd")
    before = _refs.read(store.fs, _refs.HEAD)
    store.move_ref(_refs.HEAD, "refs/tags/x", after=before, why="test")
    with pytest.raises(CorruptObject, match="no branch"):
        repo.resolve("HEAD")


def test_commits_of_another_process_resolve(repo: Repository, folder: Path, python: Callable[..., Any]) -> None:
    repo.log()
    id = python(
        """
        import sys, json, numpy as np
        from coral import Repository
        print(json.dumps(Repository(sys.argv[1]).commit({"a": np.ones(1)})))
        """,
        folder,
    )
    assert repo.resolve(id[:8]) == id
    assert repo.resolve(id) == id


def test_best_and_steps_are_looked_for_behind_commits_by_hand(repo: Repository, ids: list[str]) -> None:
    by_hand = [repo.commit({"a": np.full(2, 100 + number)}, "by hand") for number in range(2)]
    assert repo.resolve("best") == repo.resolve("main@best") == ids[3]
    assert repo.resolve("step:20") == repo.resolve("main@step:20") == ids[2]
    assert repo.resolve("step:40") == ids[4]
    assert repo.resolve("last") == repo.resolve("HEAD") == by_hand[1]
    with pytest.raises(UnknownRef):
        repo.resolve("step:41")


def test_a_branch_of_a_remote_has_a_best_and_steps(repo: Repository, ids: list[str], tmp_path: Path) -> None:
    repo.add_remote("origin", tmp_path / "other")
    repo.push()
    training = {"step": 50, "run": "r", "previous": ids[4]}
    repo.commit({"a": np.ones(2)}, training=training, reasons=["best"])
    assert repo.resolve("origin/main@best") == repo.resolve("refs/remotes/origin/main@best") == ids[3]
    assert repo.resolve("origin/main@last^") == ids[3]
    assert repo.resolve("origin/main@step:10") == ids[1]
    with pytest.raises(UnknownRef, match="step:50"):
        repo.resolve("origin/main@step:50")


def test_a_tag_has_no_best_and_is_not_suggested(repo: Repository, ids: list[str]) -> None:
    repo.tag("paper")
    with pytest.raises(UnknownRef, match=r"unknown ref 'paper'\. There are: 'main'"):
        repo.resolve("paper@best")


def test_where_a_branch_has_no_commit_those_that_have_are_named(repo: Repository) -> None:
    for ref in ("best", "HEAD"):
        with pytest.raises(UnknownRef, match=r"branch 'main' has no commit yet$"):
            repo.resolve(ref)
    for branch in ("second", "first"):
        repo.commit({"a": np.ones(2)}, branch=branch)
    for ref in ("best", "last", "step:1", "HEAD", "HEAD~1"):
        with pytest.raises(UnknownRef, match="branch 'main' has no commit yet; there are: first, second"):
            repo.resolve(ref)


def test_no_run_behind_commits_by_hand(repo: Repository) -> None:
    for number in range(2):
        repo.commit({"a": np.full(2, number)})
    for ref in ("best", "step:0"):
        with pytest.raises(UnknownRef):
            repo.resolve(ref)
