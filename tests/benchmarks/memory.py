"""How far a commit and a streamed load raise resident memory beyond the tensors, each in a process of its own.

What is counted: VmHWM, reset by /proc/self/clear_refs, less VmRSS at the start. That is every resident page of the
process: anonymous, shared, and mapped pages of files, whether or not the kernel could take them back at once. coral is
imported, the repository is open and the checkpoint is in anonymous memory before the count begins.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from harness import Bench, Figure
from machine import MIB, watch_memory

__all__ = ["commit_peaks", "load_peak", "run"]

ASKED = 64.0
COMMITS = (("everything changed", 1, 2), ("84 % unchanged", 2, 3), ("unchanged", 2, 2))


def run(bench: Bench) -> None:
    """Measure both, unless `save` and `load` have done so in this run."""
    before = len(bench.report.figures)
    commit_peaks(bench)
    load_peak(bench)
    if len(bench.report.figures) == before:
        print("  see above")


def commit_peaks(bench: Bench) -> None:
    """Measure a synchronous commit onto the checkpoint before, at each degree of change."""
    if not bench.first("commit_peaks") or not _possible(bench):
        return
    for name, before, after in COMMITS:
        repo, folder = _repository(bench, before)
        found = _child("commit", repo, folder, after)
        _figure(bench, f"peak memory of a commit beyond its tensors, {name}", found, found["total"])
        shutil.rmtree(repo)


def load_peak(bench: Bench) -> None:
    """Measure a load that takes one tensor at a time and drops it before the next."""
    if not bench.first("load_peak") or not _possible(bench):
        return
    repo, folder = _repository(bench, 2)
    found = _child("load", repo, folder, 2)
    beyond = found["total"] - found["largest"]
    _figure(bench, "peak memory of a streamed load beyond its largest tensor", found, beyond)
    shutil.rmtree(repo)


def _possible(bench: Bench) -> bool:
    if Path("/proc/self/status").exists():
        return True
    bench.report.note("memory", "not measured: it needs Linux's /proc")
    return False


def _repository(bench: Bench, k: int) -> tuple[Path, Path]:
    from checkpoints import arrays, checkpoints

    from coral import Repository

    folder, found = checkpoints(bench)
    path = bench.folder("memory") / "repo"
    shutil.rmtree(path, ignore_errors=True)
    Repository(path, init=True).commit(arrays(found[k - 1]), "before")
    return path, folder


def _child(what: str, *args: object) -> dict[str, int]:
    command = [sys.executable, __file__, what, *map(str, args)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _figure(bench: Bench, name: str, found: dict[str, int], beyond: int) -> None:
    note = f"({found['total'] / MIB:.0f} in all, {found['anonymous'] / MIB:.0f} anonymous; {found['how']})"
    bench.report.figure(Figure("memory", name, beyond / MIB, ASKED, "MiB", note))


def _commit(repo_path: str, folder: str, k: str) -> dict[str, object]:
    from safetensors import safe_open

    from coral import Repository

    weights = {}
    for kind in ("model", "optim"):
        with safe_open(Path(folder) / f"{kind}_{k}.safetensors", framework="numpy") as file:
            weights |= {name: np.array(file.get_tensor(name), copy=True) for name in file.keys()}  # noqa: SIM118
    repo = Repository(repo_path, durability="full")
    with watch_memory() as peak:
        repo.commit(weights, "measured")
    return asdict(peak)


def _load(repo_path: str, folder: str, k: str) -> dict[str, object]:
    from coral import Repository

    repo = Repository(repo_path)
    largest = 0
    with watch_memory() as peak:
        loaded = repo.load()
        for name in loaded:
            data = loaded[name].data
            np.add.reduce(data.reshape(-1).view(np.uint8)[::64], dtype=np.uint64)  # every page, if not every word
            largest = max(largest, data.nbytes)
            del data
    return {**asdict(peak), "largest": largest}


if __name__ == "__main__":
    print(json.dumps({"commit": _commit, "load": _load}[sys.argv[1]](*sys.argv[2:])))
