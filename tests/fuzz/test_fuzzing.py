"""A bounded part of the fuzzing; `python tests/fuzz/parsers.py --runs 1000000` does what the night does."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FunctionType

import numpy as np
import pytest

if sys.platform == "win32":
    pytest.skip("needs POSIX's limits", allow_module_level=True)

from fuzzing import fuzz
from mutations import LONGEST, mutate
from parsers import NAMES
from targets import TOKENS, Target, targets

from coral import errors
from coral.errors import CorruptObject

RUNS = 2000


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_raises_errors_of_corals_and_no_others(name: str) -> None:
    target = next((target for target in targets() if target.name == name), None)
    if target is None:
        pytest.skip("its package is not installed")
    found = fuzz(target, RUNS, seed=0)
    print(found)
    assert found.problems == []
    assert found.runs == RUNS
    assert found.lines > 10
    assert found.accepted >= len(target.examples)


def parser(fault: Callable[[bytes], object]) -> Target:
    """A parser of text that begins with {, with a fault behind a number that has to be 65."""

    def parse(data: bytes) -> None:
        if not data.startswith(b"{"):
            raise CorruptObject("it does not begin as it should")
        if b'"n":65' in data:
            fault(data)

    return Target("planted", (b'{"n":5,"m":[1,2]}',), parse)


def endless(data: bytes) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda data: {}["x"], "KeyError"),
        (lambda data: int("x"), "ValueError"),
        (lambda data: np.zeros(1 << 28), "more than 64 MiB"),
        (lambda data: bytes(1 << 28), "more than 64 MiB"),
        (endless, "more than 2.0 seconds"),
        (lambda data: (_ for _ in ()).throw(CorruptObject("x" * 20_000)), "it says"),
        (lambda data: data.split()[99], "IndexError"),
    ],
    ids=["KeyError", "ValueError", "numpy's memory", "memory", "time", "a long message", "IndexError"],
)
def test_a_fault_that_is_planted_is_found(fault: Callable[[bytes], object], said: str) -> None:
    if "MiB" in said and sys.platform != "linux":
        pytest.skip("memory is bounded on Linux alone")
    found = fuzz(parser(fault), 50_000, seed=1, stop=1)
    assert len(found.problems) == 1
    assert said in found.problems[0]
    assert "seed 1" in found.problems[0]


def test_a_fault_in_a_real_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these checks holds off something that the fuzzer comes upon."""
    from coral import objects
    from coral.store import _refs

    every = {target.name: target for target in targets()}
    monkeypatch.setattr(objects, "_metrics", lambda found, what: dict(found))
    assert fuzz(every["commit"], 50_000, 0, stop=1).problems
    monkeypatch.setattr(_refs, "is_time", lambda value: True)
    assert fuzz(every["ref"], 50_000, 0, stop=1).problems


def test_what_reaches_further_is_kept() -> None:
    """Behind three numbers that have to be right, one after the other, there is a fault: by chance alone, 1 in 10^6."""
    target = Target("steps", (b"Cabcdefgh",), in_coral(steps))
    assert fuzz(target, 100_000, 0, stop=1).problems


def steps(data: bytes) -> None:
    if data[:1] != b"C":
        raise CorruptObject("1")
    if data[1:2] != b"\x00":
        if data == b"Cabcdefgh":
            return
        raise CorruptObject("2")
    if data[2:3] != b"\x80":
        raise CorruptObject("3")
    if data[3:4] != b"\xff":
        raise CorruptObject("4")
    raise KeyError


def in_coral(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The function as if it stood in a file of coral, whose lines are looked at."""
    code = function.__code__.replace(co_filename=errors.__file__)
    return FunctionType(code, function.__globals__)


def test_the_same_seed_gives_the_same_inputs() -> None:
    def some(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutate(b'{"a":1,"b":[2,3]}', [b"xyz"], TOKENS, rng) for _ in range(200)]

    assert some(3) == some(3)
    assert some(3) != some(4)
    assert max(map(len, some(5))) <= LONGEST
