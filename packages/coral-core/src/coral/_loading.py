"""Reading tensors back: opened at once, read when asked for, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np

from coral.errors import CorruptObject, WeightsMismatch, storage_errors
from coral.objects import TensorEntry, Tree
from coral.store import Copies, Store, Stored
from coral.store._pack import read_tensor
from coral.weights import DTYPES, Array, WeightTensor


class StoredTensors(Mapping[str, WeightTensor]):
    """The tensors of a commit by name, each read when its `data` is first asked for.

    All packs are open from the start, so that nothing that happens in the repository takes a tensor away. Each
    access makes a WeightTensor of its own: what one is used for cannot show in another, and streaming through the
    mapping holds one tensor at a time.
    """

    def __init__(self, store: Store, tree: Tree, commit: str, names: Iterable[str] | None = None) -> None:
        wanted = list(tree) if names is None else list(dict.fromkeys(names))
        if missing := [name for name in wanted if name not in tree]:
            raise WeightsMismatch(missing=missing)
        self._commit = commit
        self._tree = {name: tree[name] for name in wanted}
        self._copies = Copies(store)
        self._stored = {name: self._copies.get(entry.id, self._what(name)) for name, entry in self._tree.items()}

    def entry(self, name: str) -> TensorEntry:
        """What is known of a tensor without reading it."""
        return self._tree[name]

    def __getitem__(self, name: str) -> WeightTensor:
        entry = self._tree[name]
        return WeightTensor.stored(entry.dtype, entry.shape, entry.id, lambda: self._read(name, entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of commit {self._commit[:12]}>"

    def _what(self, name: str) -> str:
        return f"tensor {name!r} of commit {self._commit[:12]}"

    def _read(self, name: str, entry: TensorEntry) -> Array:
        problem: CorruptObject | None = None
        with storage_errors(f"reading {self._what(name)}"):
            for stored in chain([self._stored[name]], self._copies.all(entry.id)):
                try:
                    return self._decode(stored, name, entry)
                except (CorruptObject, EOFError) as error:  # another copy may be whole
                    problem = problem or CorruptObject(
                        f"{error}. Run fsck.",
                        tensor=name,
                        commits=[self._commit],
                        path=f"packs/{stored.pack.name}.pack",
                    )
        raise problem or CorruptObject(f"{self._what(name)} is missing", tensor=name, commits=[self._commit])

    def _decode(self, stored: Stored, name: str, entry: TensorEntry) -> Array:
        found = stored.entry
        if (found.dtype, found.shape, found.nbytes) != (entry.dtype, entry.shape, entry.nbytes):
            raise CorruptObject(f"{self._what(name)} is stored with another dtype or shape")
        data = read_tensor(stored.file, found, self._what(name))
        carrier = np.dtype(DTYPES[entry.dtype].carrier)
        return data.view(carrier).reshape(entry.shape)
