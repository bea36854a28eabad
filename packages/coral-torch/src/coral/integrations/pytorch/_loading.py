"""Weights into a module: copied in place into what has memory, made parameters of what has none.

Parameters with memory stay the objects that an optimizer holds and that other parameters are tied to. Nothing is cast,
reshaped or broadcast to make it fit, and nothing is touched unless all of it fits.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from coral import WeightTensor
from coral.errors import UnsupportedValue, WeightsMismatch
from coral.integrations.pytorch._expanded import load_expanded, shared_dims
from coral.integrations.pytorch._fitting import Fit, LoadReport, fit, is_extra, refuse
from coral.integrations.pytorch._matching import KeyMap, match_names
from coral.integrations.pytorch._modules import Parts, module_parts, unwrapped
from coral.integrations.pytorch._tensors import from_weight, to_weight

__all__ = [
    "Device",
    "Target",
    "as_weight",
    "finish",
    "load_into_model",
    "load_weights",
    "moved",
    "put",
    "put_one",
    "target",
]

Device = torch.device | str | int


class Target(NamedTuple):
    """A module that is about to be loaded: what it holds, and what of the weights fits."""

    module: nn.Module
    live: Parts
    fit: Fit
    strict: bool

    def empty(self, name: str) -> bool:
        """Whether it is a parameter or buffer on the meta device, which has no memory to copy into."""
        tensor = self.live.tensors.get(name)
        return tensor is not None and tensor.is_meta and not is_extra(name)


def load_into_model(
    model: nn.Module,
    weights: Mapping[str, WeightTensor | np.ndarray[Any, Any] | Tensor],
    strict: bool = True,
    key_map: KeyMap | None = None,
    prefix: str = "",
    device: Device | None = None,
) -> LoadReport:
    """Copy weights into a model, in place, and say what was loaded.

        load_into_model(model, weights, key_map={"old.weight": "new.weight"}, prefix="encoder")

    With a `prefix` only the weights below it count, by what follows it. `key_map`, a dict, a function or (regex,
    replacement) pairs, then makes names of the model of theirs. What torch.compile and DistributedDataParallel add to
    names, there or here, is understood. `device` moves the model; one on the meta device gets memory there, or else on
    the CPU.

    WeightsMismatch lists everything that is missing, unexpected, or of another dtype or shape, and leaves the model as
    it was; with `strict=False` what fits is loaded and the rest is in the report. ConfigError if two weights come to
    one name.
    """
    given = {name: as_weight(name, value) for name, value in weights.items()}
    return load_weights(
        model, given, strict=strict, key_map=key_map, prefix=prefix, device=device, fill=True, copy=True
    )


def load_weights(
    module: nn.Module,
    weights: Mapping[str, WeightTensor],
    *,
    extra: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
    strict: bool = True,
    key_map: KeyMap | None = None,
    prefix: str = "",
    device: Device | None = None,
    fill: bool = False,
    copy: bool = False,
) -> LoadReport:
    """Read all the weights that fit, and only then touch the module; `extra` is state of it that is no tensor.

    `versions` are those of the submodules that the weights were taken from, by which a submodule tells what it has to
    migrate; where they are not known the weights are taken to be of the module's own.

    With `fill` what is on the meta device gets memory, that of the weights unless `copy`; otherwise UnsupportedValue
    names it: an optimizer would go on holding what has no data.
    """
    if not fill:
        module_parts(module)
    to = target(module, weights, extra=extra, strict=strict, key_map=key_map, prefix=prefix)
    tensors = {}
    for name, source in to.fit.sources.items():
        tensors[name] = from_weight(weights[source])
        if to.empty(name):
            tensors[name] = tensors[name].to(device or "cpu", copy=copy)
    to = moved(to, device)
    if versions is not None:
        to = to._replace(live=to.live.of_versions(versions))
    put(to, tensors, extra)
    return finish(to)


def target(
    module: nn.Module,
    weights: Mapping[str, WeightTensor],
    *,
    extra: Mapping[str, Any] | None = None,
    strict: bool = True,
    key_map: KeyMap | None = None,
    prefix: str = "",
    dtype: torch.dtype | None = None,
) -> Target:
    """Compare weights and module, by what is known without reading, and refuse or warn of what will not be loaded."""
    module = unwrapped(module)
    live = module_parts(module, meta=True)
    names = match_names(weights, [*live.tensors, *live.extra], key_map, prefix)
    found = fit(live, weights, names, extra=extra, dtype=dtype)
    if strict:
        refuse(found.report)
        if left := [name for name in _without_memory(module) if name not in live.tensors]:
            raise UnsupportedValue(
                f"buffers on the meta device that no state_dict has, so that no weights fill them: {', '.join(left)}; "
                "give them values first, or pass strict=False and do so afterwards",
                path=left[0],
            )
    if extra is None and (kept := [name for name in live.extra if name not in found.sources]):
        warnings.warn(f"weights alone hold no extra state; the module keeps its own: {', '.join(kept)}", stacklevel=4)
    return Target(module, live, found, strict)


def moved(to: Target, device: Device | None, dtype: torch.dtype | None = None) -> Target:
    """Move what has memory to a device, and make floating-point tensors of a dtype; None leaves either as it is."""
    if device is None and dtype is None:
        return to
    # Module.to refuses a module that is in part on the meta device
    to.module._apply(  # type: ignore[no-untyped-call]
        lambda tensor: tensor.to(
            device=None if tensor.is_meta else device, dtype=dtype if tensor.is_floating_point() else None
        )
    )
    for first, *others in to.fit.tied:  # each buffer was moved for itself
        for name in others:
            _tie(to.module, name, first)
    return to._replace(live=module_parts(to.module, meta=True))


def put(to: Target, tensors: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None) -> None:
    """Load tensors by the module's names: into the memory it has, or to become its parameters where it has none.

    What the module's own hooks dropped is not loaded: WeightsMismatch names it, or where that is not strict the report.
    """
    empty = {name: _parameter(to.live.tensors[name], tensor) for name, tensor in tensors.items() if to.empty(name)}
    for group in to.fit.tied:
        for first in [name for name in group if name in empty]:
            empty.update(dict.fromkeys(group, empty[first]))
    there = {name: tensor for name, tensor in tensors.items() if name not in empty}
    if empty:
        for name, tensor in there.items():
            put_one(to, name, tensor)
        _load(to, "", {**empty, **(extra or {})}, assign=True)
        return
    for name in [name for name in there if _is_expanded(to, name)]:
        load_expanded(to.live.tensors[name], there.pop(name))
    # load_state_dict copies in place, and calls the hooks of modules that store something else than they hold
    _load(to, "", {**there, **(extra or {})})


def put_one(to: Target, name: str, tensor: Tensor) -> None:
    """Load one tensor into the memory it has in the module, by the submodule that holds it: all others cost nothing.

    `put` without tensors has to follow: it runs the hooks of the modules above once all is there.
    """
    if _is_expanded(to, name):
        load_expanded(to.live.tensors[name], tensor)
        return
    path, leaf = _owner(to.module, name)
    _load(to, path, {leaf: tensor})


def finish(to: Target) -> LoadReport:
    """Warn of what is still without memory, and return the report."""
    if left := _without_memory(to.module):
        warnings.warn(f"still on the meta device, without data: {', '.join(left)}", stacklevel=4)
    return to.fit.report


def as_weight(name: str, value: object) -> WeightTensor:
    """A WeightTensor on the memory of whatever tensor it is; UnsupportedValue names what is none."""
    match value:
        case WeightTensor():
            return value
        case Tensor():
            return to_weight(value, name, copy=False)
        case np.ndarray():
            return WeightTensor(value)
        case _:
            raise UnsupportedValue(f"{name} is a {type(value).__name__}, not a tensor", path=name)


def _without_memory(module: nn.Module) -> list[str]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [name for name, tensor in named if tensor.is_meta]


def _parameter(old: Tensor, tensor: Tensor) -> Tensor:
    """The tensor as what stands in a module in the old one's place: of its class, with its attributes."""
    if not isinstance(old, nn.Parameter):
        return tensor
    new = nn.Parameter.__new__(type(old), tensor, old.requires_grad)
    vars(new).update(vars(old))
    return new


