"""What ten thousand commits of a hundred small tensors cost: opening, the log, a commit of nothing new, fsck."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import numpy as np
from harness import Bench, Figure, Timing

__all__ = ["run"]

TENSORS = 100
CHANGED = 3
ELEMENTS = 64


def run(bench: Bench) -> None:
    """Build the repository to half its commits and to all of them, and measure each in processes of their own."""
    from coral import Repository

    path = bench.folder("scale") / "repo"
    shutil.rmtree(path, ignore_errors=True)
    repo = Repository(path, init=True, durability="fast")
    report, whole, half = bench.report, bench.commits, bench.commits // 2
    random = np.random.default_rng(0)
    weights = {f"layer.{k}.weight": random.standard_normal(ELEMENTS, dtype=np.float32) for k in range(TENSORS)}
    built = 0
    fsck: dict[int, float] = {}
    for goal in (half, whole):
        start = time.perf_counter()
        for number in range(built, goal):
            for offset in range(CHANGED):
                name = f"layer.{(CHANGED * number + offset) % TENSORS}.weight"
                weights[name] = random.standard_normal(ELEMENTS, dtype=np.float32)
            repo.commit(weights, f"commit {number}")
        took = time.perf_counter() - start
        report.note("scale", f"commits {built + 1} to {goal}: {took:.1f} s, {took / (goal - built) * 1e3:.2f} ms each")
        built = goal
        fsck[goal] = min(_child("fsck", path)["seconds"] for _ in range(2))
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
    figures = [
        Figure("scale", names[0], times[names[0]].median * 1e3, 50, "ms"),
        Figure("scale", names[1], times[names[1]].median * 1e3, 20, "ms", f"(the first {overhead['first'] * 1e3:.1f})"),
        Figure("scale", f"fsck of {whole} commits", fsck[whole], 60, "s"),
        Figure("scale", f"fsck of {whole} / fsck of {half} commits", fsck[whole] / fsck[half], 2.2),
    ]
    for figure in figures:
        report.figure(figure)
    shutil.rmtree(path)


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

    start = time.perf_counter()
    found = Repository(path).fsck()
    return {"seconds": time.perf_counter() - start, "found": repr(found)[:300]}


if __name__ == "__main__":
    print(json.dumps({"log": _log, "commit": _commit, "fsck": _fsck}[sys.argv[1]](*sys.argv[2:])))
