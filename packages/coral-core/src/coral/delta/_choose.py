"""Which codec a tensor is encoded by, from a sample of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from coral.delta._bits import BLOCK_ELEMENTS, Bits
from coral.delta._codecs import Codec, GroupedDelta, PackDelta, Planes, Raw
from coral.delta._config import DeltaConfig

_GAIN = 0.02
"""What an encoding has to save, as a part of the raw bytes, to be worth the work; grouping, of the packed ones."""

_SOONER = 1.1
"""How much longer planes may be than a difference: they need no base, and so are read in half the time."""

_BLOCKS = 3
_SPANS = 16
_SPAN = 1024


class Choice(NamedTuple):
    """A codec, and about what part of the raw bytes it stores."""

    codec: Codec
    ratio: float


def spans(elements: int) -> list[slice]:
    """Where to sample a tensor of so many elements: in its first, middle and last block, many short spans in each.

    Each span lies in one codec block, so that what is encoded can be sampled by decoding three blocks. A small tensor
    is taken whole.
    """
    blocks = -(-elements // BLOCK_ELEMENTS)
    found = []
    for block in sorted({0, blocks // 2, blocks - 1} if blocks else ()):
        begin = block * BLOCK_ELEMENTS
        size = min(BLOCK_ELEMENTS, elements - begin)
        if size <= _SPANS * _SPAN:
            found.append(slice(begin, begin + size))
            continue
        last = size - _SPAN
        starts = (begin + last * number // (_SPANS - 1) for number in range(_SPANS))
        found += [slice(start, start + _SPAN) for start in starts]
    return found


def choose(samples: Sequence[tuple[Bits, Bits | None]], config: DeltaConfig, *, aggressive: bool = False) -> Choice:
    """The codec for a tensor of which `samples` are spans, each with the same span of the base, or None.

    With codec="auto" it is the one that makes the sample shortest, but grouping, which is slow to read, is considered
    only if `aggressive`. A tensor that would not become at least 2 % shorter stays as it is.
    """
    if not samples or config.codec == "raw":
        return Choice(Raw(), 1.0)
    block = np.concatenate([cur for cur, _ in samples])
    bases = [base for _, base in samples if base is not None]
    base = np.concatenate(bases) if len(bases) == len(samples) else None
    found = _shortest(block, base, config, aggressive=aggressive)
    return found if found.ratio <= 1 - _GAIN else Choice(Raw(), 1.0)


def _shortest(block: Bits, base: Bits | None, config: DeltaConfig, *, aggressive: bool) -> Choice:
    entropy = config.coder()
    if base is None or config.codec == "planes":
        return _tried(Planes(entropy), block, base)
    if config.codec == "grouped":
        return _tried(GroupedDelta(entropy), block, base)
    pack = _tried(PackDelta(entropy), block, base)
    if config.codec == "pack":
        return pack
    planes = _tried(Planes(entropy), block, base)
    best = planes if planes.ratio <= pack.ratio * _SOONER else pack
    if aggressive:
        grouped = _tried(GroupedDelta(entropy), block, base)
        best = grouped if grouped.ratio <= best.ratio * (1 - _GAIN) else best
    return best


def _tried(codec: Codec, block: Bits, base: Bits | None) -> Choice:
    return Choice(codec, min(1.0, len(codec.encode(block, base)) / max(1, block.nbytes)))
