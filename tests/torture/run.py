"""Run the fault tests: `python tests/torture/run.py [--full | --nightly] [--seed N] [--jobs N] [T1 T2 ... T15]`.

Prints what was tried and what was found. Exits with 1 on a violation, a mutant that survived, or fewer cases than the
floor. "0 found in N" is all that it says: not that nothing can be lost.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import bad_sectors
import bit_rot
import code_mutants
import crowd
import deeds
import io_errors
import killing
import model
import mutants
import power_loss
import process_death
import races
import remote_faults
import repairs
import stateful
import surroundings
from power_loss import Tally
from scenarios import FAST, HEAVY, SCENARIOS, SINGLE, TIGHT, UPKEEP, sagas


@dataclass(frozen=True, slots=True)
class Task:
    """A part of a fault test, for one process."""

    row: str
    work: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; the floors are what a row must have tried at least."""

    cap: int  # states for each operation of a scenario
    sagas: int  # random scenarios
    fast_cap: int
    redone_cap: int  # states of a power loss after each death and retry
    mutant_cap: int
    afterwards: int  # ... after each I/O error and retry
    thin: int
    limits: int  # values of RLIMIT_FSIZE
    pages: int
    every: bool  # T3: at moments between which nothing is changed, too
    heavy: int  # of the cases of upkeep, one in so many
    slow: bool  # T1 after every operation, and models of three and four at work
    mutants: tuple[str, ...]  # of the code, which of them
    models: tuple[model.Setting, ...]
    races: dict[str, int]  # options of races.run
    rot: dict[str, int]  # options of bit_rot.run: one in `parts` bytes, `bits` flips of each
    sectors: dict[str, int]  # options of bad_sectors.run
    deaths: int  # T3 of what takes more than one filesystem: one moment in so many
    refusals: int  # ... and T5: one case in so many
    requests: int  # T10: one case in so many
    upkeep: int  # ... of a push that prunes or repairs
    kills: int
    crowd: dict[str, int]  # options of crowd.run
    sequences: int
    floors: dict[str, int]


T1, T1_FAST, T1_TIGHT = "T1 power loss", "T1 power loss, not synced", "T1 power loss, folding"
T1_REDONE = "T1 death, retry, power loss"
T2, T2_CODE, T2_MODEL = "T2 mutants killed", "T2 mutants of the code killed", "T2 mutants of the model killed"
T3, T3_REPAIR = "T3 process death", "T3 repairs that do not end"
T3_DEEDS, T5_DEEDS = "T3 death in a push, pull, save", "T5 errors in a push, pull, save"
T4, T4_TRAIN = "T4 signals", "T4 signals in training"
T5, T5_LIMIT, T5_DISK, T5_BAD = "T5 I/O errors", "T5 RLIMIT_FSIZE", "T5 full tmpfs", "T5 bad sectors"
T7, T8 = "T7 bit rot", "T8 commits of a crowd"
T9, T9_MODEL = "T9 interleavings", "T9 states of the model"
T10, T11, T12, T13, T15 = "T10 remote dies", "T11 network", "T12 clocks", "T13 permissions", "T15 sequences"

QUICK = tuple(mutant.name for mutant in code_mutants.CODE_MUTANTS if mutant.quick)
ALL = tuple(mutant.name for mutant in code_mutants.CODE_MUTANTS)
LARGE = tuple(setting for setting in model.LARGE if "2 gc;" not in setting.name)

