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
from scenarios import FAST, SCENARIOS, SINGLE, TIGHT


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
    fast_cap: int
    redone_cap: int  # states of a power loss after each death and retry
    mutant_cap: int
    afterwards: int  # ... after each I/O error and retry
    thin: int
    limits: int  # values of RLIMIT_FSIZE
    pages: int
    shares: int
    floors: dict[str, int]


T1, T1_FAST, T1_TIGHT = "T1 power loss", "T1 power loss, not synced", "T1 power loss, folding"
T1_REDONE = "T1 death, retry, power loss"
T2, T3 = "T2 mutants killed", "T3 process death"
T5, T5_LIMIT, T5_DISK = "T5 I/O errors", "T5 RLIMIT_FSIZE", "T5 full tmpfs"

BOUNDED = Size(
    8, 6, 1, 40, 1, 6, 6, 6, 1, {T1: 1500, T1_FAST: 200, T1_TIGHT: 200, T1_REDONE: 100, T2: 12, T3: 300, T5: 400, T5_LIMIT: 10}
)
FULL = Size(
    400, 200, 8, 100, 4, 1, 40, 24, 4,
    {T1: 100_000, T1_FAST: 2_000, T1_TIGHT: 2_000, T1_REDONE: 1_500, T2: 12, T3: 300, T5: 3_000, T5_LIMIT: 80},
)  # fmt: skip
NIGHTLY = Size(
    4000, 2000, 60, 400, 30, 1, 200, 60, 16,
    {T1: 1_000_000, T1_FAST: 20_000, T1_TIGHT: 20_000, T1_REDONE: 10_000, T2: 12, T3: 300, T5: 3_000, T5_LIMIT: 400},
)  # fmt: skip


def tasks(size: Size, seed: int) -> list[Task]:
    """Everything there is to do, the longest first."""
    todo = []
    for scenario in SCENARIOS:
        for share in range(size.shares):
            options = {"cap": size.cap, "seed": seed, "share": (share, size.shares)}
            todo.append(Task(T1, power_loss.run, (scenario,), options))
    todo += [Task(T1_FAST, power_loss.run, (s,), {"cap": size.fast_cap, "seed": seed}) for s in FAST]
    todo += [Task(T1_TIGHT, power_loss.run, (s,), {"cap": size.fast_cap, "seed": seed}) for s in TIGHT]
    for scenario in SINGLE:
        big = "big" in scenario.name
        todo.append(
            Task(T1_REDONE, process_death.run_then_power_loss, (scenario,), {"cap": size.redone_cap, "seed": seed})
        )
        todo.append(Task(T3, process_death.run, (scenario,), {}))
        thin = 1 if scenario.name == "second commit" else size.thin * (4 if big else 1)
        options = {"thin": thin, "afterwards": size.afterwards, "seed": seed}
        todo.append(Task(T5, io_errors.run, (scenario,), options))
        if not big:
            sizes = tuple(sorted({int(4000 * (i / size.limits) ** 2) for i in range(size.limits)}))
            todo.append(Task(T5_LIMIT, io_errors.run_limit, (scenario,), {"sizes": sizes}))
    todo += [Task(T2, mutants.run, (m,), {"cap": size.mutant_cap, "seed": seed}) for m in mutants.MUTANTS]
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
        failures += [f"{row}: {v}" for v in tally.violations[: None if options.verbose else 10]]
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
