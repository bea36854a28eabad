"""How far a commit, a load that streams and a repack raise resident memory, each in a process of its own.

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

__all__ = ["commit_peaks", "load_peak", "packed_peaks", "run", "stream_peaks"]

ASKED = 64.0
COMMITS = (("everything changed", 1, 2), ("84 % unchanged", 2, 3), ("unchanged", 2, 2))


def run(bench: Bench) -> None:
    """Measure all of them, unless `save`, `load` and `repack` have done so in this run."""
    before = len(bench.report.figures)
    commit_peaks(bench)
    load_peak(bench)
    packed_peaks(bench)
    if len(bench.report.figures) == before:
        print("  see above")


def commit_peaks(bench: Bench) -> None:
    """Measure a synchronous commit onto the checkpoint before, at each degree of change."""
    if not bench.first("commit_peaks") or not _possible(bench):
        return
    for name, before, after in COMMITS:
        repo, folder = _repository(bench, [before])
        found = _child("commit", repo, folder, after)
        _figure(bench, f"peak memory of a commit beyond its tensors, {name}", found, found["total"])
        shutil.rmtree(repo)


def load_peak(bench: Bench) -> None:
    """Measure a load that takes one tensor at a time and drops it before the next."""
    if not bench.first("load_peak") or not _possible(bench):
        return
    repo, _ = _repository(bench, [2])
    _load_figure(bench, "peak memory of a streamed load beyond its largest tensor", _child("load", repo, "HEAD"))
    shutil.rmtree(repo)


def packed_peaks(bench: Bench) -> None:
    """Measure a repack, and such a load of a commit that it stored as differences from another."""
    if not bench.first("packed_peaks") or not _possible(bench):
        return
    import histories

    repo, _ = _repository(bench, [1, 2, 3])
    for entropy in ("zstd", "deflate"):
        copy = histories.linked(repo, repo.parent / "packed")
        found = _child("repack", copy, entropy)
        beyond = found["total"] + found["children"]  # all that the processes have that it starts
        _figure(bench, f"peak memory of a repack, {entropy}", found, beyond, None)
        found = _child("load", copy, "HEAD~1")
        assert found["depth"] == 1, f"what was loaded lies {found['depth']} differences deep"
        _load_figure(bench, f"streamed load of differences beyond its largest tensor, {entropy}", found)
        shutil.rmtree(copy)
    shutil.rmtree(repo)


def stream_peaks(bench: Bench, repo: Path, ref: str, stored: str) -> None:
    """Measure streaming a commit into a model, with and without memory of its own, beyond that and a tensor."""
    if not _possible(bench):
        return
    for device, what in (("meta", "on the meta device"), ("cpu", "that has memory")):
        found = _child("stream", repo, ref, device)
        beyond = found["total"] - found["largest"] - found["model"]
        _figure(bench, f"stream into a model {what}, {stored}, beyond it and a tensor", found, beyond)


def _possible(bench: Bench) -> bool:
    if Path("/proc/self/status").exists():
        return True
    bench.report.note("memory", "not measured: it needs Linux's /proc")
    return False


def _repository(bench: Bench, numbers: list[int]) -> tuple[Path, Path]:
    """Return a new repository of some of the checkpoints, and the folder of their series."""
    import histories
    import series
    from checkpoints import PLAN

    folder = series.make(bench.folder("series"), PLAN)
    path = bench.folder("memory") / "repo"
    histories.build(path, (series.read(folder, k) for k in numbers))
    return path, folder


def _child(what: str, *args: object) -> dict[str, int]:
    command = [sys.executable, __file__, what, *map(str, args)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _figure(bench: Bench, name: str, found: dict[str, int], beyond: int, asked: float | None = ASKED) -> None:
    others = f", {found['children'] / MIB:.0f} in processes it started" if found["children"] else ""
    note = f"({found['total'] / MIB:.0f} in all, {found['anonymous'] / MIB:.0f} anonymous{others}; {found['how']})"
    bench.report.figure(Figure("memory", name, beyond / MIB, asked, "MiB", note))


def _load_figure(bench: Bench, name: str, found: dict[str, int]) -> None:
    _figure(bench, name, found, found["total"] - found["largest"])


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


def _load(repo_path: str, ref: str) -> dict[str, object]:
    from coral import Repository

    repo = Repository(repo_path)
    depth = max(chain.depth for chain in repo.load(ref)._stored.values())
    largest = 0
    with watch_memory() as peak:
        loaded = repo.load(ref)
        for name in loaded:
            data = loaded[name].data
            np.add.reduce(data.reshape(-1).view(np.uint8)[::64], dtype=np.uint64)  # every page, if not every word
            largest = max(largest, data.nbytes)
            del data
    return {**asdict(peak), "largest": largest, "depth": depth}


def _stream(repo_path: str, ref: str, device: str) -> dict[str, object]:
    from skeleton import skeleton

    from coral.integrations.pytorch import StreamingWeightLoader

    loader = StreamingWeightLoader(repo_path, ref)
    info = loader.get_weight_info()
    model = skeleton([(name, weight["shape"]) for name, weight in info.items()], device)
    with watch_memory() as peak:
        loader.stream_into_model(model)
        for parameter in model.parameters():
            np.add.reduce(parameter.numpy().reshape(-1).view(np.uint8)[::64], dtype=np.uint64)
    grows = loader.estimate_memory() if device == "meta" else 0  # the other one was there before
    return {**asdict(peak), "largest": max(weight["nbytes"] for weight in info.values()), "model": grows}


def _repack(repo_path: str, entropy: str) -> dict[str, object]:
    from coral import DeltaConfig, Repository

    repo = Repository(repo_path)
    config = DeltaConfig(entropy=entropy)
    with watch_memory() as peak:
        done = repo.repack(config=config)
    assert done.tensors, "there was nothing to repack"
    return asdict(peak)


CHILDREN = {"commit": _commit, "load": _load, "stream": _stream, "repack": _repack}

if __name__ == "__main__":
    print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])))
