"""fetch, pull and clone: what is missing here comes here, checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import (
    CommitPruned,
    ConfigError,
    CorruptObject,
    Diverged,
    MissingObject,
    NotARepository,
    RefExists,
    RemoteUnreachable,
    UnknownRef,
    UnsafeInput,
    WeightsMismatch,
)
from coral.store._files import seal
from coral.store._partial import partial_names


@pytest.fixture
def pushed(repo: Repository, remote, commits) -> list[str]:
    """Five commits that `test://memory` has, the last four as differences."""
    ids = commits(1, 2, 3, 4, 5)
    repo.annotate(ids[1], metrics={"loss": 0.25})
    repo.tag("paper", ids[2])
    repo.push("test://memory")
    return ids


@pytest.fixture
def clone(tmp_path: Path):
    """Clones `test://memory`."""
    return lambda **options: Repository.clone("test://memory", tmp_path / "clone", durability="fast", **options)


def test_a_clone_is_the_whole_repository(repo: Repository, pushed, clone, same) -> None:
    found = clone()
    same(found, repo, *pushed)
    assert (found.branches(), found.tags(), found.head) == (repo.branches(), repo.tags(), "main")
    assert found.remotes() == {"origin": "test://memory"}
    assert found.resolve("origin/main") == pushed[-1]


def test_a_clone_is_on_the_branch_that_the_other_is_on(repo: Repository, remote, commits, clone) -> None:
    commits(1, branch="trunk")
    repo.push("test://memory", "trunk")
    found = clone()
    assert (found.head, found.branches()) == ("trunk", repo.branches())


def test_only_what_is_new_is_fetched(repo: Repository, remote, pushed, clone, commits, trained, same) -> None:
    found = clone()
    ids = commits(6)
    repo.push("test://memory")
    remote.sent = 0
    done = found.fetch()
    assert (done.commits, done.moved) == (1, ("main",))
    assert remote.sent < 0.6 * trained(6)["layer"].nbytes + 16_000
    assert found.resolve("main") == pushed[-1]
    assert found.resolve("origin/main") == ids[0]
    same(found, repo, *pushed, *ids)


def test_fetching_what_is_here_asks_for_no_pack(remote, pushed, clone) -> None:
    found = clone()
    remote.requests.clear()
    done = found.fetch()
    assert (done.commits, done.moved, done.bytes_received) == (0, (), 0)
    assert not [name for _, name in remote.requests if name.startswith("packs/")]


def test_pull_moves_the_branch_on(repo: Repository, pushed, clone, commits) -> None:
    found = clone()
    (new,) = commits(6)
    repo.push("test://memory")
    found.pull()
    assert found.resolve() == new
    found.pull()
    assert found.resolve() == new


def test_pull_leaves_a_branch_that_is_ahead(pushed, clone, commits) -> None:
    found = clone()
    (mine,) = commits(7, to=found)
    found.pull()
    assert found.resolve() == mine


def test_pull_says_that_both_have_moved(repo: Repository, pushed, clone, commits) -> None:
    found = clone()
    (theirs,), (ours,) = commits(6), commits(7, to=found)
    repo.push("test://memory")
    with pytest.raises(Diverged, match='merge="ours"') as caught:
        found.pull()
    assert (caught.value.ours, caught.value.theirs, caught.value.ref) == (ours, theirs, "main")
    assert found.resolve() == ours


@pytest.mark.parametrize(("winner", "step"), [("ours", 7), ("theirs", 6)])
def test_a_merge_follows_both_and_has_the_weights_of_one(repo, pushed, clone, commits, winner: str, step: int) -> None:
    found = clone()
    (theirs,), (ours,) = commits(6), commits(7, to=found)
    repo.push("test://memory")
    found.pull(merge=winner)
    assert found.show().parents == (ours, theirs)
    assert found.load()["step"].data == step
    assert found.load_state()["step"] == step
    assert found.fsck().ok


def test_pull_makes_a_branch_that_is_not_here(repo: Repository, pushed, clone, commits) -> None:
    found = clone()
    (tip,) = commits(6, branch="exp")
    repo.push("test://memory", "exp")
    found.pull(branch="exp")
    assert found.branches()["exp"] == tip
    with pytest.raises(UnknownRef, match="no such branch"):
        found.pull(branch="exq")


def test_a_branch_that_is_gone_is_not_tracked_any_more(repo: Repository, remote, there, pushed, clone, commits) -> None:
    commits(6, branch="exp")
    repo.push("test://memory", "exp")
    found = clone()
    there().delete_branch("exp")
    found.fetch()
    with pytest.raises(UnknownRef):
        found.resolve("origin/exp")


def test_what_is_pruned_there_stays_here(repo: Repository, pushed, clone, trained) -> None:
    found = clone()
    repo.prune(pushed[1])
    repo.push("test://memory", prune=True)
    found.fetch()
    np.testing.assert_array_equal(found.load(pushed[1])["layer"].data, trained(2)["layer"])
    assert found.fsck().ok


def test_what_was_pruned_there_comes_as_a_record(repo: Repository, pushed, clone, same) -> None:
    repo.prune(pushed[1])
    repo.push("test://memory", prune=True)
    found = clone()
    assert found.show(pushed[1]).pruned
    same(found, repo, *(id for id in pushed if id != pushed[1]))


def test_a_later_state_comes_for_a_commit_that_is_here(repo: Repository, pushed, clone) -> None:
    found = clone()
    repo.annotate(pushed[4], state={"step": 5, "late": np.arange(4)})
    repo.push("test://memory")
    found.fetch()
    assert found.load_state(pushed[4])["late"].tolist() == [0, 1, 2, 3]
    assert found.fsck().ok


def test_a_later_state_of_what_was_pruned_there_does_not_stop_a_pull(
    repo: Repository, pushed, clone, commits, same
) -> None:
    found = clone()
    repo.annotate(pushed[1], state={"step": 2, "late": np.arange(4)})
    repo.prune(pushed[1])
    (new,) = commits(6)
    repo.push("test://memory", prune=True)
    for _ in range(2):
        found.pull()
        same(found, repo, new)
        assert found.load_state(pushed[1])["step"] == 2
    found.gc()


def test_a_later_state_of_what_is_pruned_on_both_sides_does_not_stop_a_pull(
    repo: Repository, there, pushed, clone, commits, same, tmp_path: Path
) -> None:
    late = Repository.clone("test://memory", tmp_path / "late")
    repo.prune(pushed[1])
    repo.push("test://memory", prune=True)
    found = clone()  # knows that it is pruned
    late.annotate(pushed[1], metrics={"loss": 0.5}, state={"step": 2, "late": np.arange(4)})
    late.push()
    there().gc()
    found.pull()
    assert found.show(pushed[1]).metrics == {"loss": 0.5}
    same(found, late, *(id for id in pushed if id != pushed[1]))
    found.gc()


def test_a_later_state_that_came_with_a_cut_fetch_comes_again(
    repo: Repository, pushed, clone, commits, same, monkeypatch
) -> None:
    found = clone()
    (new,) = commits(6)
    repo.annotate(new, state={"step": 6, "late": np.arange(4)})
    repo.push("test://memory")

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(found, "_track", cut)
        with pytest.raises(KeyboardInterrupt):
            found.fetch()
    found.gc(0)
    found.pull()
    same(found, repo, new)
    assert found.load_state(new)["late"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("collected", [True, False])
def test_a_branch_that_was_deleted_here_comes_back_with_the_states_that_are_left(
    repo: Repository, pushed, clone, commits, same, collected: bool
) -> None:
    found = clone()
    (new,) = commits(6, branch="experiment")
    repo.push("test://memory", "experiment")
    found.pull(branch="experiment")
    found.annotate(new, metrics={"loss": 0.5}, state={"step": 6, "late": np.arange(4)})
    found.delete_branch("experiment")
    found.remove_remote("origin")
    if collected:
        found.gc(0)
    found.add_remote("origin", "test://memory")
    found.pull(branch="experiment")
    assert found.fsck().ok
    found.gc(0)
    assert found.show(new).metrics == {"loss": 0.5}
    assert found.load_state(new)["step"] == 6
    assert ("late" in found.load_state(new)) != collected


# -- parts of it -------------------------------------------------------------------------------------------------------


def test_a_shallow_clone_has_the_newest_tensors_and_all_records(repo: Repository, remote, pushed, clone, same) -> None:
    found = clone(depth=2)
    assert [commit.id for commit in found.log()] == pushed[::-1]
    same(found, repo, *pushed[3:])
    with pytest.raises(CommitPruned, match="depth"):
        found.load(pushed[2])
    found.gc()
    same(found, repo, *pushed[3:])


def test_a_depth_beyond_the_history_is_all_of_it(repo: Repository, remote, pushed, clone, same) -> None:
    same(clone(depth=1 << 62), repo, *pushed)


def test_a_shallow_clone_can_be_worked_on(repo: Repository, there, pushed, clone, commits, same) -> None:
    found = clone(depth=1)
    ids = commits(6, 7, to=found)
    found.push()
    same(there(), found, *ids)
    same(there(), repo, *pushed)  # that is not told of what this clone lacks
    repo.fetch("test://memory")
    same(repo, found, *ids)


def test_a_later_state_in_a_shallow_clone_leaves_the_other_side_whole(
    repo: Repository, there, pushed, clone, commits, same
) -> None:
    found = clone(depth=1)
    found.annotate(pushed[0], state={"step": 1, "late": np.arange(4)})
    ids = commits(6, to=found)
    found.push()
    same(there(), found, *ids)
    same(there(), repo, *pushed)
    there().gc()


def test_a_shallow_clone_is_not_all_that_another_remote_needs(pushed, clone, other: Path) -> None:
    with pytest.raises(MissingObject, match="limited depth"):
        clone(depth=1).push(other)


def test_of_a_large_repository_named_tensors_alone_travel(repo: Repository, remote, clone) -> None:
    large = np.random.default_rng(0).standard_normal(1 << 20)
    for step in range(3):
        repo.commit({"large": large + step, "small": np.array([step])})
    repo.push("test://memory")
    remote.sent = 0
    assert clone(names=["small"]).load(names=["small"])["small"].data == 2
    assert remote.sent < large.nbytes / 20


def test_a_clone_of_named_tensors_has_these_alone(repo: Repository, remote, pushed, clone, commits, trained) -> None:
    found = clone(names=["frozen", "step"])
    assert found.load(pushed[3], names=["step"])["step"].data == 4
    np.testing.assert_array_equal(found.load(names=["frozen"])["frozen"].data, trained(1)["frozen"])
    with pytest.raises(MissingObject, match="frozen, step"):
        found.load()
    with pytest.raises(MissingObject, match=r"frozen, step.* no training state: clone it whole") as caught:
        found.load_state()
    assert "fsck" not in str(caught.value)
    assert found.fsck().ok
    found.gc()
    assert found.load(names=["step"])["step"].data == 5
    commits(6)
    repo.push("test://memory")
    found.pull()
    assert found.load(names=["step"])["step"].data == 6
    with pytest.raises(MissingObject):
        found.load(names=["layer"])


def test_what_is_committed_to_a_clone_of_named_tensors_is_whole(pushed, clone, commits, there, same) -> None:
    found = clone(names=["frozen"])
    ids = commits(6, 7, to=found)
    found.gc()
    found.push()
    same(there(), found, *ids)


def test_a_name_that_no_commit_has_is_an_error(pushed, clone) -> None:
    with pytest.raises(WeightsMismatch, match=r"no\.such"):
        clone(names=["no.such"])


@pytest.mark.parametrize("names", [["frozen"], None])
def test_a_clone_that_failed_for_a_name_can_be_made_with_others(repo, pushed, clone, same, names) -> None:
    for wrong in (["no.such"], ["frozen", "no.such"]):
        with pytest.raises(WeightsMismatch):
            clone(names=wrong)
    found = clone(names=names)
    if names is None:
        same(found, repo, *pushed)
    else:
        assert found.load(names=["frozen"])["frozen"].data.shape == (30, 50)
        with pytest.raises(MissingObject, match="has only frozen"):
            found.load()
    assert found.fsck().ok


@pytest.mark.parametrize("others", [None, ["layer"]])
def test_a_clone_of_names_that_was_cut_is_what_the_next_one_asks_for(
    repo: Repository, remote, pushed, clone, same, tmp_path: Path, others
) -> None:
    cut = 0
    while True:  # one request later each time
        remote.requests.clear()
        remote.fault = lambda number, kind, cut=cut: "error" if number >= cut else None
        try:
            clone(names=["frozen"])
            break
        except RemoteUnreachable:
            cut += 1
        remote.fault = lambda number, kind: None
        found = clone(names=others)
        if others is None:
            same(found, repo, *pushed)
        else:
            assert found.load(names=others)["layer"].data.shape == (120, 100)
            assert partial_names(found.store.fs) == {"layer"}
        assert found.fsck().ok
        shutil.rmtree(tmp_path / "clone")
    assert cut > 5


def test_a_clone_with_refs_keeps_its_names(remote, pushed, clone, tmp_path: Path, monkeypatch) -> None:
    """Cut between the refs that follow the remote and the branch: it is completed with the same names alone."""
    with monkeypatch.context() as patched:
        patched.setattr(Repository, "_keep_up", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            clone(names=["frozen"])
    for others in (None, ["layer"]):
        with pytest.raises(RefExists, match=r"begun with names=\['frozen'\].*clone to another folder"):
            clone(names=others)
    found = clone(names=["frozen"])
    with pytest.raises(MissingObject, match="has only frozen"):
        found.load()


def test_a_whole_repository_does_not_become_one_of_names(remote, pushed, clone, tmp_path: Path) -> None:
    found = Repository(tmp_path / "clone", init=True, durability="fast")
    found.add_remote("origin", "test://memory")
    found.fetch()
    with pytest.raises(RefExists, match="for all weights"):
        clone(names=["frozen"])
    assert not (tmp_path / "clone" / "partial").exists()


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"depth": True}, {"names": "layer"}, {"names": []}, {"names": iter(())}]
)
def test_options_that_cannot_be(pushed, clone, options: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        clone(**options)
    assert not (tmp_path / "clone").exists()


def test_a_tensor_without_elements_is_not_asked_for(repo: Repository, remote, clone, monkeypatch) -> None:
    """Between two that are large it is a range of its own; a server may answer one without a byte with all it has."""
    large = np.random.default_rng(0).integers(0, 256, 9 << 20, np.uint8)
    repo.commit({"a": large, "b": np.empty((0, 3)), "c": large[::-1].copy()})
    repo.push("test://memory")
    asked, read = [], remote.read

    def answer(name: str, offset: int, size: int) -> bytes:
        asked.append(size)
        return read(name, offset, size) if size else remote.files[name]

    monkeypatch.setattr(remote, "read", answer)
    found = clone()
    assert 0 not in asked
    assert found.load()["b"].data.shape == (0, 3)
    assert np.array_equal(found.load()["a"].data, large)


# -- what is not let in ------------------------------------------------------------------------------------------------


def test_a_clone_of_nothing_leaves_no_folder(remote, clone, tmp_path: Path, other: Path) -> None:
    with pytest.raises(NotARepository, match="no coral repository at test://memory"):
        clone()
    with pytest.raises(NotARepository, match=str(other)):
        Repository.clone(other, tmp_path / "clone")
    assert list(tmp_path.iterdir()) == []


def test_a_clone_goes_to_no_folder_with_something_in_it(pushed, clone, tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "thesis.txt").write_text("precious")
    with pytest.raises(NotARepository, match="neither empty"):
        clone()
    assert os.listdir(tmp_path / "clone") == ["thesis.txt"]


def test_a_clone_goes_to_no_repository_with_branches(pushed, clone, commits, tmp_path: Path) -> None:
    commits(9, to=Repository(tmp_path / "clone", init=True))
    with pytest.raises(RefExists, match="with branches"):
        clone()


@pytest.mark.parametrize("name", ["refs/heads/../../../pwned/0000000001", "refs/heads/a\\b/0000000001", "packs/../x"])
def test_an_unsafe_name_is_refused(remote, pushed, clone, tmp_path: Path, name: str) -> None:
    remote.files[name] = b"x"
    with pytest.raises(UnsafeInput, match="refused"):
        clone()
    assert not list(tmp_path.rglob("pwned*"))


def test_strange_files_over_there_are_left_alone(repo: Repository, remote, pushed, clone, same) -> None:
    remote.files |= {"packs/README.md": b"hello", "refs/heads/.hidden/0000000001": b"x", "notes/x/y": b"", "a/b": b""}
    same(clone(), repo, *pushed)


def test_a_ref_that_names_no_commit_is_refused(remote, pushed, clone) -> None:
    remote.files["refs/heads/evil/0000000001"] = seal(
        b'{"ref":"refs/heads/evil","seq":1,"value":"../../x","prev":"","nonce":"","time":1,"why":""}'
    )
    with pytest.raises(CorruptObject, match="no commit"):
        clone()


def test_every_changed_byte_of_a_pack_is_seen_or_harmless(
    repo: Repository, remote, pushed, tmp_path: Path, same
) -> None:
    packs = {name: data for name, data in remote.files.items() if name.startswith("packs/")}
    rng, refused = np.random.default_rng(3), 0
    for case in range(60):
        name = sorted(packs)[case % len(packs)]
        data = bytearray(packs[name])
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        remote.files[name] = bytes(data)
        folder = tmp_path / str(case)
        try:
            found = Repository.clone("test://memory", folder, durability="fast")
        except CorruptObject:
            refused += 1
            assert not Repository(folder).branches()
            assert Repository(folder).fsck().ok
        else:
            same(found, repo, *pushed)
        remote.files[name] = packs[name]
    assert refused > 30


def test_a_pack_that_is_gone_over_there_is_named(remote, pushed, clone) -> None:
    for name in [name for name in remote.files if name.startswith("packs/")][:1]:
        del remote.files[name]
    with pytest.raises(MissingObject, match="run fsck"):
        clone()


@pytest.mark.parametrize("followed", [False, True])
def test_a_clone_with_a_depth_that_was_cut_is_not_taken_for_a_whole_one(
    repo: Repository, pushed, clone, same, monkeypatch, *, followed: bool
) -> None:
    """... cut before the refs that follow the remote, or after: what those lead to is not fetched again."""
    name = "_take_tags" if followed else "_track"

    def cut(*_: object, **__: object) -> None:
        raise RemoteUnreachable("cut", remote="test")

    with monkeypatch.context() as patch:
        patch.setattr(Repository, name, cut)
        with pytest.raises(RemoteUnreachable):
            clone(depth=1)
    if followed:
        with pytest.raises(RefExists, match="with a depth"):
            clone()
        assert clone(depth=1).load()
    else:
        same(clone(), repo, *pushed)
