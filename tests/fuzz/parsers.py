"""Fuzz the parsers: `python tests/fuzz/parsers.py [--runs N] [--seed N] [pack index ...]`.

Prints what was tried and found; exits with 1 where anything was. "0 found in N" is all that it says.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

if (here := str(Path(__file__).parent)) not in sys.path:
    sys.path.insert(0, here)

from fuzzing import Found, fuzz
from targets import targets

NAMES = ("pack", "index", "commit", "tree", "state", "note", "ref", "block", "safetensors")


def run(runs: int, seed: int, only: Iterable[str] = ()) -> Iterator[Found]:
    """Give each parser that is installed, or those named, so many inputs."""
    names = set(only)
    for target in targets():
        if not names or target.name in names:
            yield fuzz(target, runs, seed)


def _one(job: tuple[str, int, int]) -> list[Found]:
    name, runs, seed = job
    return list(run(runs, seed, [name]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", choices=[*NAMES, []], help="which parsers; all if none is named")
    parser.add_argument("--runs", type=int, default=50_000, help="inputs for each (default: 50,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jobs = [(name, options.runs, options.seed) for name in options.only or NAMES]
    failed = False
    os.environ.setdefault("PYTHONHASHSEED", str(options.seed))  # so that the examples are the same again
    with multiprocessing.get_context("spawn").Pool(min(8, os.cpu_count() or 1)) as pool:
        for (name, *_), some in zip(jobs, pool.imap(_one, jobs), strict=True):
            if not some:
                print(f"{name}: NOT RUN: its package is not installed")
            for found in some:
                print(found, *found.problems, sep="\n", flush=True)
                failed = failed or bool(found.problems) or found.runs < options.runs
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
