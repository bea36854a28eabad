"""Branches, tags and HEAD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import RefExists, UnknownRef, UnsafeInput
from coral.store import _refs


def save(repo: Repository, value: float = 0, branch: str | None = None) -> str:
    return repo.commit({"a": np.full(2, value)}, str(value), branch)


def test_a_branch_begins_at_a_commit(repo: Repository) -> None:
    first, second = save(repo, 1), save(repo, 2)
    assert repo.branch("x") == second
    assert repo.branch("y", "HEAD~1") == first
    assert repo.branch("z", at=first[:8]) == first
    assert repo.branches() == {"main": second, "x": second, "y": first, "z": first}
    assert repo.head == "main"
    new = save(repo, 3, branch="y")
    assert repo.show("y").parents == (first,)
    assert Repository(repo.path).branches() == {"main": second, "x": second, "y": new, "z": first}


def test_a_branch_exists_once(repo: Repository) -> None:
    save(repo, 1)
    repo.branch("x")
    repo.branch("x")  # it is there, as asked
    save(repo, 2)
    with pytest.raises(RefExists, match="branch 'x'") as caught:
        repo.branch("x")
    assert caught.value.ref == "x"
    assert repo.show("x").message == "1"


def test_committing_to_a_new_branch_begins_at_head(repo: Repository) -> None:
    first = save(repo, 1)
    x = save(repo, 2, branch="x")
    assert repo.show(x).parents == (first,)
    repo.checkout("x")
    y = save(repo, 3, branch="y")
    assert repo.show(y).parents == (x,)
    assert repo.show("main").id == first


def test_a_first_commit_may_go_to_another_branch(repo: Repository) -> None:
    x = save(repo, 1, branch="x")
    assert repo.branches() == {"x": x}
    assert repo.log() == []
    main = save(repo, 2)
    assert repo.show(main).parents == ()
    assert repo.branches() == {"main": main, "x": x}


def test_checkout(repo: Repository) -> None:
    save(repo, 1)
    repo.branch("x")
    repo.checkout("x")
    assert (repo.head, Repository(repo.path).head) == ("x", "x")
    new = save(repo, 2)
    assert repo.branches()["x"] == new
    repo.checkout("main")
    assert repo.show().message == "1"
    for bad in ("nope", "HEAD", "refs/heads/x", "../x", ""):
        with pytest.raises(UnknownRef):
            repo.checkout(bad)
    assert repo.head == "main"


def test_deleting_a_branch(repo: Repository) -> None:
    first = save(repo, 1)
    x = save(repo, 2, branch="x")
    with pytest.raises(RefExists, match="check out another"):
        repo.delete_branch("main")
    repo.delete_branch("x")
    assert repo.branches() == {"main": first}
    assert Repository(repo.path).branches() == {"main": first}
    assert repo.show(x).id == x  # until garbage is collected
    with pytest.raises(UnknownRef):
        repo.resolve("x")
    with pytest.raises(UnknownRef, match="x"):
        repo.delete_branch("x")
    with pytest.raises(UnknownRef):
        repo.delete_branch("never")
    again = save(repo, 3, branch="x")
    assert repo.show(again).parents == (first,)


def test_tags(repo: Repository) -> None:
    first, second = save(repo, 1), save(repo, 2)
    assert repo.tag("v1", first) == first
    assert repo.tag("release/v2") == second
    assert repo.tag("v1", first) == first
    with pytest.raises(RefExists, match="tag 'v1'"):
        repo.tag("v1", second)
    assert Repository(repo.path).tags() == {"release/v2": second, "v1": first}
    assert repo.tag("v1", second, force=True) == second
    assert repo.resolve("v1") == second
    save(repo, 3)
    assert repo.resolve("v1") == second
    assert [c.message for c in repo.log("v1")] == ["2", "1"]


def test_deleting_a_tag(repo: Repository) -> None:
    first = save(repo, 1)
    repo.tag("t")
    repo.delete_tag("t")
    assert repo.tags() == {}
    assert repo.resolve("HEAD") == first
    with pytest.raises(UnknownRef):
        repo.delete_tag("t")
    with pytest.raises(UnknownRef):
        repo.resolve("t")
    save(repo, 2)
    assert repo.tag("t") != first


def test_tags_of_a_run_are_told_from_those_by_hand(repo: Repository) -> None:
    first = save(repo, 1)
    repo.tag("mine")
    repo.tag("auto", run="r1")
    assert repo.tags() == {"auto": first, "mine": first}
    assert repo.tags(by_hand=True) == {"mine": first}
    second = save(repo, 2)
    repo.tag("auto", force=True, run="r1")
    assert repo.tags(by_hand=True) == {"mine": first}
    repo.tag("auto", second, force=True)  # now it is by hand
    assert repo.tags(by_hand=True) == {"auto": second, "mine": first}


def test_names_that_differ_in_case_only(repo: Repository) -> None:
    ids = {name: save(repo, n, branch=name) for n, name in enumerate(("exp", "Exp", "EXP", "exp/1", "Exp/1"))}
    assert repo.branches() == dict(sorted(ids.items()))
    for name, id in ids.items():
        assert repo.resolve(name) == id


@pytest.mark.parametrize(
    "name",
    [
        "../../../pwned",
        "..",
        "a/../../b",
        "",
        "a b",
        "-x",
        ".hidden",
        "a//b",
        "a/",
        "x.lock",
        "a\0b",
        "HEAD",
        "best",
        "é",
        5,
        b"x",
    ],
    ids=ascii,
)
def test_unsafe_names_are_refused_everywhere(repo: Repository, name: str, unchanged: Callable[[], None]) -> None:
    save(repo, 1)
    repo.tag("t")
    unchanged()
    for attempt in (
        lambda: repo.branch(name),
        lambda: repo.tag(name),
        lambda: repo.tag(name, force=True),
        lambda: save(repo, 2, branch=name),
        lambda: repo.delete_tag(name),
        lambda: repo.delete_branch(name),
    ):
        with pytest.raises(UnsafeInput):
            attempt()


def test_the_reflog_says_why(repo: Repository, folder: Path) -> None:
    save(repo, 1)
    save(repo, 2)
    repo.branch("x")
    repo.tag("t", "x")
    whys = [[e.why for e in _refs.history(repo.store.fs, ref) if isinstance(e, _refs.RefEntry)]
            for ref in ("refs/heads/main", "refs/heads/x", "refs/tags/t")]  # fmt: skip
    assert whys == [["commit: 2", "commit: 1"], ["branch: from HEAD"], ["tag: from x"]]
