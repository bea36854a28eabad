"""push: what is missing over there goes there, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import (
    CommitPruned,
    ConfigError,
    Diverged,
    NewerFormat,
    NotARepository,
    RefExists,
    UnknownRef,
    UnknownRemote,
)
from coral.store._pack import read_directory


def test_a_folder_that_was_pushed_to_is_a_repository(repo: Repository, commits, same, other: Path) -> None:
    ids = commits(1, 2, 3)
    repo.tag("paper", ids[1])
    repo.annotate(ids[0], metrics={"loss": 0.5})
    repo.add_remote("origin", other)
    done = repo.push()
    assert (done.commits, done.notes, done.tags) == (3, 1, ("paper",))
    assert list((other / "intents").iterdir()) == list((other / "tmp").iterdir()) == []
    found = Repository(other)
    same(found, repo, *ids)
    assert (found.branches(), found.tags()) == (repo.branches(), repo.tags())
    assert repo.resolve("origin/main") == ids[2]


def test_a_second_push_asks_little_and_sends_nothing(repo: Repository, remote, commits) -> None:
    commits(1, 2)
    repo.annotate("HEAD", metrics={"loss": 1.0})
    repo.add_remote("origin", "test://memory")
    repo.push()
    remote.requests.clear()
    remote.sent = remote.received = 0
    assert repo.push().up_to_date
    assert [kind for kind, _ in remote.requests] == ["read", "read"]
    assert remote.sent + remote.received < 1000


def test_a_store_without_a_condition_is_refused_each_time(repo: Repository, remote, commits, monkeypatch) -> None:
    commits(1)
    repo.add_remote("origin", "test://memory")
    with monkeypatch.context() as patched:
        patched.setattr(remote, "put", lambda name, data: bool(remote.files.update({name: bytes(data)})) or True)
        for where in ("origin", "test://memory", "origin"):
            with pytest.raises(ConfigError, match="without a conditional put"):
                repo.push(where)
            assert remote.files == {}
    repo.push()


def test_a_repository_that_is_there_tells_nothing_of_its_store(repo: Repository, remote, commits, monkeypatch) -> None:
    """As one that a single writer has made on a store without a condition, and that is opened without that promise."""
    commits(1)
    repo.push("test://memory")
    before = dict(remote.files)
    commits(2)
    repo.add_remote("origin", "test://memory")
    with monkeypatch.context() as patched:
        patched.setattr(remote, "put", lambda name, data: bool(remote.files.update({name: bytes(data)})) or True)
        for where in ("origin", "test://memory", "origin"):
            with pytest.raises(ConfigError, match="single_writer"):
                repo.push(where)
            assert remote.files == before
    repo.push()


def test_that_a_store_has_a_condition_is_tried_once_for_a_name(repo: Repository, remote, there, commits) -> None:
    commits(1)
    repo.push("test://memory")
    for name in ("origin", "again"):
        repo.add_remote(name, "test://memory")
        tried = []
        for step in (2, 3):
            commits(step)
            remote.requests.clear()
            repo.push(name)
            tried.append(remote.requests.count(("put", "format")))
        assert tried == [1, 0]
        repo.remove_remote(name)
    repo.add_remote("origin", "test://memory")
    commits(4)
    remote.requests.clear()
    repo.push()
    assert remote.requests.count(("put", "format")) == 1  # nothing is left of the remote that had the name before
    assert there().branches() == repo.branches()


def test_only_what_is_missing_travels(repo: Repository, remote, commits, trained) -> None:
    commits(1)
    repo.push("test://memory")
    sent = remote.received
    commits(2)
    done = repo.push("test://memory")
    assert done.commits == 1
    # `frozen` and the momentum are there, and of `layer` little has changed
    assert remote.received - sent < 0.6 * trained(2)["layer"].nbytes


def test_what_is_sent_as_a_difference_is_never_a_difference_from_two(repo: Repository, remote, there, commits) -> None:
    ids = []
    for step in range(1, 12):
        ids += commits(step)
        repo.push("test://memory")
    store = there().store
    with store.copies() as copies:
        depths = [copies.get(store_entry.id, "layer", id).depth for id in ids
                  for store_entry in [there().tree(id)["layer"]]]  # fmt: skip
    assert max(depths) <= 2
    assert depths[0] == 0
    assert set(depths[1:8]) == {1}


def test_a_repacked_history_travels_as_it_is(repo: Repository, remote, there, commits, same) -> None:
    ids = commits(*range(1, 10))
    repo.repack()
    stored = repo.stats().stored_bytes
    repo.push("test://memory")
    assert remote.received < 1.1 * stored
    same(there(), repo, *ids)


def test_what_follows_a_repack_here_still_finds_its_base_there(repo: Repository, remote, there, commits, same) -> None:
    ids = commits(1, 2, 3)
    repo.push("test://memory")
    ids += commits(4, 5, 6, 7)
    repo.repack()
    repo.push("test://memory")
    same(there(), repo, *ids)


def test_progress_ends_at_the_total(repo: Repository, remote, commits) -> None:
    commits(1, 2, 3)
    told: list[tuple[int, int]] = []
    repo.push("test://memory", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)


def test_another_branch_goes_there_by_itself(repo: Repository, other: Path, commits) -> None:
    commits(1, branch="exp/a")
    repo.push(other, "exp/a")
    found = Repository(other)
    assert found.branches() == repo.branches()
    assert found.head == "exp/a"  # whoever opens it finds what there is


def test_a_branch_that_has_moved_over_there_is_left_alone(
    repo: Repository, tmp_path: Path, other: Path, commits
) -> None:
    commits(1)
    repo.push(other)
    second = Repository.clone(other, tmp_path / "second", durability="fast")
    theirs = commits(2, to=second)
    second.push()
    ours = commits(3)
    with pytest.raises(Diverged, match="somebody else has pushed") as caught:
        repo.push(other)
    assert (caught.value.ours, caught.value.theirs) == (ours[0], theirs[0])
    assert Repository(other).resolve("main") == theirs[0]


def test_of_two_who_push_one_wins_and_the_other_after_a_pull(
    repo: Repository, tmp_path: Path, other: Path, commits, same
) -> None:
    first = commits(1)
    repo.push(other)
    second = Repository.clone(other, tmp_path / "second", durability="fast")
    theirs, ours = commits(2, to=second), commits(3)
    second.push()
    repo.add_remote("origin", other)
    with pytest.raises(Diverged):
        repo.push()
    with pytest.raises(Diverged, match="merge="):
        repo.pull()
    repo.pull(merge="ours")
    repo.push()
    found = Repository(other)
    assert {commit.id for commit in found.log()} >= {*first, *theirs, *ours}
    same(found, repo, *first, *theirs, *ours)
    assert found.load()["step"].data == 3


def test_what_is_pruned_here_stays_there_unless_asked(repo: Repository, other: Path, commits, trained) -> None:
    ids = commits(1, 2, 3)
    repo.push(other)
    repo.prune(ids[1])
    assert not repo.push(other).bytes_freed
    found = Repository(other)
    np.testing.assert_array_equal(found.load(ids[1])["layer"].data, trained(2)["layer"])
    before = found.stats().stored_bytes
    assert repo.push(other, prune=True).bytes_freed > 5000  # of a difference
    assert found.stats().stored_bytes < before
    found = Repository(other)
    assert found.fsck().ok
    with pytest.raises(CommitPruned):
        found.load(ids[1])
    for id, step in ((ids[0], 1), (ids[2], 3)):
        np.testing.assert_array_equal(found.load(id)["layer"].data, trained(step)["layer"])


def test_what_was_pruned_before_it_was_pushed_goes_as_a_record(repo: Repository, other: Path, commits) -> None:
    ids = commits(1, 2)
    repo.prune(ids[0])
    repo.push(other)
    found = Repository(other)
    assert [commit.pruned for commit in found.log()] == [False, True]
    assert found.fsck().ok


def test_a_later_state_reaches_a_commit_that_is_there(repo: Repository, other: Path, commits) -> None:
    ids = commits(1)
    repo.push(other)
    repo.annotate(ids[0], state={"step": 1, "late": np.arange(3)})
    repo.push(other)
    found = Repository(other)
    assert found.load_state(ids[0])["late"].tolist() == [0, 1, 2]
    assert found.fsck().ok


def test_a_later_state_that_was_pruned_here_leaves_the_other_side_whole(
    repo: Repository, other: Path, commits, same, tmp_path: Path
) -> None:
    ids = commits(1)
    repo.push(other)
    repo.annotate(ids[0], metrics={"loss": 0.5})
    repo.annotate(ids[0], state={"step": 1, "late": np.arange(3)})
    ids += commits(2)
    repo.prune(ids[0])
    for prune in (False, True):
        repo.push(other, prune=prune)
        found = Repository(other)
        found.gc()
        same(found, repo, ids[1])
        same(Repository.clone(other, tmp_path / f"clone {prune}"), repo, ids[1])
        assert found.show(ids[0]).metrics == {"loss": 0.5}
        assert found.show(ids[0]).pruned == prune
        assert prune or "late" not in found.load_state(ids[0])


def test_a_pruned_commit_goes_as_a_record_where_another_one_has_its_weights(
    repo: Repository, other: Path, trained, tmp_path: Path
) -> None:
    repo.commit(trained(1), "first", state={"step": 1})
    repo.push(other)
    again = repo.commit(trained(1), "the same weights", state={"step": 2})
    repo.commit(trained(3), "last", state={"step": 3})
    repo.prune(again)
    repo.push(other)
    found = Repository(other)
    assert found.fsck().ok
    assert found.show(again).pruned
    assert Repository.clone(other, tmp_path / "clone").fsck().ok


def test_a_tag_made_by_hand_over_there_stays_where_it_is(repo: Repository, other: Path, commits) -> None:
    ids = commits(1, 2)
    repo.push(other)
    Repository(other).tag("paper", ids[0])
    repo.tag("paper", ids[1])
    repo.add_remote("origin", other)
    for _ in range(2):
        done = repo.push()
        assert done.refused_tags == ("paper",)
        assert "paper" in str(done)
    assert Repository(other).tags() == {"paper": ids[0]}


def test_a_tag_that_a_run_moves_moves_there_too(repo: Repository, other: Path, commits) -> None:
    ids = commits(1, 2)
    repo.tag("best/x", ids[0], run="a" * 16)
    repo.push(other)
    repo.tag("best/x", ids[1], force=True, run="a" * 16)
    repo.push(other)
    assert Repository(other).tags() == {"best/x": ids[1]}


def test_what_is_no_repository_is_not_written_to(repo: Repository, other: Path, commits, files_of) -> None:
    commits(1)
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(NotARepository, match="not empty"):
        repo.push(other)
    assert files_of(other) == {"thesis.txt": b"precious"}


def test_a_newer_format_is_refused(repo: Repository, remote, commits) -> None:
    from coral.store._files import seal

    commits(1)
    remote.files["format"] = seal(b'{"format":9}')
    with pytest.raises(NewerFormat, match="Upgrade"):
        repo.push("test://memory")
    assert list(remote.files) == ["format"]


def test_an_unknown_remote_is_named_with_those_there_are(repo: Repository, other: Path, commits) -> None:
    commits(1)
    repo.add_remote("backup", other)
    with pytest.raises(UnknownRemote, match="backup"):
        repo.push("origin")


def test_a_branch_without_a_commit_is_not_pushed(repo: Repository, other: Path) -> None:
    with pytest.raises(UnknownRef, match="nothing to push"):
        repo.push(other)
    assert not other.exists()


def test_a_remote_keeps_its_url_until_it_is_removed(repo: Repository, other: Path, tmp_path: Path, commits) -> None:
    commits(1)
    repo.add_remote("origin", other)
    repo.add_remote("origin", other)
    with pytest.raises(RefExists, match="already"):
        repo.add_remote("origin", tmp_path / "elsewhere")
    repo.push()
    assert Repository(repo.path).remotes() == {"origin": str(other)}
    repo.remove_remote("origin")
    assert repo.remotes() == {}
    with pytest.raises(UnknownRef):
        repo.resolve("origin/main")
    repo.add_remote("origin", tmp_path / "elsewhere")


def test_a_damaged_copy_here_is_not_spread(repo: Repository, remote, commits, flip) -> None:
    from coral.errors import CorruptObject

    commits(1)
    (pack,) = (repo.path / "packs").iterdir()
    flip(pack, 5000)
    with pytest.raises(CorruptObject):
        repo.push("test://memory")
    assert not [name for name in remote.files if name.startswith(("packs/", "refs/"))]


@pytest.mark.parametrize("which", ["before", "after"])
def test_a_damaged_copy_here_is_passed_by_where_another_is_whole(
    repo: Repository, remote, there, commits, same, flip, which: str
) -> None:
    ids = commits(1, 2, 3, 4)
    packs = repo.path / "packs"
    before = {path: path.read_bytes() for path in packs.iterdir()}
    repo.repack()
    after = set(packs.iterdir()) - before.keys()
    for path, content in before.items():
        path.write_bytes(content)  # as a repack that is killed leaves it
    old, new = ({path: read_directory(repo.store.fs, path.stem) for path in some} for some in (before, after))
    twice = {id for pack in old.values() for id in pack.ids} & {id for pack in new.values() for id in pack.ids}
    assert len(twice) >= 4
    for path, pack in (old if which == "before" else new).items():
        for entry in pack.entries():
            if entry.id in twice:
                flip(path, entry.offset + entry.size // 2)
    Repository(repo.path).push("test://memory")
    same(there(), repo, *ids)
