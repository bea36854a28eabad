"""push(prune=True): what is pruned here is pruned there, but for what somebody else holds there; and what follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import CommitPruned

URL = "test://memory"


@pytest.fixture
def second(tmp_path: Path) -> Callable[[], Repository]:
    """Clones the remote in memory, for somebody else."""
    return lambda: Repository.clone(URL, tmp_path / "second", durability="fast")


@pytest.fixture
def pruned(repo: Repository, remote, commits, second: Callable[[], Repository]) -> tuple[list[str], Repository]:
    """Commits of which the first is pruned on both sides, and a clone that has it whole."""
    ids = commits(1, 2)
    repo.add_remote("origin", URL)
    repo.push()
    whole = second()
    repo.prune(ids[0])
    assert repo.push(prune=True).kept_back == {}
    return ids, whole


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_what_others_hold_there_is_kept_until_they_let_go(
    repo: Repository, remote, there, commits, same, second, kind: str
) -> None:
    ids = commits(1, 2, 3)
    repo.annotate(ids[0], state={"step": 1, "late": np.arange(3)})
    repo.add_remote("origin", URL)
    repo.push()
    theirs = second()
    getattr(theirs, kind)("theirs", ids[0])
    theirs.push("origin", "theirs" if kind == "branch" else None)
    repo.annotate(ids[0], state={"step": 1, "later": np.arange(4)})
    repo.prune(ids[:2])
    for _ in range(2):
        done = repo.push(prune=True)
        assert done.kept_back == {ids[0]: f"the {kind} theirs"}
        assert f"kept there: {ids[0][:12]}, which the {kind} theirs holds" in str(done)
        same(there(), theirs, ids[0], ids[2])
        assert there().show(ids[1]).pruned
        assert there().load_state(ids[0])["late"].tolist() == [0, 1, 2]
    getattr(there(), f"delete_{kind}")("theirs")
    done = repo.push(prune=True)
    assert done.bytes_freed
    assert done.kept_back == {}
    assert there().show(ids[0]).pruned
    assert there().fsck().ok
    assert repo.push(prune=True).up_to_date


@pytest.mark.parametrize("tagged", [False, True])
def test_what_this_push_moves_away_from_is_not_held(repo: Repository, remote, there, commits, tagged: bool) -> None:
    (old,) = commits(1)
    if tagged:
        repo.tag("best/x", old, run="a" * 16)
    repo.push(URL)
    (new,) = commits(2)
    if tagged:
        repo.tag("best/x", new, force=True, run="a" * 16)
    repo.prune(old)
    done = repo.push(URL, prune=True)
    assert done.bytes_freed
    assert done.kept_back == {}
    assert there().show(old).pruned


def test_a_tag_that_comes_while_a_note_is_put_has_it_taken_back(
    repo: Repository, remote, there, commits, same, monkeypatch
) -> None:
    ids = commits(1, 2)
    repo.push(URL)
    before = {name for name in remote.files if name.startswith("notes/")}
    repo.annotate(ids[0], state={"step": 1, "late": np.arange(3)})
    repo.prune(ids[0])
    put = remote.put

    def tag_first(name: str, data: memoryview) -> bool:
        if name.startswith("notes/") and not there().tags():
            there().tag("theirs", ids[0])
        return put(name, data)

    monkeypatch.setattr(remote, "put", tag_first)
    assert repo.push(URL, prune=True).kept_back == {ids[0]: "the tag theirs"}
    assert {name for name in remote.files if name.startswith("notes/")} == before
    there().gc(0)
    assert there().fsck().ok
    assert there().load_state(ids[0])["step"] == 1


def test_a_branch_is_never_on_a_pruned_commit_where_the_push_is_cut(repo: Repository, remote, there, commits) -> None:
    (old,) = commits(1)
    repo.push(URL)
    commits(2)
    repo.prune(old)
    remote.fault = lambda number, kind: "killed" if kind == "put" and "refs/heads/" in remote.requests[-1][1] else None
    with pytest.raises(KeyboardInterrupt):
        repo.push(URL, prune=True)
    assert there().resolve("main") == old
    assert not there().show(old).pruned


def test_where_there_is_nothing_to_prune_nothing_more_is_asked(repo: Repository, remote, commits) -> None:
    asked = []
    repo.add_remote("origin", URL)
    for step, prune in ((1, False), (2, False), (3, True)):
        commits(step)
        remote.requests.clear()
        repo.push(prune=prune)
        asked.append([(kind, name[:10]) for kind, name in remote.requests if name.startswith(("refs/", "notes/"))])
    assert asked[1] == asked[2]


# -- what is pruned over there, and whole here ------------------------------------------------------------------------


def test_a_branch_does_not_come_to_a_commit_that_is_pruned_there(remote, pruned) -> None:
    (old, _), whole = pruned
    whole.branch("keep", old)
    before = dict(remote.files)
    for _ in range(2):
        with pytest.raises(CommitPruned, match=f"{old[:12]}.* pruned at {URL}.*[Cc]ommit") as caught:
            whole.push("origin", "keep")
        assert caught.value.ref == "keep"
        assert remote.files == before
    whole.checkout("keep")
    new = whole.commit(whole.load(old), "once more")
    whole.push("origin", "keep")
    assert Repository.clone(URL, whole.path.parent / "third").load(new)["step"].data == 1


def test_a_tag_does_not_come_to_a_commit_that_is_pruned_there(there, pruned, commits) -> None:
    (old, tip), whole = pruned
    whole.tag("release", old)
    whole.tag("new", tip)
    for step in (3, 4):
        commits(step, to=whole)
        done = whole.push()
        assert done.refused_tags == ("release",)
        assert "release" in str(done)
    assert there().tags() == {"new": tip}
    assert there().resolve("main") == whole.resolve("main")


def test_what_is_pruned_on_both_sides_may_have_a_name(repo: Repository, there, pruned) -> None:
    (old, _), _ = pruned
    repo.branch("old", old)
    repo.tag("older", old)
    assert repo.push(branch="old").tags == ("older",)
    assert there().branches()["old"] == old