BOUNDED = Size(
    cap=3, sagas=1, fast_cap=2, redone_cap=1, mutant_cap=20, afterwards=1, thin=12, limits=5, pages=5, every=False,
    heavy=20, slow=False, mutants=QUICK, models=(), races={"sparse": 240, "thin": 20_000, "shuffles": 1},
    rot={"parts": 200, "bits": 8}, sectors={"thin": 10}, deaths=12, refusals=300, requests=10, upkeep=100, kills=6,
    crowd={"commits": 8, "kills": 4}, sequences=15,
    floors={
        T1: 1_000, T1_FAST: 150, T1_TIGHT: 130, T1_REDONE: 150, T2: 12, T2_CODE: 9, T2_MODEL: 12, T3: 150, T4: 6,
        T3_DEEDS: 40, T5_DEEDS: 40, T4_TRAIN: 6, T5: 300, T5_LIMIT: 25, T5_BAD: 20, T7: 500, T8: 64, T9: 60,
        T9_MODEL: 40_000, T10: 80, T11: 30, T12: 20, T13: 50, T15: 15,
    },
)  # fmt: skip
FULL = Size(
    cap=35, sagas=14, fast_cap=12, redone_cap=3, mutant_cap=60, afterwards=1, thin=1, limits=20, pages=24, every=True,
    heavy=4, slow=True, mutants=(*QUICK, "no second marking"), models=LARGE,
    races={"sparse": 11, "thin": 8_000, "shuffles": 6}, rot={"parts": 16, "bits": 12}, sectors={}, deaths=1,
    refusals=25, requests=1, upkeep=8, kills=250, crowd={"commits": 200, "kills": 110}, sequences=2_000,
    floors={
        T1: 100_000, T1_FAST: 3_000, T1_TIGHT: 1_500, T1_REDONE: 1_500, T2: 27, T2_CODE: 11, T2_MODEL: 13, T3: 850,
        T3_DEEDS: 560, T5_DEEDS: 600, T3_REPAIR: 500, T4: 250, T4_TRAIN: 250, T5: 6_000, T5_LIMIT: 150, T5_BAD: 240,
        T7: 200_000, T8: 1_600, T9: 1_000, T9_MODEL: 1_000_000, T10: 900, T11: 200, T12: 150, T13: 50, T15: 2_000,
    },
)  # fmt: skip
NIGHTLY = Size(
    cap=100, sagas=200, fast_cap=180, redone_cap=60, mutant_cap=200, afterwards=30, thin=1, limits=300, pages=60,
    every=True, heavy=1, slow=True, mutants=ALL, models=model.LARGE,
    races={"sparse": 1, "thin": 400, "shuffles": 100, "states": 4}, rot={"parts": 16, "bits": 132},
    sectors={"sector": 6}, deaths=1, refusals=2, requests=1, upkeep=1, kills=2_500,
    crowd={"commits": 2_000, "kills": 1_000}, sequences=20_000,
    floors={
        T1: 1_000_000, T1_FAST: 30_000, T1_TIGHT: 30_000, T1_REDONE: 15_000, T2: 27, T2_CODE: 24, T2_MODEL: 13,
        T3: 850, T3_DEEDS: 560, T5_DEEDS: 7_500, T3_REPAIR: 500, T4: 2_500, T4_TRAIN: 2_500, T5: 6_000, T5_LIMIT: 800,
        T5_BAD: 2_400, T7: 2_000_000, T8: 16_000, T9: 13_000, T9_MODEL: 3_000_000, T10: 2_500, T11: 200, T12: 150,
        T13: 50, T15: 20_000,
    },
)  # fmt: skip


def tasks(size: Size, seed: int) -> list[Task]:
    """Everything there is to do, the longest first."""
    todo: list[Task] = []
    for scenario in [*SCENARIOS, *UPKEEP, *sagas(seed, size.sagas)]:
        cap = size.cap * 15 if scenario in SCENARIOS and size.slow else size.cap  # few of these have to be judged
        cap = size.cap // 3 if "MiB" in scenario.name or scenario in UPKEEP else cap
        options = {"cap": cap, "seed": seed, "thin": 1 if size.slow or scenario not in UPKEEP else 3}
        todo.append(Task(T1, power_loss.run, (scenario,), options))
    for row, scenarios in ((T1_FAST, FAST), (T1_TIGHT, TIGHT)):
        options = {"cap": size.fast_cap, "seed": seed, "thin": 1 if size.slow else 3}
        todo += [Task(row, power_loss.run, (s,), options) for s in scenarios]
    for scenario in SINGLE:
        whole = size.every or scenario.name == "second commit"
        if size.every or "big" not in scenario.name:
            todo.append(Task(T3, process_death.run, (scenario,), {"every": size.every}))
        options = {"cap": size.redone_cap, "seed": seed, "every": size.every}
        todo.append(Task(T1_REDONE, process_death.run_then_power_loss, (scenario,), options))
        options = {"thin": size.thin, "lasting": size.every, "afterwards": size.afterwards, "seed": seed}
        todo.append(Task(T5, io_errors.run, (scenario,), options | {"thin": 1} if whole else options))
        sizes = tuple(sorted({int(4000 * (i / size.limits) ** 2) for i in range(size.limits)}))
        todo.append(Task(T5_LIMIT, io_errors.run_limit, (scenario,), {"sizes": sizes}))
    todo += _upkeep(size, seed)
    todo += _others(size, seed)
    todo += [Task(T2, mutants.run, (m.name,), {"cap": size.mutant_cap, "seed": seed}) for m in mutants.MUTANTS]
    todo += [Task(T2_CODE, code_mutants.run, (name,), {}) for name in size.mutants]
    todo += [Task(T2_MODEL, _model_mutant, (name,), {}) for name in model.MUTANTS]
    return [*todo, Task(T5_DISK, io_errors.run_full_disk, (), {"pages": size.pages})]


