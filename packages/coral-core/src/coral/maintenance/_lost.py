"""What refs lead to and no pack holds whole: which commits need it, and what they call it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from coral.errors import CoralError
from coral.maintenance._report import Problem
from coral.objects import State, decode_tree
from coral.store import Store

__all__ = ["Lost"]


class _Found(Protocol):
    """What is needed of what fsck has found."""

    numbers: dict[str, int]
    tensors: set[int]
    needs: dict[str, array[int]]
    held: dict[str, array[int]]


@dataclass(slots=True)
class _Missing:
    object: str
    commits: dict[str, None] = field(default_factory=dict)
    parts: dict[tuple[str, str], None] = field(default_factory=dict)  # the trees and states that name it


class Lost:
    """What is not there; trees and states are each looked at once."""

    def __init__(self, store: Store, found: _Found) -> None:
        self._store = store
        self._found = found
        self._ids = {number: id for id, number in found.numbers.items()}
        self._known: dict[tuple[str, bool], list[str]] = {}
        self._missing: dict[str, _Missing] = {}
        self._names: dict[tuple[str, str], Mapping[str, list[str]]] = {}

    def of(self, part: str, kind: str, *, partly: bool = False) -> list[str]:
        """What is not there of a tree or a state, or `partly` of what is held of those that were fetched.

        Each as its kind and id.
        """
        if (part, partly) not in self._known:
            needs = self._found.needs.get(part)
            if needs is not None and partly:
                needs = self._found.held.get(part, array("L"))
            self._known[part, partly] = (
                [f"{kind} {part}"]
                if needs is None
                else [f"tensor {self._ids[number]}" for number in needs if number not in self._found.tensors]
            )
        return self._known[part, partly]

    def add(self, what: str, *commits: str, part: tuple[str, str] | None = None) -> None:
        """Note that commits need something, as their tree or state says if one is given."""
        missing = self._missing.setdefault(what, _Missing(what.partition(" ")[2]))
        missing.commits.update(dict.fromkeys(commits))
        if part is not None:
            missing.parts[part] = None

    def problems(self, most: int) -> Iterator[Problem]:
        """A problem for each thing, with its names in `most` trees and states."""
        for what, missing in self._missing.items():
            names: dict[str, None] = {}
            for part in list(missing.parts)[:most] if what.startswith("tensor ") else ():
                names.update(dict.fromkeys(self._called(part).get(missing.object, ())))
            message = f"no pack holds {what[: what.index(' ') + 13]} whole"
            yield Problem("packs", message, tuple(missing.commits), missing.object, tuple(names))

    def _called(self, part: tuple[str, str]) -> Mapping[str, list[str]]:
        """The names of the tensors of a tree or state, by their ids."""
        if part not in self._names:
            kind, id = part
            names: dict[str, list[str]] = {}
            try:
                data, what = self._store.read_object(kind, id), f"{kind} {id[:12]}"
                tree = decode_tree(data, what) if kind == "tree" else State.decode(data, what).tensors
            except (CoralError, OSError):  # it was whole a moment ago
                tree = {}
            for name, entry in tree.items():
                names.setdefault(entry.id, []).append(f"{'weights' if kind == 'tree' else kind}/{name}")
            self._names[part] = names
        return self._names[part]
