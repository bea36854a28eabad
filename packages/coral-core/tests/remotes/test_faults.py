"""Every request of a push and of a fetch, broken in every way.

Whatever happens: the branch is at its old value or its new one, all that it leads to is there bit by bit, only coral's
errors come out, and the same again succeeds and sends what is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coral import CoralError, Repository
from coral.errors import Diverged

ONCE = ("error", "denied", "killed", "lost", "late", "twice", "truncated", "wrong")
FOREVER = ("error", "denied", "killed", "truncated", "wrong")


EVERY = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.nightly)])
"""One request in so many is broken by each kind, which take turns."""


def faults(count: int, every: int) -> Iterator[tuple[str, Callable[[int, str], str | None]]]:
    for turn, kind in enumerate(ONCE):
        for at in range(turn % every, count, every):
            yield f"{kind} at {at}", lambda number, _, at=at, kind=kind: kind if number == at else None
    for turn, kind in enumerate(FOREVER):
        for at in range(turn % 4, count, 4 * every):
            yield f"{kind} from {at}", lambda number, _, at=at, kind=kind: kind if number >= at else None


def packs_of(files: dict[str, bytes]) -> int:
    return sum(len(data) for name, data in files.items() if name.startswith("packs/"))


def begin(remote, files: dict[str, bytes], fault: Callable[[int, str], str | None] | None = None) -> None:
    """Put the remote back to what it held, with a fault to come."""
    remote.files.clear()
    remote.files.update(files)
    remote.requests.clear()
    remote._late.clear()
    remote.received = 0
    remote.fault = fault or (lambda number, kind: None)


@EVERY
@pytest.mark.parametrize("empty_at_first", [True, False])
def test_push(
    repo: Repository, remote, there, commits, same, tmp_path: Path, *, empty_at_first: bool, every: int
) -> None:
    old = None
    ids = commits(1, 2)
    if not empty_at_first:
        repo.push("test://memory")
        old = ids[1]
    files = dict(remote.files)
    ids += commits(3, 4)
    repo.annotate(ids[1], metrics={"loss": 0.5})
    repo.tag("paper", ids[0])
    begin(remote, files)
    repo.push("test://memory")
    count, whole = len(remote.requests), packs_of(remote.files) - packs_of(files)
    cases = 0
    for name, fault in faults(count, every):
        cases += 1
        begin(remote, files, fault)
        failed = False
        try:
            repo.push("test://memory")
        except Diverged:
            pytest.fail(f"{name}: nobody else has pushed")
        except (CoralError, KeyboardInterrupt):
            failed = True
        begin_files = dict(remote.files)
        if "format" in begin_files:
            found = there()
            tip = found.branches().get("main")
            assert tip in ({old, ids[-1]} if failed else {ids[-1]}), name
            if tip is not None:
                same(found, repo, *(ids if tip == ids[-1] else ids[:2]), notes=tip == ids[-1])
        begin(remote, begin_files)
        repo.push("test://memory")
        again = sum(len(remote.files[n]) for n in remote.files.keys() - begin_files.keys() if n.startswith("packs/"))
        kept = packs_of(begin_files) - packs_of(files)
        assert again <= whole - kept + 4096, f"{name}: {again} bytes were sent again of {whole}, {kept} had come"
        found = there()
        same(found, repo, *ids)
        assert found.tags() == {"paper": ids[0]}, name
    assert cases > 100 / every


@EVERY
@pytest.mark.parametrize("cloned_before", [True, False])
def test_fetch(repo: Repository, remote, commits, same, tmp_path: Path, *, cloned_before: bool, every: int) -> None:
    ids = commits(1, 2)
    old = ids[1] if cloned_before else None
    if cloned_before:
        repo.push("test://memory")
        Repository.clone("test://memory", tmp_path / "before", durability="fast")
    else:
        Repository(tmp_path / "before", init=True).add_remote("origin", "test://memory")
    ids += commits(3, 4)
    repo.annotate(ids[1], metrics={"loss": 0.5})
    repo.tag("paper", ids[0])
    repo.push("test://memory")
    files = dict(remote.files)

    def fetch(folder: Path) -> None:
        Repository(folder, durability="fast").pull()

    shutil.copytree(tmp_path / "before", tmp_path / "counted")
    begin(remote, files)
    fetch(tmp_path / "counted")
    cases, folder = 0, tmp_path / "clone"
    for name, fault in faults(len(remote.requests), every):
        cases += 1
        shutil.copytree(tmp_path / "before", folder)
        begin(remote, files, fault)
        failed = False
        try:
            fetch(folder)
        except (CoralError, KeyboardInterrupt):
            failed = True
        assert remote.files == files, name
        found = Repository(folder)
        assert found.fsck().problems == [], name
        for tip in (found.branches().get("main"), dict(tracked(found)).get("origin/main")):
            assert tip in ({old, ids[-1]} if failed else {ids[-1]}), name
        if found.branches().get("main") == ids[-1]:
            same(found, repo, *ids, notes=False)  # one that comes with wrong bytes is left out, and comes next time
        assert not list((folder / "tmp").iterdir()), name
        begin(remote, files)
        fetch(folder)
        same(Repository(folder), repo, *ids)
        assert Repository(folder).tags() == {"paper": ids[0]}, name
        shutil.rmtree(folder)
    assert cases > 60 / every


def tracked(repo: Repository) -> Iterator[tuple[str, str]]:
    from coral._resolve import all_refs

    return iter(all_refs(repo.store, "remotes").items())


def test_what_came_before_a_cut_does_not_come_again(
    repo: Repository, remote, commits, tmp_path: Path, monkeypatch
) -> None:
    from coral.remotes import _receiving

    monkeypatch.setattr(_receiving, "_FULL", 1)  # each tensor in a pack of its own
    commits(1, 2, 3)
    repo.push("test://memory")
    files = dict(remote.files)
    begin(remote, files)
    remote.sent = 0
    Repository.clone("test://memory", tmp_path / "whole", durability="fast")
    whole, count = remote.sent, len(remote.requests)
    begin(remote, files, lambda number, kind: "error" if number >= count - 2 else None)
    with pytest.raises(CoralError):
        Repository.clone("test://memory", tmp_path / "cut", durability="fast")
    begin(remote, files)
    remote.sent = 0
    Repository.clone("test://memory", tmp_path / "cut", durability="fast")
    assert remote.sent < whole / 2
