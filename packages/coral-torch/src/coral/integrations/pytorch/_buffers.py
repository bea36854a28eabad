"""Copies of tensors in memory that is used again: all that a training loop waits for when it saves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coral import WeightTensor
from coral.integrations.pytorch._tensors import BITS, PLAIN, array, carried, check, detached
from coral.training import copy_all

__all__ = ["TensorBuffers"]


Flat = NDArray[np.uint8]


@dataclass(slots=True)
class _Slot:
    """A buffer, for tensors of one dtype, shape and device; and where the last one lay, if it was a run of bytes."""

    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    on_cpu: bool
    tensor: Tensor
    weight: WeightTensor
    flat: Flat
    source: Flat | None = None
    address: int = 0

    def is_of(self, tensor: Tensor) -> bool:
        """Whether it is the tensor of last time, as it mostly is: then nothing about it has to be looked at again."""
        return (
            type(tensor) in PLAIN
            and tensor.dtype is self.dtype
            and tensor.shape == self.shape
            and tensor.data_ptr() == self.address
            and tensor.device == self.device
            and tensor.is_contiguous()
            and not (tensor.is_complex() or tensor.is_neg())
        )


class TensorBuffers:
    """A buffer for each path: the second copy of a tensor goes where the first one went.

    The caller sees to it that the first one is no longer needed by then. Fresh memory would cost more than the copy:
    the system hands it out page by page, each zeroed first. What lies in CPU memory is copied by `finish`, shared out
    over all threads once, rather than tensor by tensor.

        buffers = TensorBuffers()
        buffers.begin()
        weights = {name: buffers.copy(name, tensor) for name, tensor in model.state_dict().items()}
        buffers.finish()
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._used: set[str] = set()
        self._devices: set[torch.device] = set()
        self._todo: list[tuple[Flat, Flat]] = []

    def begin(self) -> None:
        """Begin a new set of copies: what the last one left, even if it was not finished, may be written over."""
        self._used.clear()
        self._devices.clear()
        self._todo.clear()

    def copy(self, path: str, tensor: Tensor) -> WeightTensor:
        """A copy of the tensor in CPU memory, complete only after `finish`: the tensor must not change until then."""
        while path in self._used:  # {"a.b": ...} beside {"a": {"b": ...}}
            path += "'"
        slot = self._slots.get(path)
        if slot is not None and slot.source is not None and slot.is_of(tensor):
            self._todo.append((slot.flat, slot.source))
            self._used.add(path)
            return slot.weight.renewed()
        name = check(tensor, path)
        if slot is None or slot.dtype is not tensor.dtype or slot.shape != tensor.shape or slot.device != tensor.device:
            slot = self._slots[path] = _new_slot(tensor, name)
        source = carried(detached(tensor))
        slot.source, slot.address = None, 0
        if slot.on_cpu and source.is_contiguous() and not (source.is_conj() or source.is_neg()):
            flat = source.as_strided((source.numel(),), (1,))  # a dimension of one element may have any stride
            slot.source, slot.address = flat.view(torch.uint8).numpy(), tensor.data_ptr()
            self._todo.append((slot.flat, slot.source))
        elif slot.on_cpu:
            slot.tensor.copy_(source)
        else:
            slot.tensor.copy_(source, non_blocking=slot.tensor.is_pinned())
            self._devices.add(slot.device)
        self._used.add(path)
        # a new WeightTensor each time: it remembers its id, and the memory holds another tensor now
        return slot.weight.renewed()

    def finish(self) -> None:
        """Complete the copies, and let go of the buffers that no `copy` has used since `begin`."""
        copy_all(self._todo)
        self._todo.clear()
        for device in self._devices:
            torch.accelerator.synchronize(device)
        if len(self._used) < len(self._slots):
            self._slots = {path: slot for path, slot in self._slots.items() if path in self._used}


def _new_slot(tensor: Tensor, name: str) -> _Slot:
    # only pinned memory can be written to while the program goes on; elsewhere than on CUDA the copy waits
    dtype = BITS.get(tensor.dtype, tensor.dtype)
    device = tensor.device
    memory = torch.empty(tensor.shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    weight = WeightTensor(array(memory, name), dtype=name)
    return _Slot(tensor.dtype, tensor.shape, device, device.type == "cpu", memory, weight, weight.bytes())
