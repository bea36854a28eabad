"""What every benchmark shares: contenders timed in turn, and figures beside what is asked of them."""

from __future__ import annotations

import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Bench", "Contender", "Figure", "Report", "Timing", "Watch", "in_turn", "timed"]

Contender = Callable[[], Mapping[str, float]]
"""Prepares itself, times one or more operations, cleans up, and returns their seconds by name."""


@dataclass(slots=True)
class Watch:
    """The seconds of one `timed` block."""

    seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Watch]:
    """Time a block that starts with nothing left to write back or to collect from what ran before it."""
    gc.collect()
    os.sync()
    watch = Watch()
    start = time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds that one operation took, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def in_turn(contenders: list[Contender], rounds: int, seed: int = 0) -> dict[str, Timing]:
    """Run every contender once a round, each round in an order of its own, after one round that does not count."""
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {}
    for contender in contenders:
        for name in contender():
            seconds[name] = []
    for number in range(rounds):
        if sys.stderr.isatty():
            print(f"\r  round {number + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
        for contender in order.sample(contenders, len(contenders)):
            for name, value in contender().items():
                seconds[name].append(value)
    if sys.stderr.isatty():
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure and the most, or the least, that is asked of it (neither: printed for comparison only)."""

    bench: str
    name: str
    value: float
    asked: float | None = None
    unit: str = "x"
    note: str = ""
    least: float | None = None

    @property
    def judged(self) -> bool:
        return self.asked is not None or self.least is not None

    @property
    def ok(self) -> bool:
        few_enough = self.asked is None or self.value <= self.asked
        return few_enough and (self.least is None or self.value >= self.least)

    def line(self) -> str:
        value = f"{self.value:9.{3 if abs(self.value) < 10 else 2}f} {self.unit:4}"
        bounds = (("<=", self.asked), (">=", self.least))
        asked = " and ".join(f"asked {sign} {bound:g}" for sign, bound in bounds if bound is not None)
        verdict = ("ok" if self.ok else "MISS") if self.judged else ""
        return f"  {self.name:66} {value} {asked:13} {verdict:4} {self.note}".rstrip()


@dataclass(slots=True)
class Report:
    """What has been measured so far; prints as it grows."""

    figures: list[Figure] = field(default_factory=list)
    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, bench: str, text: str) -> None:
        self.notes.setdefault(bench, []).append(text)
        print(f"  {text}", flush=True)

    def time(self, bench: str, timings: Mapping[str, Timing]) -> None:
        """Keep and print a table of timings."""
        print(f"  {'ms':66} {'median':>9} {'best':>9}")
        for name, timing in timings.items():
            print(f"  {name:66} {timing.median * 1e3:9.1f} {timing.best * 1e3:9.1f}", flush=True)
        self.timings.setdefault(bench, {}).update(timings)

    def table(self, bench: str, what: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
        """Keep and print rows of numbers under the names of their columns."""
        self.note(bench, f"{what:66} " + " ".join(f"{column:>14}" for column in columns))
        for name, numbers in rows.items():
            self.note(bench, f"{name:66} " + " ".join(f"{number:14.4f}" for number in numbers))

    def figure(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure.line(), flush=True)

    def ratio(self, bench: str, ours: str, theirs: str, asked: float | None = None, name: str | None = None) -> None:
        """Add median(ours) / median(theirs), with the ratio of the best beside it."""
        times = self.timings[bench]
        a, b = times[ours], times[theirs]
        note = f"(best/best {a.best / b.best:.2f})"
        self.figure(Figure(bench, name or f"{ours} / {theirs}", a.median / b.median, asked, note=note))

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if not figure.ok]


@dataclass(slots=True)
class Bench:
    """What a benchmark is given: a folder to work in, how much to do, and the report to add to."""

    work: Path
    rounds: int
    commits: int
    checkpoints: int
    report: Report
    megabytes: int = 1000
    _begun: set[str] = field(default_factory=set)

    def first(self, name: str) -> bool:
        """Say whether `name` is asked for the first time: a part that two benchmarks share runs once."""
        new = name not in self._begun
        self._begun.add(name)
        return new

    def folder(self, name: str) -> Path:
        """Return a folder of this name in the work folder, made if absent."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path
