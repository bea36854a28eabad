"""Tensors to WeightTensors and back, bit for bit and without pickle.

numpy has no bfloat16, float8, float4 or complex32: their bits travel in integers of the same width. Nothing passes
through another float type, which would change NaN payloads.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from coral import WeightTensor
from coral.errors import UnsupportedValue
from coral.weights import DTYPES

__all__ = ["check", "from_weight", "to_weight"]

NAMES = MappingProxyType({getattr(torch, name): name for name in DTYPES if hasattr(torch, name)})
"""torch's dtypes that coral stores, and coral's names for them; older versions of torch lack some."""

BITS = MappingProxyType(
    {
        dtype: {1: torch.uint8, 2: torch.int16, 4: torch.int32}[DTYPES[name].itemsize]
        for dtype, name in NAMES.items()
        if not DTYPES[name].native
    }
)
"""The integer dtype that carries the bits of each dtype that numpy lacks."""

PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""The classes that are known not to change what an operation does."""

_TORCH = MappingProxyType({name: dtype for dtype, name in NAMES.items()})


def check(tensor: Tensor, path: str, *, meta: bool = False) -> str:
    """Return coral's name of the tensor's dtype; UnsupportedValue names the tensor if it cannot be stored exactly.

    With `meta` it may be on the meta device, and have no data yet.
    """
    if type(tensor) in PLAIN:
        return _check(tensor, path, meta)
    with torch._C.DisableTorchFunctionSubclass():
        if is_lazy(tensor) or hasattr(tensor, "__tensor_flatten__"):
            raise UnsupportedValue(f"{path}: {_why_not(tensor)}", path=path)
        return _check(tensor, path, meta)


def detached(tensor: Tensor) -> Tensor:
    """The same memory as a plain Tensor outside of any graph, whatever a subclass makes of its operations."""
    if type(tensor) in PLAIN:
        return tensor.detach()
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(Tensor)


def carried(tensor: Tensor) -> Tensor:
    """A tensor that numpy can hold and that shares the given one's memory; its bits, where numpy lacks the dtype."""
    bits = BITS.get(tensor.dtype)
    if bits is None:
        return tensor
    # a conjugate is a flag that a view of the bits would lose
    return tensor.resolve_conj().resolve_neg().view(bits)


def array(tensor: Tensor, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """The memory of a CPU tensor made by `carried` as an ndarray in the carrier of dtype `name`."""
    return tensor.numpy().view(DTYPES[name].carrier)


def to_weight(tensor: Tensor, path: str = "tensor", *, copy: bool = True) -> WeightTensor:
    """The tensor as a WeightTensor: a copy, or with `copy=False` its own memory where that will do.

    Whatever its device, strides and class; `path` is its name in an UnsupportedValue.
    """
    name = check(tensor, path)
    plain = carried(detached(tensor)).resolve_conj().resolve_neg()
    if plain.device.type != "cpu":
        plain = plain.cpu()
    elif copy:
        plain = plain.clone(memory_format=torch.contiguous_format)
    return WeightTensor(array(plain, name), dtype=name)


def from_weight(weight: WeightTensor) -> Tensor:
    """A CPU tensor on the memory of `weight.data`, or on a copy where torch could not use or write that."""
    dtype = _TORCH.get(weight.dtype)
    if dtype is None:
        raise UnsupportedValue(f"torch {torch.__version__} has no dtype {weight.dtype}; a newer torch may have")
    data = weight.data
    if not data.flags.carray:  # in C order, aligned and writable
        data = data.copy(order="C")
    # the carrier is little-endian, as are the machines that torch runs on; the view takes the "<" off its name
    tensor = torch.from_numpy(data.view(data.dtype.newbyteorder("=")))
    if not data.size:
        tensor = tensor.new_empty(data.shape)  # numpy's empty arrays have strides that torch cannot view
    return tensor if tensor.dtype is dtype else tensor.view(dtype)


def _check(tensor: Tensor, path: str, meta: bool) -> str:
    name = NAMES.get(tensor.dtype)
    if name is None or tensor.layout is not torch.strided or (tensor.is_meta and not meta) or tensor.is_nested:
        raise UnsupportedValue(f"{path}: {_why_not(tensor)}", path=path)
    return name


def _why_not(tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "an uninitialised lazy tensor; run one batch through the model first"
    if tensor.is_nested:
        return "a nested tensor has no one shape; store its components"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout} cannot be stored; make it dense with .to_dense()"
    if tensor.is_meta:
        return "a tensor on the meta device has no data; give the model real memory first"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype}) cannot be stored; store .int_repr() and its scales"
    if tensor.dtype not in NAMES:
        return f"dtype {tensor.dtype} cannot be stored; known are {', '.join(DTYPES)}"
    # DTensor and other wrappers say what they are with __tensor_flatten__
    return f"a {type(tensor).__name__} keeps its data in other tensors; store those, or a full tensor"
