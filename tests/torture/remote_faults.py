"""T10: each request to the other side of a push, a pull and a clone is broken, once and from then on.

The other side is a folder, whose requests go wrong here; between the real clients and servers of S3 and of a Hub, the
tests in `tests/remotes` break them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from deeds import DEEDS, Deed, again, attempt, base, tried
from power_loss import Tally
from process_death import in_child

from coral.errors import RemoteDenied, RemoteUnreachable
from coral.remotes._directory import DirectoryRemote

KINDS = ("error", "denied", "lost", "late", "twice", "truncated", "wrong", "garbled")
REMOTE_DEEDS = tuple(deed for deed in DEEDS if deed.name in ("push", "pull", "clone"))
UPKEEP = tuple(deed for deed in DEEDS if deed.name in ("a push that prunes", "a push that repairs"))
_REQUESTS = ("put", "read_array", "list", "delete", "copy")


class Breaking:
    """Does requests, but for what goes wrong with the one of number `at`, and, where it lasts, with all after it."""

    def __init__(self, at: int = -1, kind: str = "", *, lasts: bool = False) -> None:
        self._at, self._kind, self._lasts = at, kind, lasts
        self._late: list[Callable[[], object]] = []
        self._lock = threading.RLock()
        self._inside = False
        self.asked: list[str] = []

    def __call__(self, name: str, do: Callable[[], Any]) -> Any:
        with self._lock:
            if self._inside:  # a part of another request
                return do()
            with self._asking():
                return self._request(name, do)

    def _request(self, name: str, do: Callable[[], Any]) -> Any:
        number = len(self.asked)
        self.asked.append(name)
        self._arrive()
        if number == self._at or (self._lasts and number > self._at >= 0):
            return self._break(name, do)
        return do()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def finish(self) -> None:
        """Have what is late come to the other side."""
        with self._asking():
            self._arrive()

    def _arrive(self) -> None:
        while self._late:
            self._late.pop(0)()

    def _break(self, name: str, do: Callable[[], Any]) -> Any:
        match self._kind:
            case "error":
                raise RemoteUnreachable("500, says the test")
            case "denied":
                raise RemoteDenied("403, says the test")
            case "lost":
                do()
                raise RemoteUnreachable("no answer came, says the test")
            case "late":
                self._late.append(do)
                raise RemoteUnreachable("it took too long, says the test")
            case "twice":
                do()
            case "truncated" if name == "read_array":
                found = do()
                return found[: found.size // 2]
            case "wrong" if name == "read_array":
                found = do()
                found[found.size // 2 : found.size // 2 + 1] ^= np.uint8(4)
                return found
            case "garbled" if name == "read_array":
                found = do()
                found[::61] ^= np.uint8(4)
                return found
        return do()


@contextmanager
def _breaking(broken: Breaking) -> Iterator[None]:
    """Have all requests to folders done through it."""
    methods = {name: getattr(DirectoryRemote, name) for name in _REQUESTS}

    def through(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        if name == "list":  # a generator: what is asked is asked now
            return lambda self, prefix: broken(name, lambda: [*method(self, prefix)])
        return lambda self, *args: broken(name, lambda: method(self, *args))

    for name, method in methods.items():
        setattr(DirectoryRemote, name, through(name, method))
    try:
        yield
        broken.finish()
    finally:
        for name, method in methods.items():
            setattr(DirectoryRemote, name, method)


def _attempt(folder: Path, deed: Deed, broken: Breaking) -> list[str]:
    with _breaking(broken):
        attempt(folder, deed)
    return broken.asked


def run(deed: Deed, *, kinds: Sequence[str] = KINDS, thin: int = 1, seed: int = 0) -> Tally:
    """Break each request in each way, once and from then on, or one in `thin` of these cases."""
    began, tally = time.perf_counter(), Tally()
    with base(deed) as (folder, known, _):
        here = again(folder)
        status, asked = in_child(lambda: _attempt(here, deed, Breaking()))
        if status:
            tally.violations.append(f"{deed.name}: it fails without a fault: {asked}")
            return tally
        cases = [(at, kind, lasts) for at in range(len(asked)) for kind in kinds for lasts in (False, True)]
        for at, kind, lasts in cases[seed % thin :: thin]:
            here, broken = again(folder), Breaking(at, kind, lasts=lasts)
            tally.cases += 1
            if problem := tried(here, deed, known, partial(_attempt, here, deed, broken)):
                often = " and all after" if lasts else ""
                tally.violations.append(f"{deed.name}: {kind} at request {at} ({asked[at]}){often}: {problem}")
    tally.seconds = time.perf_counter() - began
    return tally
