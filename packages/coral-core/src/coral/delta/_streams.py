"""Arrays of bytes, each stored by whichever is short: one byte for all of them, the bytes, or an entropy coder's."""

from __future__ import annotations

import numpy as np

from coral._digest import Bytes
from coral.delta._cursor import Cursor
from coral.delta._entropy import Data, Entropy
from coral.delta._layout import entropy as entropy_bits
from coral.delta._layout import strided
from coral.errors import CorruptObject

_CONSTANT, _STORED, _CODED = 0, 1, 2

NOISE = 7.8
"""Bits a byte from which the entropy coder is not asked."""


def write(data: Bytes, entropy: Entropy) -> list[Data]:
    """The parts of a stream that holds `data`; some may be views of it."""
    if not data.size:
        return [bytes((_STORED,))]
    sample = strided(data)
    counts = np.bincount(sample, minlength=256)
    if counts[data[0]] == sample.size and not np.any(data != data[0]):
        return [bytes((_CONSTANT, data[0]))]
    if entropy_bits(counts, sample.size) <= NOISE:
        coded = entropy.compress(data)
        if len(coded) + 4 < data.size:
            return [bytes((_CODED,)), len(coded).to_bytes(4, "little"), coded]
    return [bytes((_STORED,)), data]


def is_noise(data: Bytes) -> bool:
    """Whether a sample of the bytes says that the entropy coder would make nothing of them."""
    sample = strided(data)
    return not sample.size or entropy_bits(np.bincount(sample, minlength=256), sample.size) > NOISE


def read(cursor: Cursor, size: int, entropy: Entropy) -> Bytes:
    """The `size` bytes of the stream that comes next; possibly a read-only view of what is read."""
    kind = cursor.byte()
    if kind == _CONSTANT:
        return np.full(size, cursor.byte(), np.uint8)
    if kind == _STORED:
        return np.frombuffer(cursor.take(size), np.uint8)
    if kind == _CODED:
        return np.frombuffer(entropy.decompress(cursor.take(cursor.u32()), size), np.uint8)
    raise CorruptObject(f"{kind} is no way to store a stream")
