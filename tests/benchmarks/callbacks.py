"""What saving every 10 steps costs a training in Lightning and in transformers, beside what each of them has itself.

All of them save weights, optimizer and loop. ModelCheckpoint and the Trainer write in the training thread and leave
the disk to the system; coral copies there, and writes beside the training, with an fsync: its last save, after which
there is no training to write beside, is waited for, and counts. Training uses both processors all the while.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import histories
import torch
from frameworks import EVERY, FRAMEWORKS, Run, Way, saves
from harness import Bench, Contender, Figure, Timing, in_turn

from coral import Repository

__all__ = ["run"]

BENCH = "callbacks"
STEPS = 80
ROUNDS = 3
"""The most rounds: each trains ten times."""
NONE: Way = "no saving"
CORAL: Way = "coral"
REPACKED: Way = "coral, repack beside it"
OWN: Way = "its own"
DURABLE: Way = "its own, fsynced"
WAYS = (NONE, CORAL, REPACKED, OWN, DURABLE)

Trains = Callable[[Way, int, Path], Run]


def run(bench: Bench) -> None:
    """Train with each framework and each way of saving, in turn, and judge what the saves cost."""
    torch.set_num_threads(2)
    for name, train in FRAMEWORKS.items():
        files = bench.folder(BENCH)
        measure(bench, name, train, files)
        measure_disk(bench, name, files)
        shutil.rmtree(files)


def measure(bench: Bench, name: str, train: Trains, files: Path) -> None:
    """Time whole trainings, and what of them is spent inside the calls that save; leave the last files of each way."""

    def contender(way: Way) -> Contender:
        def once() -> dict[str, float]:
            folder = files / way
            shutil.rmtree(folder, ignore_errors=True)
            done = train(way, STEPS, folder)
            if way == NONE:
                return {f"{name}, {way}": done.seconds}
            found = saves(folder)
            assert found == STEPS // EVERY, f"{found} saves by {way} in {STEPS} steps of {name}"
            return {
                f"{name}, {way}": done.seconds,
                f"{name}, {way}: inside": done.inside.seconds,
                f"{name}, {way}: the wait at the end, inside": done.inside.end,
            }

        return once

    times = in_turn([contender(way) for way in WAYS], min(ROUNDS, bench.rounds))
    bench.report.time(BENCH, {what: timing for what, timing in times.items() if timing.median})
    more = {way: _more(times[f"{name}, {way}"], times[f"{name}, {NONE}"]) for way in WAYS if way != NONE}
    _judge(bench, name, more)


def _more(timing: Timing, without: Timing) -> float:
    """Return the median, over the rounds, of what a training took longer than that without saving."""
    return statistics.median(a - b for a, b in zip(timing.seconds, without.seconds, strict=True))


def _judge(bench: Bench, name: str, more: dict[Way, float]) -> None:
    report, count = bench.report, STEPS // EVERY
    times = report.timings[BENCH]
    rows = {}
    for way, overhead in more.items():
        inside, end = times[f"{name}, {way}: inside"], times.get(f"{name}, {way}: the wait at the end, inside")
        wait = end.median if end else 0.0
        parts = ((inside.median - wait) / count, wait, inside.median / count, overhead / count)
        rows[f"{name}, {way}"] = [each * 1e3 for each in parts]
    columns = ("a save's call", "wait at end", "inside / save", "longer / save")
    report.table(BENCH, f"ms, {count} saves in {STEPS} steps", columns, rows)
    inside = f"{name}, {CORAL}: inside", f"{name}, {OWN}: inside"
    report.ratio(BENCH, *inside, 0.3, f"{name}: time inside coral's callback / inside its own saving")
    call, _, _, _ = rows[f"{name}, {CORAL}"]
    what = f"{name}: the same without the wait at coral's end"
    report.figure(Figure(BENCH, what, call / rows[f"{name}, {OWN}"][0]))
    alone = times[f"{name}, {NONE}"].seconds
    noise = f"training alone: {min(alone):.1f} to {max(alone):.1f} s"
    for ours, theirs, what, asked in (
        (CORAL, OWN, f"what coral's saves add to the training / {OWN}", 1.0),
        (CORAL, DURABLE, f"what coral's saves add to the training / {DURABLE}", None),
        (REPACKED, CORAL, "what they add with a repack beside it / without", None),
    ):
        a, b = more[ours], more[theirs]
        # Where a training that saves was the faster one, all that was measured is the noise: that is no figure.
        value = a / b if min(a, b) > 0 else math.nan
        note = f"({a * 1e3:.0f} / {b * 1e3:.0f} ms; {noise})"
        report.figure(Figure(BENCH, f"{name}: {what}", value, asked, note=note))


def measure_disk(bench: Bench, name: str, files: Path) -> None:
    """Compare what the last runs have left on the disk, once the repository is repacked."""
    own = histories.disk(files / OWN)
    before = histories.disk(files / CORAL)
    Repository(files / CORAL).repack()
    after = histories.disk(files / CORAL)
    note = f"({after / 1e6:.0f} of {own / 1e6:.0f} MB; before the repack {before / own:.2f})"
    what = f"{name}: disk of {STEPS // EVERY} saves, after repack / its own"
    bench.report.figure(Figure(BENCH, what, after / own, 0.5, note=note))
