"""push(repair=True): what the other side has lost comes back to it, from where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import MissingObject

URL = "test://memory"


@pytest.fixture
def cloned(tmp_path: Path) -> Callable[..., Repository]:
    """Clones the remote in memory, to another folder each time."""
    folders = (tmp_path / f"clone {number}" for number in range(9))
    return lambda **options: Repository.clone(URL, next(folders), durability="fast", **options)


def lose(remote, *ids: str) -> None:
    """Have the remote lose all packs, or those that hold one of some objects."""
    for name in [name for name in remote.files if name.startswith("packs/")]:
        if not ids or any(bytes.fromhex(id) in remote.files[name] for id in ids):
            del remote.files[name]


@pytest.mark.parametrize("which", ["all", "first", "second"])
def test_a_lost_pack_comes_back(repo: Repository, remote, commits, cloned, same, which: str) -> None:
    repo.add_remote("origin", URL)
    ids = []
    for step in (1, 2, 3):
        ids += commits(step)
        repo.push()
    lost = ids[0 if which == "first" else 1]  # the first with what the others are differences from
    lose(remote, *([] if which == "all" else [repo.show(lost).tree]))
    with pytest.raises(MissingObject, match=r"push\(repair=True\)"):
        cloned()
    for _ in range(2):
        done = repo.push(URL)  # of which nothing is remembered
        assert set(done.unmended) == ({*ids} if which == "all" else {lost})
        assert "push(repair=True)" in str(done)
    done = repo.push(repair=True)
    assert done.bytes_sent
    assert done.unmended == ()
    same(cloned(), repo, *ids)
    done = repo.push(repair=True)
    assert done.up_to_date
    assert (done.bytes_sent, done.unmended) == (0, ())


def test_what_other_branches_lead_to_comes_back_with_what_is_new(
    repo: Repository, remote, commits, cloned, same
) -> None:
    ids = commits(1, branch="side")
    repo.push(URL, "side")
    ids += commits(2)
    repo.push(URL)
    lose(remote)
    ids += commits(3)
    assert repo.push(URL, repair=True).commits == 1
    same(cloned(), repo, *ids)


@pytest.mark.parametrize("known", [True, False])
def test_what_is_pruned_there_does_not_come_back(
    repo: Repository, remote, there, commits, cloned, same, known: bool
) -> None:
    ids = commits(1, 2)
    repo.push(URL)
    whole = cloned()
    repo.prune(ids[0])
    repo.push(URL, prune=True)
    lose(remote)
    done = (repo if known else whole).push(URL, repair=True)
    assert done.unmended == ()
    assert there().fsck().ok
    assert there().show(ids[0]).pruned
    same(cloned(), repo, ids[1])


def test_what_is_not_here_either_is_named(repo: Repository, remote, commits, cloned, same) -> None:
    ids = commits(1, 2)
    repo.push(URL)
    whole, shallow, named = cloned(), cloned(depth=1), cloned(names=["frozen"])
    repo.prune(ids[0])
    lose(remote)
    repo.push(URL)  # does not say that it is pruned
    for part, lacking in ((shallow, {ids[0]}), (repo, {ids[0]}), (named, {ids[0]})):
        done = part.push(URL, repair=True)
        assert set(done.unmended) == lacking
        assert f"{ids[0][:12]}" in str(done)
    assert whole.push(URL, repair=True).unmended == ()
    same(cloned(), whole, *ids)
