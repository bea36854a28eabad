"""The codecs that coral's are measured against: zipnn, zstd on the XOR, and BitX's way.

Each is given all elements of one part in one piece, which spares it headers, and the elements of its base. It may
store the part as it is, or the XOR with the base, whichever it makes shorter: Adam's exp_avg is no difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import zipnn

from coral.delta import Bits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["BITX", "PEERS", "Peer", "zipnn_raw"]

LEVEL = 3

Peer = Callable[[Bits, Bits], int]
"""Returns the bytes that it makes of a part and its base."""


def zipnn_raw(block: Bits) -> int:
    """Return the bytes that zipnn makes of elements on their own."""
    dtype = {2: "bfloat16", 4: "float32"}[block.itemsize]
    coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    return len(coder.compress(bytearray(block.tobytes())))  # in memory of its own, which zipnn reorders


def _zipnn_xor(block: Bits, base: Bits) -> int:
    return min(zipnn_raw(block), zipnn_raw(block ^ base))


def _zstd_raw(block: Bits) -> int:
    return _zstd(block.view(np.uint8))


def _zstd_xor(block: Bits, base: Bits) -> int:
    return min(_zstd_raw(block), _zstd_raw(block ^ base))


def _split(block: Bits, cuts: tuple[int, ...]) -> int:
    """Rotate the sign to the end, so that the top byte is the exponent, and compress the bytes between cuts apart."""
    kind, width = block.dtype.type, block.itemsize
    rotated = (block << kind(1)) | (block >> kind(8 * width - 1))
    rows = rotated.view(np.uint8).reshape(-1, width)
    edges = (0, *(cut % width for cut in cuts), width)
    return sum(_zstd(np.ascontiguousarray(rows[:, a:b])) for a, b in pairwise(edges))


def _bitx(block: Bits, base: Bits) -> int:
    cuts = tuple(range(1, block.itemsize))
    return min(_split(block, cuts), _split(block ^ base, cuts))


def _bitx_two(block: Bits, base: Bits) -> int:
    return min(_split(block, (-1,)), _split(block ^ base, (-1,)))


def _zstd(data: np.ndarray) -> int:
    return len(zstd.compress(data, LEVEL))


BITX = f"BitX's way: XOR, exponent and mantissa bytes apart, zstd-{LEVEL}"
PEERS: MappingProxyType[str, Peer] = MappingProxyType(
    {
        "zipnn": lambda block, base: zipnn_raw(block),
        "zipnn on the XOR": _zipnn_xor,
        f"zstd-{LEVEL} on the XOR": _zstd_xor,
        f"XOR, exponent and sign + mantissa apart, zstd-{LEVEL}": _bitx_two,
        BITX: _bitx,
    }
)
"""By name. BitX splits into two streams; one for each byte of the mantissa is shorter: coral is held to that."""
