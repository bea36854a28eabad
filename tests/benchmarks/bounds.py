"""The entropy bound: bits that no coder gets below which takes elements one by one and knows their bases' exponents."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cases import Part

from coral.delta import Bits

__all__ = ["Bound"]

EXACT = 16
"""Bits of an element up to which every difference is counted for itself."""
LEADING = 4
"""Bits counted below the highest of a longer difference; what is below them is noise, a bit for a bit."""
CLASSES = 2 * (33 << LEADING)
CHUNK = 1 << 23


class Bound:
    """Joint counts of differences and of their bases' exponents, and counts of the elements' own exponents.

    The difference is that of the bits as integers, modulo their width. What is not alike to its base is bounded by its
    own exponents, its sign and its mantissa instead, where that is less: for each kind of tensors, over all of it.
    """

    def __init__(self) -> None:
        self._joint: dict[Part, np.ndarray] = {}
        self._noise: dict[Part, int] = {}
        self._alone: dict[Part, np.ndarray] = {}
        self._width: dict[Part, int] = {}

    def add(self, part: Part, block: Bits, base: Bits) -> None:
        """Count the elements of a part."""
        width = self._width[part] = 8 * block.itemsize
        cells = 256 << EXACT if width <= EXACT else 256 * CLASSES
        joint = self._joint.setdefault(part, np.zeros(cells, np.int64))
        alone = self._alone.setdefault(part, np.zeros(256, np.int64))
        for at in range(0, block.size, CHUNK):
            x, y = block[at : at + CHUNK], base[at : at + CHUNK]
            symbols, noise = _symbols(x - y)
            keys = _exponents(y) * (cells // 256) + symbols
            joint += np.bincount(keys, minlength=cells)
            alone += np.bincount(_exponents(x), minlength=256)
            self._noise[part] = self._noise.get(part, 0) + noise

    def bits(self, parts: Iterable[Part]) -> float:
        """Return the bound of some parts together."""
        of_kind: dict[str, list[Part]] = {}
        for part in parts:
            of_kind.setdefault(part.kind, []).append(part)
        return sum(map(self._of_kind, of_kind.values()))

    def _of_kind(self, parts: list[Part]) -> float:
        joint, alone = (sum(counts[part] for part in parts) for counts in (self._joint, self._alone))
        joint = joint.reshape(256, -1)
        noise = sum(self._noise[part] for part in parts)
        differences = _x_log_x(joint.sum(axis=1)) - _x_log_x(joint) + noise
        own = _x_log_x(alone.sum()) - _x_log_x(alone) + int(alone.sum()) * (self._width[parts[0]] - 8)
        return min(differences, own)


def _exponents(block: Bits) -> np.ndarray:
    kind = block.dtype.type
    return ((block << kind(1)) >> kind(8 * block.itemsize - 8)).astype(np.int64)


def _symbols(differences: Bits) -> tuple[np.ndarray, int]:
    """Return what is counted of each difference, and the bits of noise that all of them have besides."""
    width = 8 * differences.itemsize
    if width <= EXACT:
        return differences.astype(np.int64), 0
    signed = differences.view(f"<i{width // 8}").astype(np.float64)
    # A double's exponent and the leading bits of its mantissa are the class; 1.0 is the first that is not 0.
    tops = (np.abs(signed).view(np.int64) >> (52 - LEADING)) - (1023 << LEADING) + 1
    classes = np.maximum(tops, 0)
    noise = np.maximum(((classes - 1) >> LEADING) - LEADING, 0)
    return 2 * classes + (signed < 0), int(noise.sum())


def _x_log_x(counts: np.ndarray) -> float:
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present)).sum())
