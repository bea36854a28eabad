"""What a module holds: its parameters and buffers by name, which of them are one tensor, and what is no tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from coral.errors import UnsupportedValue
from coral.integrations.pytorch._tensors import check

__all__ = ["Parts", "check_module", "is_sharded", "module_parts", "tied_groups", "unwrapped", "versions_of"]


class Parts(NamedTuple):
    """A module's state_dict: its tensors, which live on in the module, and what of its extra state is no tensor.

    `notes` are what torch notes of each submodule by its name, its version, by which it tells what it has to migrate.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    notes: Mapping[str, Mapping[str, Any]]

    def of_versions(self, versions: Mapping[str, Any]) -> Parts:
        """The same, with notes of the versions that `versions_of` gave elsewhere."""
        notes = {name: {**note, "version": versions.get(name, 1)} for name, note in self.notes.items()}
        return self._replace(notes=notes)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel, so that names have no prefix."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of the module are in parts on several processes (FSDP, ZeRO-3, tensor parallel)."""
    return any(hasattr(each, "placements") or hasattr(each, "ds_id") for each in module.parameters()) or any(
        type(each).__name__ == "FullyShardedDataParallel" for each in module.modules()
    )


def module_parts(module: nn.Module, *, meta: bool = False) -> Parts:
    """The module's state_dict in two. A tensor that is somebody's extra state is a weight like any other.

    UnsupportedValue names a tensor that has no plain data; with `meta`, one on the meta device is taken as it is.
    """
    module = unwrapped(module)
    _check_state_dict(module)
    state = module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        check(tensor, name, meta=meta)
    extra = {name: value for name, value in state.items() if name not in tensors}
    return Parts(tensors, extra, getattr(state, "_metadata", {}))


def versions_of(notes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The versions of those submodules that have another than 1, which is a module's that says none."""
    found = {name: note.get("version", 1) for name, note in notes.items()}
    return {name: version for name, version in found.items() if version != 1}


def check_module(module: nn.Module) -> None:
    """Raise UnsupportedValue, before there is anything to save, for a module that never could be as it is."""
    _check_state_dict(module)
    if empty := [name for name, parameter in module.named_parameters() if parameter.is_meta]:
        raise UnsupportedValue(
            f"parameters on the meta device, which has no data to save: {', '.join(empty)}; give the model real memory "
            "first (load_from_repo does, and to_empty)",
            path=empty[0],
        )


def _check_state_dict(module: nn.Module) -> None:
    try:
        inspect.signature(module.state_dict).bind(keep_vars=True)
    except TypeError:
        name = type(module).__name__
        raise UnsupportedValue(
            f"{name}.state_dict takes no keep_vars, as that of nn.Module does: have it take **options and hand them on"
        ) from None


def tied_groups(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names that stand for one tensor: the same memory, seen the same way; where there is none, the same object."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            groups.setdefault((id(tensor),), []).append(name)
        elif tensor.numel():
            seen = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
            groups.setdefault(seen, []).append(name)
    return [names for names in groups.values() if len(names) > 1]
