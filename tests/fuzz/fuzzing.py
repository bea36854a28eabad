"""A mutational fuzzer that keeps what reaches lines not reached before, and the limits that a run must keep.

Lines are looked at in one run of some, as that makes it several times as long.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, TypeAlias

from mutations import mutate
from targets import TOKENS, Target

from coral.errors import CoralError

MEMORY = 64 << 20  # bytes beside the input, which is small
SECONDS = 2.0  # of processor time
_KEPT = 2000
_WATCHED = 10  # one run in so many

TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]


class TooLong(BaseException):
    """A run took more time than it may."""


@dataclass(slots=True)
class Found:
    """What came of fuzzing a parser."""

    target: str
    runs: int = 0
    seed: int = 0
    lines: int = 0  # of coral that were reached
    accepted: int = 0  # inputs that were taken for sound
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.runs:,} runs, {len(self.problems)} found, {self.accepted:,} taken for sound, "
            f"{self.lines} lines reached, {self.seconds:.1f} s, seed {self.seed}"
        )


def fuzz(target: Target, runs: int, seed: int, *, stop: int = 5) -> Found:
    """Give a parser so many inputs; stop after so many problems."""
    found, rng = Found(target.name, seed=seed), random.Random(f"{seed} {target.name}")
    kept, seen, began = list(target.examples), _Lines(), time.perf_counter()
    for example in target.examples:
        target.parse(example)  # it is sound, and loads whatever is loaded on first use
    with _limits():
        for number in range(runs):
            data = rng.choice(kept) if number >= len(kept) else kept[number]
            if number >= len(target.examples):
                data = mutate(data, kept, TOKENS, rng)
                if rng.random() < 0.9:
                    data = target.sealed(data)
            found.runs += 1
            with seen.watched(number % _WATCHED == 0 or number < len(target.examples)):
                problem = _run(target, data, found)
            if problem:
                found.problems.append(f"{target.name}, run {number}, seed {seed}: {problem}; input {data[:300]!r}")
                if len(found.problems) >= stop:
                    break
            if seen.new and len(kept) < _KEPT:
                kept.append(data)
    found.lines, found.seconds = seen.count, time.perf_counter() - began
    return found


def _run(target: Target, data: bytes, found: Found) -> str:
    """What is wrong with how a parser takes an input; "" if nothing is."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        target.parse(data)
        found.accepted += 1
    except CoralError as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        said = str(error)
        return "" if len(said) < 10_000 and said.replace("\n", "").isprintable() else f"it says {said[:200]!r}"
    except TooLong:
        return f"it takes more than {SECONDS} seconds of the processor"
    except MemoryError:
        return f"it takes more than {MEMORY >> 20} MiB"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({place.filename.rpartition('/')[2]}:{place.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return ""


@contextmanager
def _limits() -> Iterator[None]:
    """Within the block memory is bounded, and the timer of a run ends it."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + (16 << 20), hard))  # and what the fuzzer itself keeps
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


class _Lines:
    """The lines of coral that were reached, one after the other; `new` where the last run had such."""

    def __init__(self) -> None:
        self.new = False
        self.pairs: set[tuple[CodeType, int, int]] = set()
        self._last = 0

    @property
    def count(self) -> int:
        return len({(code, line) for code, _, line in self.pairs})

    @contextmanager
    def watched(self, watch: bool) -> Iterator[None]:
        """Note them within the block, if asked to."""
        self.new = False
        if not watch:
            yield
            return
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, _: object) -> TraceFunction | None:
        return self._line if "/coral/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, _: object) -> TraceFunction:
        if event == "line":
            step = (frame.f_code, self._last, frame.f_lineno)
            self._last = frame.f_lineno
            if step not in self.pairs:
                self.pairs.add(step)
                self.new = True
        return self._line