def _is_expanded(to: Target, name: str) -> bool:
    tensor = to.live.tensors.get(name)
    return tensor is not None and not is_extra(name) and bool(shared_dims(tensor))


def _load(to: Target, path: str, state: Mapping[str, Any], *, assign: bool = False) -> None:
    """Have a submodule load a state_dict that says of which versions it is."""
    module = to.module.get_submodule(path)
    given: OrderedDict[str, Any] = OrderedDict(state)
    notes = {name: to.live.notes.get(_join(path, name)) for name, _ in module.named_modules(remove_duplicate=False)}
    # torch writes into the notes that it is given
    given._metadata = {name: dict(note) for name, note in notes.items() if note is not None}  # type: ignore[attr-defined]
    # a module with a load_state_dict of its own may know of no `assign`, and return nothing
    result = module.load_state_dict(given, strict=False, **({"assign": True} if assign else {}))
    lost = [_join(path, name) for name in getattr(result, "missing_keys", ()) if name in state]
    if lost and to.strict:
        raise WeightsMismatch(mismatched=dict.fromkeys(lost, ("a hook that dropped it", "have it")))
    report = to.fit.report
    for name in lost:
        report["missing"].append(name)
        if name in report["loaded"]:
            report["loaded"].remove(name)
            report["matched"] -= 1


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _owner(module: nn.Module, name: str) -> tuple[str, str]:
    """The path of the submodule that holds a tensor, and the tensor's name there: no path where hooks made the name."""
    path, _, leaf = name.rpartition(".")
    try:
        module.get_submodule(path)
    except AttributeError:
        return "", name
    return path, leaf


def _tie(module: nn.Module, name: str, to: str) -> None:
    """Let a name stand for the tensor of another one, if they have come apart."""
    (path, leaf), (other, its_leaf) = _owner(module, name), _owner(module, to)
    owner = module.get_submodule(path)
    one, wanted = getattr(owner, leaf, None), getattr(module.get_submodule(other), its_leaf, None)
    if isinstance(one, Tensor) and isinstance(wanted, Tensor) and (one.is_meta or _place(one) != _place(wanted)):
        setattr(owner, leaf, wanted)


def _place(tensor: Tensor) -> tuple[int, torch.device]:
    return tensor.data_ptr(), tensor.device
