"""Fuzz the parsers: `python tests/fuzz/parsers.py [--runs N] [--seed N] [pack index ...]`.

Prints what was tried and found; exits with 1 where anything was. "0 found in N" is all that it says.
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", choices=[*NAMES, []], help="which parsers; all if none is named")
    parser.add_argument("--runs", type=int, default=50_000, help="inputs for each (default: 50,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for found in run(options.runs, options.seed, options.only):
        print(found, *found.problems, sep="\n", flush=True)
        failed = failed or bool(found.problems) or found.runs < options.runs
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