def _upkeep(size: Size, seed: int) -> list[Task]:
    """What takes long to do again, thinned out; and races, and the model of them."""
    todo = []
    for scenario in HEAVY:
        if size.slow or scenario.name in ("repack", "gc"):
            todo.append(Task(T3, process_death.run, (scenario,), {"every": False, "thin": size.heavy}))
            options = {"cap": size.redone_cap, "seed": seed, "every": False, "thin": size.heavy}
            todo.append(Task(T1_REDONE, process_death.run_then_power_loss, (scenario,), options))
        options = {"thin": size.thin * size.heavy, "lasting": size.every, "afterwards": size.afterwards, "seed": seed}
        todo.append(Task(T5, io_errors.run, (scenario,), options))
        sizes = tuple(sorted({int(4000 * (i / size.limits) ** 2) for i in range(0, size.limits, size.heavy)}))
        todo.append(Task(T5_LIMIT, io_errors.run_limit, (scenario,), {"sizes": sizes}))
    todo += [Task(T9, races.run, (race,), {"seed": seed, **size.races}) for race in races.RACES]
    settings = [*size.models, *model.SETTINGS]
    return [Task(T9_MODEL, _model, (setting,), {}) for setting in settings] + todo


def _others(size: Size, seed: int) -> list[Task]:
    """What is not asked of one operation at a time: kills, rot, crowds, what a repository stands in."""
    todo = []
    if size.slow:
        options = {"cap": 2, "seed": seed, "thin": 2}
        todo += [Task(T3_REPAIR, repairs.run, (damage,), options) for damage in repairs.DAMAGES]
        todo += [Task(T7, bit_rot.run, (), {"part": n, "seed": seed, **size.rot}) for n in range(size.rot["parts"])]
    else:
        todo.append(Task(T7, bit_rot.run, (), {"seed": seed, **size.rot}))
    todo.append(Task(T5_BAD, bad_sectors.run, (), {"seed": seed, **size.sectors}))
    for row, work in ((T4, killing.run), (T4_TRAIN, killing.run_training)):
        for number, kills in enumerate(_shared_out(size.kills, 50)):
            todo.append(Task(row, work, (), {"kills": kills, "seed": 1000 * seed + number}))
    todo.append(Task(T8, crowd.run, (), {"seed": seed, **size.crowd}))
    thin = 1 if size.slow else 16
    todo.append(Task(T11, surroundings.run_network, (), {"thin": thin, "seed": seed}))
    todo.append(Task(T12, surroundings.run_clocks, (), {"thin": thin, "seed": seed}))
    todo.append(Task(T13, surroundings.run_permissions, (), {}))
    for deed in deeds.DEEDS:
        todo.append(Task(T3_DEEDS, deeds.run_death, (deed,), {"thin": size.deaths, "seed": seed}))
        todo.append(Task(T5_DEEDS, deeds.run_errors, (deed,), {"thin": size.refusals, "seed": seed}))
    for some, part in ((remote_faults.REMOTE_DEEDS, size.requests), (remote_faults.UPKEEP, size.upkeep)):
        todo += [Task(T10, remote_faults.run, (deed,), {"thin": part, "seed": seed}) for deed in some]
    for number, sequences in enumerate(_shared_out(size.sequences, 500)):
        todo.append(Task(T15, stateful.run, (), {"sequences": sequences, "seed": 1000 * seed + number}))
    return todo


def _shared_out(total: int, each: int) -> list[int]:
    return [min(each, total - done) for done in range(0, total, each)]


def _model(setting: model.Setting) -> Tally:
    began = time.perf_counter()
    found = model.Model(model.Protocol(), setting).explore(track=setting in model.SETTINGS)
    problems = [f"{setting.name}: {found.problem}: {'; '.join(found.path)}"] if found.problem else []
    return Tally(found.states, problems, time.perf_counter() - began)


def _model_mutant(name: str) -> mutants.Verdict:
    began = time.perf_counter()
    found = model.killed(model.MUTANTS[name])
    why = f"{found.setting.name}: {found.problem}" if found else ""
    return mutants.Verdict(f"model: {name}", why, found.states if found else 0, time.perf_counter() - began)


