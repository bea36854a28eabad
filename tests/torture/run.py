"""Run the fault tests: `python tests/torture/run.py [--full | --nightly] [--seed N] [--jobs N] [T1 T2 T3 T5]`.

Prints what was tried and what was found. Exits with 1 on a violation, a mutant that survived, or fewer cases than the
floor. "0 found in N" is all that it says: not that nothing can be lost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import io_errors
import mutants
import power_loss
import process_death
from power_loss import Tally
from scenarios import FAST, SCENARIOS, SINGLE, TIGHT, UPKEEP, sagas


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
    floors: dict[str, int]


T1, T1_FAST, T1_TIGHT = "T1 power loss", "T1 power loss, not synced", "T1 power loss, folding"
T1_REDONE = "T1 death, retry, power loss"
T2, T3 = "T2 mutants killed", "T3 process death"
T5, T5_LIMIT, T5_DISK = "T5 I/O errors", "T5 RLIMIT_FSIZE", "T5 full tmpfs"

BOUNDED = Size(
    cap=6, sagas=1, fast_cap=3, redone_cap=1, mutant_cap=20, afterwards=1, thin=12, limits=5, pages=5, every=False,
    floors={T1: 1_500, T1_FAST: 300, T1_TIGHT: 300, T1_REDONE: 150, T2: 12, T3: 150, T5: 300, T5_LIMIT: 25},
)  # fmt: skip
FULL = Size(
    cap=40, sagas=50, fast_cap=30, redone_cap=6, mutant_cap=60, afterwards=3, thin=1, limits=40, pages=24, every=True,
    floors={T1: 100_000, T1_FAST: 3_000, T1_TIGHT: 3_000, T1_REDONE: 2_000, T2: 12, T3: 500, T5: 2_500, T5_LIMIT: 80},
)  # fmt: skip
NIGHTLY = Size(
    cap=100, sagas=300, fast_cap=800, redone_cap=60, mutant_cap=200, afterwards=30, thin=1, limits=300, pages=60,
    every=True,
    floors={
        T1: 1_000_000, T1_FAST: 30_000, T1_TIGHT: 30_000, T1_REDONE: 15_000, T2: 12, T3: 500, T5: 2_500, T5_LIMIT: 800
    },
)  # fmt: skip


def tasks(size: Size, seed: int) -> list[Task]:
    """Everything there is to do, the longest first."""
    todo: list[Task] = []
    for scenario in [*SCENARIOS, *UPKEEP, *sagas(seed, size.sagas)]:
        cap = size.cap // 3 if "MiB" in scenario.name else size.cap
        todo.append(Task(T1, power_loss.run, (scenario,), {"cap": cap, "seed": seed}))
    for row, scenarios in ((T1_FAST, FAST), (T1_TIGHT, TIGHT)):
        todo += [Task(row, power_loss.run, (s,), {"cap": size.fast_cap, "seed": seed}) for s in scenarios]
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
    todo += [Task(T2, mutants.run, (m.name,), {"cap": size.mutant_cap, "seed": seed}) for m in mutants.MUTANTS]
    return [*todo, Task(T5_DISK, io_errors.run_full_disk, (), {"pages": size.pages})]


def do(task: Task) -> tuple[Task, Any]:
    """Do a task, in whatever process."""
    return task, task.work(*task.args, **task.options)


def run(size: Size, seed: int, only: Iterable[str] = (), jobs: int | None = None) -> tuple[dict[str, Tally], list[str]]:
    """(how each row went, what else there is to say)."""
    names = set(only)
    todo = [task for task in tasks(size, seed) if not names or task.row.split()[0] in names]
    rows: dict[str, Tally] = {}
    remarks = []
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


def table(rows: dict[str, Tally], seed: int) -> str:
    """What was done, a line for each row."""
    lines = [f"{'fault':30} {'cases':>9} {'found':>6} {'seconds':>8}  seed"]
    for row, tally in sorted(rows.items()):
        lines.append(f"{row:30} {tally.cases:9,} {len(tally.violations):6} {tally.seconds:8.1f}  {seed}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "only", nargs="*", choices=["T1", "T2", "T3", "T5", []], help="which of them; all if none is named"
    )
    parser.add_argument("--full", action="store_true", help="what CI claims: 100,000 states of a power loss")
    parser.add_argument("--nightly", action="store_true", help="ten times as much")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=None, help="processes; one a core if not given")
    parser.add_argument("--verbose", action="store_true", help="each mutant by name, every violation")
    options = parser.parse_args()
    size = NIGHTLY if options.nightly else FULL if options.full else BOUNDED
    began = time.perf_counter()
    rows, remarks = run(size, options.seed, options.only, options.jobs)
    print(table(rows, options.seed))
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
