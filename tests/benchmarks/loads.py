"""Ways to load one checkpoint, timed in turn, warm or cold, until its tensors are there and until each is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import peers
from harness import Bench, Contender, in_turn
from machine import cached_share, drop_cache

__all__ = ["Loads", "there"]

Way = tuple[Callable[[Path], peers.Loaded], Path]
"""How to load, and the file or the folder that is loaded from."""


def there(name: str, kind: str) -> str:
    """Return the name of a timing that ends when the tensors are there: touching them again is left out."""
    return f"{name}, {kind}, before the touch"


@dataclass(slots=True)
class Loads:
    """Ways by name; each has to come to tensors with the same `total`, the sum of all words."""

    ways: Mapping[str, Way]
    total: int
    _dropped: set[str] = field(default_factory=set)
    _left: dict[str, float] = field(default_factory=dict)

    def contenders(self, kind: str) -> list[Contender]:
        """Return a contender for each way; they time "NAME, KIND" and what `there` names."""
        return [self._contender(name, kind) for name in self.ways]

    def _contender(self, name: str, kind: str) -> Contender:
        def load() -> dict[str, float]:
            read, path = self.ways[name]
            if kind == "cold":
                paths = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
                self._dropped.add(drop_cache(paths))
                self._left[name] = max(self._left.get(name, 0.0), cached_share(paths))
            loaded = read(path)
            assert loaded.total == self.total, f"{name} did not load what was saved"
            return {f"{name}, {kind}": loaded.touched, there(name, kind): loaded.there}

        return load

    def time(self, bench: Bench, name: str, kinds: Iterable[str] = ("warm", "cold")) -> None:
        """Time all ways in turn, kind by kind, and add the timings to the benchmark of this name."""
        for kind in kinds:
            bench.report.time(name, in_turn(self.contenders(kind), bench.rounds))
            if kind == "cold":
                most = f"{max(self._left.values()):.0%} of a file's pages were still cached at most"
                bench.report.note(name, f"page cache dropped by {', '.join(sorted(self._dropped))}; {most}")
