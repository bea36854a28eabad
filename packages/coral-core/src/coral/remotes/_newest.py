"""The newest weights of a branch, for remotes that show them in a form that others read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coral._loading import StoredTensors
from coral.objects import Commit, State, decode_tree
from coral.state import StateValue, unflatten
from coral.store import Store
from coral.weights import WeightTensor

__all__ = ["Newest"]


@dataclass(frozen=True, slots=True)
class Newest:
    """The commit that a branch is about to move to; its weights and state are read when they are asked for."""

    branch: str
    commit: Commit
    store: Store

    def weights(self) -> Mapping[str, WeightTensor]:
        """The weights, each of which is read when its `data` is first asked for."""
        what = f"the tree of commit {self.commit.id[:12]}"
        tree = decode_tree(self.store.read_object("tree", self.commit.tree), what)
        return StoredTensors(self.store, tree, self.commit.id)

    def state(self) -> StateValue:
        """The training state; None where there is none."""
        if self.commit.state is None:
            return None
        what = f"the state of commit {self.commit.id[:12]}"
        state = State.decode(self.store.read_object("state", self.commit.state), what)
        return unflatten(state.value, StoredTensors(self.store, state.tensors, self.commit.id).__getitem__, what)
