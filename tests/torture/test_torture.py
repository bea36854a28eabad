"""The bounded part of the fault tests; `python tests/torture/run.py --full` does what CI claims."""

from __future__ import annotations

import mutants
import pytest
import run
import stateful
from memory import MemoryFileSystem
from model import SETTINGS, Model, Protocol, Setting
from mutants import Names
from oracle import Violation
from power_loss import judge, record, states
from races import RACES, Race, lengths
from run import BOUNDED, short, table, tasks
from scenarios import BORN, HEAVY, UPKEEP, Commit, Repack, Scenario, build, do, limits, weights
from watched import Digests, Judged

from coral import Repository
from coral.store._pack import read_directory


@pytest.mark.parametrize("name", sorted({row.split()[0] for row in BOUNDED.floors}))
def test_the_store_survives(name: str) -> None:
    rows, remarks = run.run(BOUNDED, seed=0, only=[name], jobs=2)
    print("\n" + table(rows, 0), *remarks, sep="\n")
    found = [f"{row}: {violation}" for row, tally in rows.items() for violation in tally.violations]
    assert not found, "\n".join(found[:5])
    assert rows
    assert not short(rows, BOUNDED)


def test_every_row_has_a_floor_or_may_be_impossible() -> None:
    for size in (BOUNDED, run.FULL, run.NIGHTLY):
        assert {task.row for task in tasks(size, 0)} - {run.T5_DISK} == set(size.floors)
    assert run.FULL.floors.keys() == run.NIGHTLY.floors.keys() == BOUNDED.floors.keys() | {run.T3_REPAIR}


def test_a_sequence_that_fails_is_found_and_prints_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(repo: Repository) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Repository, "gc", broken)
    (said,) = stateful.run(sequences=20).violations
    assert "RuntimeError: broken" in said
    assert "state.gc()" in said.split("\n")


def test_there_are_enough_mutants() -> None:
    assert len({mutant.name for mutant in mutants.MUTANTS}) >= 12


def test_there_are_differences_where_there_should_be() -> None:
    for scenario in (*UPKEEP, *HEAVY):
        if any(isinstance(step, Repack) for step in (*scenario.before, *scenario.steps)):
            with limits(scenario):
                fs = MemoryFileSystem()
                for step in (*scenario.before, *scenario.steps):
                    do(fs, step)
                    if isinstance(step, Repack):
                        assert differences(fs), f"{scenario.name}, {step}"


def differences(fs: MemoryFileSystem) -> list[str]:
    """The tensors that some pack holds as a difference from another."""
    names = [name.removesuffix(".pack") for name in fs.list("packs")]
    return [entry.id for name in names for entry in read_directory(fs, name).entries() if entry.base]


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_the_parties_of_a_race_do_meet(race: Race) -> None:
    with limits(Scenario("", (), (), tight=race.tight)):
        fs = MemoryFileSystem()
        sizes = lengths(race, fs, build(fs, race.before))
    assert min(sizes) > 5


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_everything_in_the_model_can_happen(setting: Setting) -> None:
    assert Model(Protocol(), setting).explore().states > 50


@pytest.mark.parametrize("big", [False, True])
def test_a_commit_on_a_branch_is_four_syncs(big: bool) -> None:
    recording = record(Scenario("one commit", (*BORN[:1], Commit(1, big=big)), (Commit(2, big=big),)))
    names = Names(recording)
    syncs = [op for op in recording.trace if op.kind.startswith("fsync")]
    assert [op.kind for op in syncs] == ["fsync", "fsync_dir", "fsync", "fsync_dir"]
    pack, packs, entry, branch = syncs
    assert names.has(pack.inode, "packs/")
    assert names.folder(packs.folder, "packs")
    assert names.has(entry.inode, "refs/heads/main/")
    assert names.folder(branch.folder, "refs/heads/main")


def test_what_is_not_judged_again_would_be_found_good() -> None:
    (mutant,) = [each for each in mutants.MUTANTS if each.name == "packs synced before the last write"]
    (scenario,) = mutant.scenarios
    found = [0, 0]
    with limits(scenario):
        recording, judged = record(scenario), Judged()
        trace = list(mutant.edit(list(recording.trace), Names(recording)))
        for _, acknowledged, tree in states(recording, "weak", 4, 0, trace):
            state, known = Digests(tree), judged.knows(acknowledged, Digests(tree))
            try:
                fs = judge(recording, acknowledged, tree, later=0)
            except Violation:
                assert not known
                found[0] += 1
            else:
                judged.add(acknowledged, state, fs.questions)
                found[1] += known
    assert min(found) > 10, "some must be bad, and some be known"


def test_a_trace_replayed_to_its_end_gives_what_was_there() -> None:
    from crash import Journal, Plan

    fs = MemoryFileSystem()
    journal = Journal(fs.tree())
    fs.mkdir("a")
    file = fs.create("a/x")
    file.write([b"one", b"two"])
    fs.link("a/x", "a/y")
    fs.replace("a/x", "z")
    for op in fs.trace:
        journal.apply(op)
    options = journal._options()
    everything = journal.state(Plan(tuple(n - 1 for n in options), ("full",)))
    nothing = journal.state(Plan((0,) * len(options), ("none",)))
    assert MemoryFileSystem.of(everything).paths() == fs.paths() == ["a/y", "z"]
    assert MemoryFileSystem.of(everything).data("z") == b"onetwo"
    assert MemoryFileSystem.of(nothing).paths() == []


def test_a_sync_makes_durable_what_it_says_and_no_more() -> None:
    import random

    from crash import Journal

    fs = MemoryFileSystem()
    fs.mkdir("a")
    file = fs.create("a/x")
    file.write([b"data"])
    file.fsync()
    fs.fsync_dir("a")
    journal = Journal(fs.copy().tree()._replace(folders={0: {}}, files={}))
    for op in fs.trace:
        journal.apply(op)
    left = {tuple(MemoryFileSystem.of(journal.state(p)).paths()) for p in journal.plans(random.Random(0), 100)}
    assert left == {(), ("a/x",)}  # the folder itself was never synced into its parent


def test_versions_share_some_tensors_and_not_others() -> None:
    two, three = weights(Commit(2)), weights(Commit(3))
    equal = {name for name in two if two[name].id == three[name].id}
    assert "layer.frozen" in equal
    assert "layer.weight" not in equal