def do(task: Task) -> tuple[Task, Any]:
    """Do a task, in whatever process."""
    logging.getLogger("coral").addHandler(logging.NullHandler())  # what is warned of is expected here
    return task, task.work(*task.args, **task.options)


def run(size: Size, seed: int, only: Iterable[str] = (), jobs: int | None = None) -> tuple[dict[str, Tally], list[str]]:
    """(how each row went, what else there is to say)."""
    names = set(only)
    todo = [task for task in tasks(size, seed) if not names or task.row.split()[0] in names]
    rows: dict[str, Tally] = {}
    remarks = []
    os.environ.setdefault("PYTHONHASHSEED", str(seed))  # so that packs are met in the same order again
    # spawned, not forked: they fork themselves, and must have no threads then
    with multiprocessing.get_context("spawn").Pool(jobs or min(8, os.cpu_count() or 1)) as pool:
        for task, result in pool.imap_unordered(do, todo):
            row = rows.setdefault(task.row, Tally())
            match result:
                case Tally():
                    row.add(result)
                case mutants.Verdict(name, killed, _, seconds):
                    row.add(Tally(int(bool(killed)), [] if killed else [f"survived: {name}"], seconds))
                    remarks.append(f"{'killed' if killed else 'SURVIVED':8} {name}, {result.cases} states")
                case (Tally() as tally, str(why)):
                    row.add(tally)
                    if why:
                        remarks.append(f"NOT RUN: {task.row}: {why}")
    return rows, remarks


def short(rows: dict[str, Tally], size: Size) -> list[str]:
    """The rows that tried fewer cases than their floor."""
    return [
        f"{row}: {rows[row].cases} cases, {n} expected"
        for row, n in size.floors.items()
        if row in rows and rows[row].cases < n
    ]


ELSEWHERE = {
    "T10 S3 and Hub": 'nox -s "tests(cross)" -- -k remotes -m ""',
    "T10 Google and Azure": 'nox -s stores -- -m ""',
    "T14 ranks": 'nox -s "tests(coral-lightning)" "tests(coral-hf)" -- -k ranks -m ""',
}
"""Tests of their own, named here so that one table has all."""


def table(rows: dict[str, Tally], seed: int, how: str = "") -> str:
    """What was done, a line for each row; `how` is the command's option for its size."""
    lines = [f"{'fault':30} {'cases':>9} {'found':>6} {'seconds':>8} {'seed':>5}  command"]
    for row, tally in sorted(rows.items(), key=lambda item: int(item[0].split()[0][1:])):
        command = f"python tests/torture/run.py {how} --seed {seed} {row.split()[0]}".replace("  ", " ")
        lines.append(f"{row:30} {tally.cases:9,} {len(tally.violations):6} {tally.seconds:8.1f} {seed:5}  {command}")
    lines += [f"{row:30} {'':32}  {command}" for row, command in ELSEWHERE.items()]
    for row, tally in sorted(rows.items()):
        if row.startswith("T1 ") and tally.tried:
            lines.append(
                f"{row}: {tally.tried:,} states came up, {tally.cases:,} of them different; {tally.judged:,} of these "
                "differ in something that the oracle looks at, and were judged"
            )
        elif row == T7:
            lines.append(f"{row}: {tally.judged:,} found out by reading, the others harmless")
        elif row == T8:
            lines.append(f"{row}: {tally.tried} kills")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "only", nargs="*", choices=[*sorted({row.split()[0] for row in FULL.floors}), []], help="all if none is named"
    )
    parser.add_argument("--full", action="store_true", help="what CI claims: 100,000 states of a power loss")
    parser.add_argument("--nightly", action="store_true", help="ten times as much")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=None, help="processes; one a core if not given")
    parser.add_argument("--verbose", action="store_true", help="each mutant by name, every violation")
    options = parser.parse_args()
    size = NIGHTLY if options.nightly else FULL if options.full else BOUNDED
    how = "--nightly" if options.nightly else "--full" if options.full else ""
    began = time.perf_counter()
    rows, remarks = run(size, options.seed, options.only, options.jobs)
    print(table(rows, options.seed, how))
    print(f"{time.perf_counter() - began:.0f} s in all; the seconds above are those of the processes together")
    for remark in remarks:
        if options.verbose or not remark.startswith("killed"):
            print(remark)
    failures = short(rows, size)
    for row, tally in rows.items():
        failures += [f"{row}: {v}" for v in tally.violations[: None if options.verbose else 4]]
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
