"""Reading tensors back: opened at once, read when asked for, checked as they are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from coral._digest import Bytes
from coral.errors import ConfigError, CorruptObject, WeightsMismatch, storage_errors
from coral.objects import TensorEntry, Tree
from coral.store import Chain, Copies, Store
from coral.store._chain import read_tensors
from coral.store._pack import path_of
from coral.weights import DTYPES, Array, WeightTensor

_BATCH = 24 << 20  # bytes read at once


def checked_names(names: Iterable[str]) -> list[str]:
    """Names of weights, each once; ConfigError for anything else."""
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise ConfigError(f"names is {names!r}; it must be a collection of names, or None for all")
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise ConfigError(f"names has {name!r}, which is not a str: weights are named by one")
    return list(dict.fromkeys(found))


class StoredTensors(Mapping[str, WeightTensor]):
    """The tensors of a commit by name, each read when its `data` is first asked for.

    All packs are open from the start, so that nothing that happens in the repository takes a tensor away. Each
    access makes a WeightTensor of its own: what one is used for cannot show in another, and streaming through the
    mapping holds one tensor at a time.
    """

    def __init__(self, store: Store, tree: Tree, commit: str, names: Iterable[str] | None = None) -> None:
        wanted = list(tree) if names is None else checked_names(names)
        if missing := [name for name in wanted if name not in tree]:
            raise WeightsMismatch(missing=missing)
        self._commit = commit
        self._tree = {name: tree[name] for name in wanted}
        self._copies = Copies(store)
        self._stored = {name: self._copies.get(entry.id, name, commit) for name, entry in self._tree.items()}
        self._batches = _Batches(self._tree, self._stored)

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

    def _read(self, name: str, entry: TensorEntry) -> Array:
        ready = self._batches.take(name)
        if ready is not None:
            return ready
        what, problem = self._what(name), ""
        refusal: OSError | None = None
        with storage_errors(f"reading {what}"):
            for chain in itertools.chain([self._stored[name]], self._copies.chains(entry.id)):
                where = " or ".join(dict.fromkeys(path_of(link.pack.name) for link in chain.links))
                problem = f"its copy in {where} fails its check"
                if _fits(chain, entry):  # another copy may be whole
                    try:
                        (data,) = read_tensors([chain])
                    except EOFError:
                        continue
                    except OSError as error:  # it may be whole
                        refusal = error
                        continue
                    if data is not None:
                        return _as_array(data, entry)
            if refusal := refusal or self._copies.unreadable:
                raise refusal
        message = f"{what} is not what was stored: {problem}. Run fsck."
        path = path_of(self._stored[name].links[0].pack.name)
        raise CorruptObject(message, tensor=name, commits=[self._commit], path=path)


def _fits(chain: Chain, entry: TensorEntry) -> bool:
    found = chain.entry
    return found.dtype == entry.dtype and found.shape == entry.shape and found.nbytes == entry.nbytes


def _as_array(data: Bytes, entry: TensorEntry) -> Array:
    return data.view(DTYPES[entry.dtype].numpy).reshape(entry.shape)


class _Batches:
    """Tensors that are asked for in order are read some at a time, so that all threads can check them at once."""

    def __init__(self, tree: Tree, stored: Mapping[str, Chain]) -> None:
        self._tree = tree
        self._stored = stored
        self._names = list(tree)
        self._place = {name: place for place, name in enumerate(self._names)}
        self._next = 0  # what comes next if they are asked for in order
        self._ready: dict[str, Array] = {}

    def take(self, name: str) -> Array | None:
        """The tensor, if it can be had in a batch. Who asks for one that cannot reads it alone, and is told why."""
        place = self._place[name]
        in_order, self._next = place == self._next and place > 0, place + 1
        if name not in self._ready and in_order:
            self._ready.clear()
            self._fill(place)
        return self._ready.pop(name, None)

    def _fill(self, place: int) -> None:
        names, size = [], 0
        for name in self._names[place:]:
            nbytes = self._tree[name].nbytes
            if size and size + nbytes > _BATCH:
                break
            size += nbytes
            if _fits(self._stored[name], self._tree[name]):
                names.append(name)
        with suppress(OSError, EOFError, CorruptObject):
            arrays = read_tensors([self._stored[name] for name in names])
            for name, data in zip(names, arrays, strict=True):
                if data is not None:
                    self._ready[name] = _as_array(data, self._tree[name])
