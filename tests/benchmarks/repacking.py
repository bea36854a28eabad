"""How fast a repack is, how much it slows the training beside it, and what it makes of loads and of memory.

The throughput is that of a whole `Repository.repack`: choosing, encoding, writing, syncing, decoding all of it again
for the comparison with each SHA-256, and freeing. It is counted in the bytes of the tensors that become differences.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import cases
import histories
import memory
import packed
import series
import torch
from background import Repacking
from harness import Bench, Contender, Figure, in_turn, timed

from coral import DeltaConfig, Repository

__all__ = ["run"]

BENCH = "repack"
COUNT = 10
"""Checkpoints in the repository: two keyframes, seven differences, and the newest, which stays whole."""
ROUNDS = 3
"""The most rounds of what takes seconds."""
STEPS = 30
ALONE = f"{STEPS} steps of training, alone"
BESIDE = f"{STEPS} steps of training, a repack beside it"
REPACKS: dict[str, tuple[DeltaConfig, bool, float]] = {
    "zstd": (DeltaConfig(entropy="zstd"), False, 0.5),
    "deflate": (DeltaConfig(entropy="deflate"), False, 0.3),
    "aggressive": (DeltaConfig(entropy="zstd"), True, 0.1),
}
"""By name: how it is done, whether aggressively, and the GB/s that are asked of it."""


def run(bench: Bench) -> None:
    """Time repacks, a training loop beside one, and loads of what they made; then measure their memory."""
    files = bench.folder("repack")
    case = cases.FULL
    folder = case.folder(bench)
    histories.build(files / "whole", (case.read(folder, k) for k in range(1, COUNT + 1)))
    measure_throughput(bench, files)
    measure_slowdown(bench, files)
    shutil.rmtree(files)
    packed.run(bench)
    memory.packed_peaks(bench)


def measure_throughput(bench: Bench, files: Path) -> None:
    """Time each kind of repack on copies of one repository, in turn."""
    report = bench.report
    encoded: dict[str, int] = {}
    seen: dict[str, int] = {}

    def contender(name: str) -> Contender:
        config, aggressive, _ = REPACKS[name]

        def repack() -> dict[str, float]:
            path = files / "copy"
            shutil.copytree(files / "whole", path)  # no links: freeing what has no other name is part of the work
            repo = Repository(path)
            with timed() as watch:
                done = repo.repack(aggressive, config=config, progress=lambda _, total: seen.update({name: total}))
            encoded[name] = done.raw_bytes
            assert done.tensors, "there was nothing to repack"
            assert done.freed, "nothing was freed"
            shutil.rmtree(path)
            return {f"repack, {name}": watch.seconds}

        return repack

    times = in_turn([contender(name) for name in REPACKS], min(ROUNDS, bench.rounds))
    report.time(BENCH, times)
    for name, (_, _, least) in REPACKS.items():
        seconds = times[f"repack, {name}"].median
        beside = f"({seen[name] / seconds / 1e9:.2f} by all {seen[name] / 1e6:.0f} MB that it looked at)"
        speed = encoded[name] / seconds / 1e9
        report.figure(Figure(BENCH, f"repack, {name}, with its verification", speed, None, "GB/s", beside, least))


def measure_slowdown(bench: Bench, files: Path) -> None:
    """Time stretches of a training loop, in turn with and without a repack that has work enough for all of them."""
    torch.set_num_threads(2)
    tuning = series.FineTuning(series.Plan())
    repacking = Repacking(files / "whole", bench.folder("repack/background"))

    def train() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            tuning.step()
        return time.perf_counter() - start

    def alone() -> dict[str, float]:
        return {ALONE: _settled(train)}

    def beside() -> dict[str, float]:
        with repacking:
            return {BESIDE: train()}

    times = in_turn([alone, beside], bench.rounds)
    bench.report.time(BENCH, times)
    share = repacking.cpu_seconds / repacking.seconds
    text = f"the repacks had {share:.2f} of a processor while they ran, and {repacking.finished} came to their end"
    bench.report.note(BENCH, text)
    bench.report.ratio(BENCH, BESIDE, ALONE, 1.10, "training beside a repack / training alone")


def _settled(work: Callable[[], float]) -> float:
    with timed():
        return work()
