"""Which bits of a run of differences are noise and which are symbols: the cheapest cut, estimated from a sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coral.delta._bits import Bits

WIDTHS = (2, 4, 8)
"""Bits a symbol may have."""

SAMPLE = 2048
"""Elements, or bytes, that an estimate is made from."""

_ESCAPE = 5.0  # bits on top of each escape's own: it is slow to write and to read
_X_LOG_X = np.arange(2 * SAMPLE + 1) * np.log2(np.maximum(np.arange(2 * SAMPLE + 1), 1))


class Layout(NamedTuple):
    """How a run is packed: `shift` low bits as they are, what is above them as symbols of `width` bits."""

    shift: int
    width: int

    @property
    def cap(self) -> int:
        """The symbol that stands for all high parts that are none of the others."""
        return (1 << self.width) - 1

    @property
    def bias(self) -> int:
        """The symbol of a high part of 0."""
        return 1 << (self.width - 1)


def strided(values: NDArray[Any]) -> NDArray[Any]:
    """Between SAMPLE and twice as many of the values, from all over; all of them where there are fewer."""
    return values[:: max(1, values.size // SAMPLE)][: 2 * SAMPLE]


def entropy(counts: NDArray[np.intp], total: int) -> float:
    """The entropy in bits of what a sample's histogram is about; a small sample's own is lower, and is corrected."""
    found = np.log2(total) - float(_X_LOG_X[counts].sum()) / total
    return float(found) + (int(np.count_nonzero(counts)) - 1) / (1.39 * total)


def coded(bits_a_byte: float) -> float:
    """What an entropy coder makes of bytes of that entropy, in bits a byte: it does worse where the entropy is low."""
    return min(8.0, bits_a_byte + min(bits_a_byte, max(0.02, 0.6 - 0.1 * bits_a_byte)))


def estimate(differences: Bits, effort: float = 0.0) -> tuple[float, Layout]:
    """About how many bits an element takes, and the layout for that.

    `effort` is what the entropy coder costs: the bits that giving it one more byte has to save.
    """
    bits = differences.dtype.itemsize * 8
    if not differences.size:
        return 0.0, Layout(0, 2)
    sample = np.ascontiguousarray(strided(differences))
    lengths = _lengths(sample)
    median = int(np.searchsorted(np.cumsum(np.bincount(lengths)), sample.size / 2))
    costs = {layout: _cost(sample, lengths, layout) for layout in _worth_a_try(median, bits, effort)}
    best = min(costs, key=lambda layout: costs[layout] + effort * layout.width / 8)
    return costs[best], best


def _worth_a_try(median: int, bits: int, effort: float) -> list[Layout]:
    """Layouts for differences of that median length; shifts are multiples of 4 where they can be: those are fast."""
    if median > 8:
        found = [Layout((median - 3) // 4 * 4, 8), Layout((median - 3) // 8 * 8 + 8, 8)]
        if effort > 1:
            found += [Layout(median - 1, 4), Layout((median + 2) // 4 * 4, 4)]
        return [layout for layout in found if layout.shift < bits]
    few = [Layout(shift, 8) for shift in range(1, median - 4)]  # where many differences are just beyond a byte
    return [Layout(0, width) for width in WIDTHS] + few


def _lengths(sample: Bits) -> NDArray[np.intc]:
    """The bits that each difference takes, its sign among them."""
    signed = sample.view(f"<i{sample.dtype.itemsize}")
    zigzag = (signed << 1) ^ (signed >> (signed.dtype.itemsize * 8 - 1))
    return np.frexp(zigzag.view(sample.dtype).astype(np.float64))[1]


def _cost(sample: Bits, lengths: NDArray[np.intc], layout: Layout) -> float:
    shift, width = layout
    kind = sample.dtype.type
    bits = sample.dtype.itemsize * 8
    high = (sample + kind(layout.bias << shift & ((1 << bits) - 1))) >> kind(shift)
    symbols = np.minimum(high, kind(layout.cap)).astype(np.uint8)
    counts = np.bincount(symbols, minlength=256)
    found = shift + coded(entropy(counts, sample.size) * 8 / width) * width / 8
    escapes = int(counts[layout.cap])
    if escapes:
        rest = np.maximum(lengths[symbols == layout.cap] - shift, 1)
        each = entropy(np.bincount(rest), escapes) + float(rest.mean()) - 1
        found += min(each + _ESCAPE, bits) * escapes / sample.size
    return found
