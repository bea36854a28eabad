"""Loading one tensor at a time, for models that memory holds once and not twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypedDict

import torch
from torch import Tensor, nn

from coral import WeightTensor
from coral.errors import ConfigError
from coral.integrations.pytorch._fitting import LoadReport
from coral.integrations.pytorch._loading import Device, finish, moved, put, put_one, target
from coral.integrations.pytorch._matching import KeyMap
from coral.integrations.pytorch._opening import RepositoryLike, opened
from coral.integrations.pytorch._progress import progress_bar
from coral.integrations.pytorch._tensors import from_weight

__all__ = ["StreamingWeightLoader", "WeightInfo", "stream_load_model"]

Filter = Callable[[str], bool]
"""Says by its name whether a weight is wanted."""


class WeightInfo(TypedDict):
    """What is known of a weight without reading it: its dtype by name, its shape, its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class StreamingWeightLoader:
    """The weights of one commit, read one at a time.

        loader = StreamingWeightLoader("./repo", "best")
        loader.estimate_memory()
        with torch.device("meta"):
            model = Net()
        loader.stream_into_model(model, device="cuda")

    The commit is the one that `commit_ref` means now, by default HEAD's. Beside the model, memory holds the largest
    tensor and at most 64 MiB. A tensor that is stored whole is a map of the repository's file: its pages come from
    the page cache, and are copied when they are first written to. A model on the meta device that is filled on the CPU
    keeps such maps, as its parameters: no second copy is made, and the disk space stays taken until the model is
    gone. Clone its tensors if the repository's disk may go away before.
    """

    def __init__(self, repo: RepositoryLike, commit_ref: str | None = None) -> None:
        self.repository = opened(repo)
        found = self.repository.show("HEAD" if commit_ref is None else commit_ref)
        self.commit = found.id
        """The commit's id."""
        if found.pruned:
            self.repository.load(self.commit)  # which says so
        self._entries = self.repository.tree(self.commit)

    @property
    def num_weights(self) -> int:
        """How many weights there are."""
        return len(self._entries)

    @property
    def weight_names(self) -> list[str]:
        """Their names."""
        return list(self._entries)

    def get_weight_info(self) -> dict[str, WeightInfo]:
        """What is known of each weight without reading it."""
        return {
            name: WeightInfo(dtype=entry.dtype, shape=entry.shape, nbytes=entry.nbytes)
            for name, entry in self._entries.items()
        }

    def estimate_memory(self) -> int:
        """Bytes of all weights in memory, tied ones under each of their names."""
        return sum(entry.nbytes for entry in self._entries.values())

    def stream_weights(
        self,
        device: Device | None = None,
        filter_fn: Filter | None = None,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[str, Tensor]]:
        """Each weight's name and tensor, read when the iteration comes to it.

        Those that `filter_fn` says yes to by name, on `device`, those of floating point cast to `dtype`. To hold one
        tensor at a time, let go of each (`del tensor`) before the next. A progress bar is shown on a terminal alone.
        """
        _check_dtype(dtype)
        return self._stream(self._wanted(filter_fn), device, dtype, progress)

    def stream_into_model(
        self,
        model: nn.Module,
        device: Device | None = None,
        strict: bool = True,
        filter_fn: Filter | None = None,
        dtype: torch.dtype | None = None,
        key_map: KeyMap | None = None,
        prefix: str = "",
        progress: bool = False,
    ) -> LoadReport:
        """Load the model one tensor at a time, and say what was loaded.

        Names are matched as by `load_into_model`; what `filter_fn` says no to is as if it were not there. `device`
        moves the model and `dtype` makes its floating-point tensors, and the weights, of it. A tensor is copied into
        the parameter's memory; where that is on the meta device it becomes the parameter.

        WeightsMismatch lists all that does not fit, before anything is read. An error while reading (CorruptObject)
        leaves a model on the meta device as it was, and another one with a part of the weights loaded.
        """
        _check_dtype(dtype)
        weights = {name: self._unread(name) for name in self._wanted(filter_fn)}
        to = target(model, weights, strict=strict, key_map=key_map, prefix=prefix, dtype=dtype)
        names = {source: name for name, source in to.fit.sources.items()}
        to = moved(to, device, dtype)
        become: dict[str, Tensor] = {}
        for source, tensor in self._stream(list(names), None, dtype, progress):
            name = names[source]
            if to.empty(name):
                become[name] = tensor.to(device or "cpu")
            else:
                put_one(to, name, tensor)
            del tensor  # before the next one is read
        put(to, become)
        return finish(to)

    def _wanted(self, filter_fn: Filter | None) -> list[str]:
        return [name for name in self._entries if filter_fn is None or filter_fn(name)]

    def _unread(self, name: str) -> WeightTensor:
        """The weight, of which nothing is read, nor looked for, before it is asked for."""
        return WeightTensor.stored(*self._entries[name], lambda: self.repository.load(self.commit, [name])[name].data)

    def _stream(
        self, names: list[str], device: Device | None, dtype: torch.dtype | None, progress: bool
    ) -> Iterator[tuple[str, Tensor]]:
        stored = self.repository.load(self.commit, names)
        with progress_bar(sum(self._entries[name].nbytes for name in names), progress) as advance:
            for name in names:
                yield name, _tensor(stored[name], device, dtype)
                advance(self._entries[name].nbytes)


def stream_load_model(
    model: nn.Module,
    repo: RepositoryLike,
    commit_ref: str | None = None,
    device: Device | None = None,
    strict: bool = True,
    filter_fn: Filter | None = None,
    dtype: torch.dtype | None = None,
    key_map: KeyMap | None = None,
    prefix: str = "",
    progress: bool = False,
) -> LoadReport:
    """Load the model from a commit one tensor at a time: `StreamingWeightLoader.stream_into_model`."""
    loader = StreamingWeightLoader(repo, commit_ref)
    return loader.stream_into_model(model, device, strict, filter_fn, dtype, key_map, prefix, progress)


def _tensor(weight: WeightTensor, device: Device | None, dtype: torch.dtype | None) -> Tensor:
    tensor = from_weight(weight)
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype is {dtype!r}; weights of floating point can be cast to a torch.dtype of it alone")
