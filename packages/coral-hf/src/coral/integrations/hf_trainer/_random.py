"""Random generators as the Trainer's rng_state.pth has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coral.integrations.pytorch._state import decode
from coral.integrations.pytorch._tensors import from_weight

__all__ = ["rng_state"]


def rng_state(saved: Mapping[str, Any], device: int | None) -> dict[str, Any]:
    """The state of one process's generators; of CUDA that of one device, or of all where that is None."""
    python, numpy = saved["python"], decode(saved["numpy"])
    found: dict[str, Any] = {
        "python": (3, tuple(int(word) for word in python["words"]), python["gauss"]),
        "numpy": (
            numpy["bit_generator"],
            numpy["state"]["key"],
            int(numpy["state"]["pos"]),
            int(numpy["has_gauss"]),
            float(numpy["gauss"]),
        ),
        "cpu": from_weight(saved["torch"]).clone(),
    }
    if cuda := [from_weight(one).clone() for one in saved.get("cuda", ())]:
        found["cuda"] = cuda if device is None else cuda[device]
    return found
