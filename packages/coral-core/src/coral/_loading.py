"""Reading tensors back: opened at once, read when asked for, checked as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from itertools import chain

import numpy as np

from coral._digest import pool
from coral.errors import CorruptObject, WeightsMismatch, storage_errors
from coral.objects import TensorEntry, Tree
from coral.store import Copies, Store, Stored
from coral.store._pack import read_tensor
from coral.weights import DTYPES, Array, WeightTensor

_AHEAD = 16 << 20  # bytes read ahead
_GROUP = 2 << 20  # bytes that a thread reads at a time
_LARGE = 8 << 20


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
        self._ahead = _ReadAhead(list(self._tree.items()), self._read_beside)

    def entry(self, name: str) -> TensorEntry:
        """What is known of a tensor without reading it."""
        return self._tree[name]

    def __getitem__(self, name: str) -> WeightTensor:
        entry = self._tree[name]
        return WeightTensor.stored(entry.dtype, entry.shape, entry.nbytes, entry.id, lambda: self._read(name, entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of commit {self._commit[:12]}>"

    def _what(self, name: str) -> str:
        return f"tensor {name!r} of commit {self._commit[:12]}"

    def _read_beside(self, name: str, entry: TensorEntry) -> Array | None:
        try:
            return self._decode(self._stored[name], name, entry, alone=False)
        except (CorruptObject, EOFError, OSError):
            return None  # whoever asks for it reads it again, and is told what is wrong

    def _read(self, name: str, entry: TensorEntry) -> Array:
        found = self._ahead.take(name)
        if found is not None:
            return found
        problem: CorruptObject | None = None
        with storage_errors(f"reading {self._what(name)}"):
            for stored in chain([self._stored[name]], self._copies.all(entry.id)):
                try:
                    return self._decode(stored, name, entry, alone=True)
                except (CorruptObject, EOFError) as error:  # another copy may be whole
                    problem = problem or CorruptObject(
                        f"{error}. Run fsck.",
                        tensor=name,
                        commits=[self._commit],
                        path=f"packs/{stored.pack.name}.pack",
                    )
        raise problem or CorruptObject(f"{self._what(name)} is missing", tensor=name, commits=[self._commit])

    def _decode(self, stored: Stored, name: str, entry: TensorEntry, *, alone: bool) -> Array:
        found = stored.entry
        if (found.dtype, found.shape, found.nbytes) != (entry.dtype, entry.shape, entry.nbytes):
            raise CorruptObject(f"{self._what(name)} is stored with another dtype or shape")
        data = read_tensor(stored.file, found, self._what(name), alone=alone)
        carrier = np.dtype(DTYPES[entry.dtype].carrier)
        return data.view(carrier).reshape(entry.shape)


class _ReadAhead:
    """Reads and checks the next tensors while the caller is busy with one, as long as they are asked for in order."""

    def __init__(
        self, entries: list[tuple[str, TensorEntry]], read: Callable[[str, TensorEntry], Array | None]
    ) -> None:
        self._entries = entries
        self._read = read
        self._place = {name: place for place, (name, _) in enumerate(entries)}
        self._next = 0  # what comes next if they are asked for in order
        self._begun = 0  # how many have been begun, or passed over
        self._nbytes = 0  # bytes begun and not taken yet
        self._futures: dict[str, Future[dict[str, Array | None]]] = {}

    def take(self, name: str) -> Array | None:
        """The tensor, if it was read ahead; and begin with those after it."""
        place = self._place[name]
        in_order, self._next = place == self._next, place + 1
        future = self._futures.pop(name, None)
        if future is not None:
            self._nbytes -= self._entries[place][1].nbytes
        if in_order:
            self._begin(place + 1)
        return None if future is None else future.result().pop(name)

    def _begin(self, place: int) -> None:
        self._begun = max(self._begun, place)
        while self._begun < len(self._entries) and self._nbytes < _AHEAD:
            group: list[tuple[str, TensorEntry]] = []
            size = 0
            while self._begun < len(self._entries) and size < _GROUP:
                name, entry = self._entries[self._begun]
                self._begun += 1
                if entry.nbytes <= _LARGE:  # a larger one keeps all threads busy by itself
                    group.append((name, entry))
                    size += entry.nbytes
            if group:
                future = pool().submit(self._read_all, group)
                self._futures.update(dict.fromkeys((name for name, _ in group), future))
                self._nbytes += size

    def _read_all(self, group: list[tuple[str, TensorEntry]]) -> dict[str, Array | None]:
        return {name: self._read(name, entry) for name, entry in group}
