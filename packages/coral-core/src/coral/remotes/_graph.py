"""Walking from commits to all that they lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass

from coral.errors import CorruptObject, MissingObject
from coral.objects import Commit, State, TensorEntry, Tree, decode_commit, decode_tree
from coral.store import Store

__all__ = ["Graph", "Parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a commit is made of: its tree, the states that it or notes on it name, and their tensors by name."""

    tree: str
    states: tuple[str, ...]
    weights: Tree
    state: tuple[Tree, ...]  # of each of the states

    def objects(self) -> Iterator[str]:
        """The ids of the tree and of the states."""
        yield self.tree
        yield from self.states

    def tensors(self) -> Iterator[tuple[str, TensorEntry]]:
        """Every tensor, under a name that says which part it is of."""
        yield from ((f"weights/{name}", entry) for name, entry in self.weights.items())
        for tree in self.state:
            yield from ((f"state/{name}", entry) for name, entry in tree.items())


class Graph:
    """The commits of a store, and what they lead to; `read(kind, id)` gives an object's bytes. Each is read once."""

    def __init__(self, read: Callable[[str, str], bytes]) -> None:
        self._read = read
        self._commits: dict[str, Commit] = {}

    @classmethod
    def of(cls, store: Store) -> Graph:
        """The graph of a store."""
        return cls(store.read_object)

    def commit(self, id: str) -> Commit:
        """A commit, without what notes say of it."""
        if id not in self._commits:
            self._commits[id] = decode_commit(self._read("commit", id), id)
        return self._commits[id]

    def has(self, id: str) -> bool:
        """Whether there is such a commit."""
        try:
            self.commit(id)
        except MissingObject:
            return False
        return True

    def ancestors(self, start: Iterable[str], stop: Set[str] = frozenset()) -> list[Commit]:
        """The commits that these lead to, themselves among them, parents first; none in `stop`, nor beyond those."""
        found, begun = [], set(stop)
        stack = [(id, False) for id in start]
        while stack:
            id, ready = stack.pop()
            if ready:
                found.append(self.commit(id))
            elif id not in begun:
                begun.add(id)
                stack.append((id, True))
                stack += [(parent, False) for parent in self.commit(id).parents if parent not in begun]
        return found

    def parts(self, commit: Commit, later: Iterable[str] = (), *, trees_only: bool = False) -> Parts:
        """What a commit is made of, `later` being the states that notes name; without the states' tensors if asked."""
        what = f"the tree of commit {commit.id[:12]}"
        states = tuple(dict.fromkeys(id for id in (commit.state, *later) if id))
        weights = decode_tree(self._read("tree", commit.tree), what)
        of_states = tuple(State.decode(self._read("state", id), f"state {id[:12]}").tensors for id in states)
        return Parts(commit.tree, states, weights, () if trees_only else of_states)


def check_tensor(entry: TensorEntry, dtype: str | None, shape: tuple[int, ...]) -> None:
    """CorruptObject where a tree says something else of a tensor than the pack that holds it."""
    if (entry.dtype, entry.shape) != (dtype, shape):
        raise CorruptObject(f"tensor {entry.id[:12]} is {dtype}{list(shape)}, and a tree says something else of it")
