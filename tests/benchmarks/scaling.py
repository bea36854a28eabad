"""What ten thousand commits of a hundred small tensors cost: opening, the log, a commit of nothing new, fsck."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count

import numpy as np
from harness import Bench, Figure, Timing

__all__ = ["run"]

TENSORS = 100
CHANGED = 3
ELEMENTS = 64
DURABLE = 50
"""How many of the newest commits are durable; in fewer, every tensor has changed."""


def run(bench: Bench) -> None:
    """Build the repository to half its commits and to all of them, and measure each in processes of their own."""
    from coral import Repository

    path = bench.folder("scale") / "repo"
    shutil.rmtree(path, ignore_errors=True)
    report, whole, half = bench.report, bench.commits, bench.commits // 2
    commits = _commits()
    built = 0
    checks: dict[int, dict] = {}
    for goal in (half, whole):
        start = time.perf_counter()
        # The newest commits, which hold every tensor that the next one reuses, are durable as in a run that saves so.
        for durability, until in (("fast", goal - DURABLE), ("full", goal)):
            with Repository(path, init=True, durability=durability) as repo:
                for number in range(built, until):
                    repo.commit(next(commits), f"commit {number}")
                built = until
        took = time.perf_counter() - start
        report.note("scale", f"built to {goal} commits in {took:.1f} s, {took / half * 1e3:.2f} ms each")
        checks[goal] = min((_child("fsck", path) for _ in range(3)), key=lambda found: found["seconds"])
        report.note("scale", f"fsck: {checks[goal]['found']}; {checks[goal]['cpu']:.1f} s of processor time")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    files = sum(1 for _ in path.rglob("*"))
    report.note("scale", f"on disk: {size / 1e6:.1f} MB in {files} files and folders")

    opened = [_child("log", path) for _ in range(max(3, bench.rounds))]
    overhead = _child("commit", path, 30)
    names = (f"open + log(limit=20) of {whole} commits", f"commit of {TENSORS} unchanged tensors, durable")
    report.time(
        "scale",
        {
            "import coral": Timing(tuple(each["import"] for each in opened)),
            names[0]: Timing(tuple(each["seconds"] for each in opened)),
            names[1]: Timing(tuple(overhead["seconds"])),
        },
    )
    times = report.timings["scale"]
    took, before = checks[whole]["seconds"], checks[half]["seconds"]
    figures = [
        Figure("scale", names[0], times[names[0]].median * 1e3, 50, "ms"),
        Figure("scale", names[1], times[names[1]].median * 1e3, 20, "ms", f"(the first {overhead['first'] * 1e3:.1f})"),
        Figure("scale", f"fsck of {whole} commits", took, 60, "s"),
        Figure("scale", f"fsck of {whole} / fsck of {half} commits", took / before, 2.2),
    ]
    for figure in figures:
        report.figure(figure)
    shutil.rmtree(path)


def _commits() -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    weights = {f"layer.{k}.weight": random.standard_normal(ELEMENTS, dtype=np.float32) for k in range(TENSORS)}
    for first in count(0, CHANGED):
        for k in range(first, first + CHANGED):
            weights[f"layer.{k % TENSORS}.weight"] = random.standard_normal(ELEMENTS, dtype=np.float32)
        yield weights


def _child(what: str, *args: object) -> dict:
    command = [sys.executable, __file__, what, *map(str, args)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _log(path: str) -> dict[str, object]:
    start = time.perf_counter()
    from coral import Repository

    imported = time.perf_counter()
    log = Repository(path).log(limit=20)
    seconds = time.perf_counter() - imported
    assert len(log) == 20
    return {"import": imported - start, "seconds": seconds}


def _commit(path: str, times: str) -> dict[str, object]:
    from coral import Repository

    repo = Repository(path, durability="full")
    weights = {name: weight.data for name, weight in repo.load().items()}
    assert len(weights) == TENSORS
    seconds = []
    for number in range(int(times) + 1):
        start = time.perf_counter()
        repo.commit(weights, f"nothing new {number}")
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": seconds[1:]}


def _fsck(path: str) -> dict[str, object]:
    from coral import Repository

    start, cpu = time.perf_counter(), time.process_time()
    found = Repository(path).fsck()
    assert found.ok, found
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "found": str(found)[:300]}


if __name__ == "__main__":
    print(json.dumps({"log": _log, "commit": _commit, "fsck": _fsck}[sys.argv[1]](*sys.argv[2:])))
