"""T1: the power goes out after every operation of every scenario, and leaves each state that a disk may be left in."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from crash import MODELS, Journal
from memory import MemoryFileSystem, Op, Tree
from oracle import Violation, check, check_kept, check_lossy
from scenarios import Scenario, Step, World, build, do, limits, same_names
from watched import Digests, Judged, Watched


@dataclass(slots=True)
class Tally:
    """How a fault test went.

    `cases` are different ones. Of a loss of power, `tried` counts equal states as often as they came up, and `judged`
    those in which anything differs that the oracle looks at.
    """

    cases: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tried: int = 0
    judged: int = 0

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.violations += other.violations
        self.seconds += other.seconds
        self.tried += other.tried
        self.judged += other.judged


@dataclass(frozen=True, slots=True)
class Recording:
    """A scenario as it went with no fault: the disk at its start, the trace, the world after each step."""

    scenario: Scenario
    start: Tree
    trace: tuple[Op, ...]
    worlds: tuple[World, ...]

    def at(self, acknowledged: int) -> tuple[World, Step | None]:
        """The world, and the step under way, once so many steps have been acknowledged."""
        steps = self.scenario.steps
        return self.worlds[acknowledged], steps[acknowledged] if acknowledged < len(steps) else None


def record(scenario: Scenario) -> Recording:
    """Run a scenario and write down what it asks of the disk."""
    fs = MemoryFileSystem()
    worlds = [build(fs, scenario.before)]
    if scenario.hollow:
        fs = MemoryFileSystem.of(_without_empty_folders(fs.tree()))
    start, fs.trace = fs.tree(), []
    fs.mark(0)
    for number, step in enumerate(scenario.steps, 1):
        fs.clock += 10
        worlds.append(worlds[-1].after(step, do(fs, step)))
        fs.mark(number)
    return Recording(scenario, start, tuple(fs.trace), tuple(worlds))


def _without_empty_folders(tree: Tree) -> Tree:
    while empty := {inode for inode, entries in tree.folders.items() if not entries}:
        folders = {
            inode: {name: child for name, child in entries.items() if child not in empty}
            for inode, entries in tree.folders.items()
            if inode not in empty
        }
        tree = Tree(folders, tree.files)
    return tree


def states(
    recording: Recording, model: str, cap: int, seed: int, trace: Iterable[Op] | None = None, thin: int = 1
) -> Iterator[tuple[int, int, Tree]]:
    """(operations done, steps acknowledged, what the disk holds) for each state; many come up more than once.

    `thin`: only after every so manieth operation.
    """
    journal, acknowledged = Journal(recording.start, model), 0
    for done, op in enumerate(recording.trace if trace is None else trace, 1):
        journal.apply(op)
        if op.kind == "mark":
            acknowledged = op.inode
        if (done + seed) % thin:
            continue
        rng = random.Random(f"{seed} {recording.scenario.name} {model} {done}")
        for plan in journal.plans(rng, cap):
            yield done, acknowledged, journal.state(plan)


def judge(recording: Recording, acknowledged: int, tree: Tree, *, later: int) -> Watched:
    """Raise Violation if the oracle finds fault with a state; what it asked of it. The clock is `later` by seconds."""
    world, step = recording.at(acknowledged)
    fs = Watched.of(tree, clock=1_700_000_000.0 + 10 * (acknowledged + 1) + later, boot="boot-2")
    with same_names():
        if world.soft or getattr(step, "durability", "full") != "full":
            check_kept(fs, world, step)
            check_lossy(fs, world, step)
        else:
            check(fs, world, step)
    return fs


def run(
    scenario: Scenario,
    *,
    cap: int,
    seed: int = 0,
    models: tuple[str, ...] = MODELS,
    edit: Callable[[Recording], list[Op]] | None = None,
    stop: int = 5,
    thin: int = 1,
) -> Tally:
    """Try the states of a scenario; stop after so many violations.

    `edit` rewrites the trace first: the mutants. Then only states that follow the first change are tried.
    """
    began, tally = time.perf_counter(), Tally()
    with limits(scenario):
        _run(tally, scenario, cap, seed, models, edit, stop, thin)
    tally.seconds = time.perf_counter() - began
    return tally


def _run(
    tally: Tally,
    scenario: Scenario,
    cap: int,
    seed: int,
    models: tuple[str, ...],
    edit: Callable[[Recording], list[Op]] | None,
    stop: int,
    thin: int,
) -> None:
    recording = record(scenario)
    trace, same = edit(recording) if edit else None, 0
    if trace is not None:  # what comes before the first change is known to be good
        same = next((i for i, (a, b) in enumerate(zip(trace, recording.trace, strict=False)) if a != b), len(trace))
    seen: set[tuple[int, int]] = set()
    judged = Judged()
    for model in models:
        for done, acknowledged, tree in states(recording, model, cap, seed, trace, thin):
            if done <= same:
                continue
            tally.tried += 1
            state = Digests(tree)
            if (acknowledged, state.of()) in seen:
                continue
            seen.add((acknowledged, state.of()))
            tally.cases += 1
            # the clock has not moved on in half of the cases: a commit retried is then the same commit, by its id
            case = acknowledged, tally.cases % 2
            if judged.knows(case, state):
                continue
            tally.judged += 1
            try:
                judged.add(case, state, judge(recording, acknowledged, tree, later=case[1]).questions)
            except Violation as violation:
                last = (trace or recording.trace)[done - 1]
                tally.violations.append(
                    f"{scenario.name}, {model}, after op {done} ({last.kind} {last.name}), {acknowledged} steps "
                    f"acknowledged, state {tally.tried}, seed {seed}: {violation}"
                )
                if len(tally.violations) >= stop:
                    return
