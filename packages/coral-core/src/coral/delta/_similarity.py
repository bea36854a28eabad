"""How alike two tensors are, for finding the base of one that was renamed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coral.delta._bits import carrier
from coral.weights import DTYPES, Array

_SAMPLE = 1 << 16


def similarity(a: Array, b: Array, dtype: str) -> float:
    """The cosine of the values of two tensors of one dtype and size, 0 to 1, from a sample of their elements.

    A negative cosine is 0, two tensors of zeros are 1, and elements that are not finite in both are left out. For
    dtypes that numpy cannot count with (float8, float4, bool) it is the part of the elements that are equal.

    >>> similarity(np.ones(4, np.float32), np.ones(4, np.float32), "float32")
    1.0
    """
    one, two = _sample(a, dtype), _sample(b, dtype)
    if one.size != two.size:
        raise ValueError(f"tensors of {a.size} and {b.size} elements have no similarity")
    if not one.size:
        return 1.0
    with np.errstate(all="ignore"):  # a NaN that signals is one like any other
        x, y = _values(one, dtype), _values(two, dtype)
    if x is None or y is None:
        return float(np.count_nonzero(one == two)) / one.size
    known = np.isfinite(x) & np.isfinite(y)
    return _cosine(x[known], y[known])


def _cosine(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    largest = [float(np.abs(v).max(initial=0.0)) for v in (x, y)]
    if not all(largest):
        return 1.0 if not any(largest) else 0.0
    x, y = x / largest[0], y / largest[1]  # so that no square overflows
    found = float(x @ y) / float(np.sqrt(x @ x) * np.sqrt(y @ y))
    return min(1.0, max(0.0, found))


def _sample(tensor: Array, dtype: str) -> NDArray[Any]:
    flat = np.ascontiguousarray(tensor).reshape(-1).view(carrier(dtype))
    return flat[:: max(1, flat.size // _SAMPLE)]


def _values(bits: NDArray[Any], dtype: str) -> NDArray[np.float64] | None:
    """The elements as numbers; those of complex ones side by side; None where numpy cannot count with them."""
    known = DTYPES[dtype]
    bits = np.ascontiguousarray(bits)
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if dtype == "bool" or (not known.native and dtype != "complex32"):
        return None
    parts = {"complex32": "<f2", "complex64": "<f4", "complex128": "<f8"}
    return bits.view(parts.get(dtype, known.carrier)).astype(np.float64)
