"""What the difference between two checkpoints takes: by coral's codecs, by the peers', and by its entropy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from bounds import Bound
from cases import Part, part_of
from xor_peers import PEERS

from coral import DeltaConfig
from coral.delta import BLOCK_ELEMENTS, Bits, Codec, Raw, choose, spans

__all__ = ["AGGRESSIVE", "CORAL", "DEFLATE", "Pairs"]

CORAL = "coral"
DEFLATE = "coral, deflate alone"
AGGRESSIVE = "coral, aggressive"
CODECS = {
    CORAL: (DeltaConfig(entropy="zstd"), False),
    DEFLATE: (DeltaConfig(entropy="deflate"), False),
    AGGRESSIVE: (DeltaConfig(entropy="zstd"), True),
    f"{AGGRESSIVE}, deflate alone": (DeltaConfig(entropy="deflate"), True),
}
TABLE = 8
"""Bytes that a pack's table has for each block."""

Tensors = Mapping[str, Bits]


class Pairs:
    """Adds up the sizes of some checkpoints, each as a difference from the one before, by method and part."""

    def __init__(self) -> None:
        self.raw: Counter[Part] = Counter()
        self.sizes: dict[str, Counter[Part]] = {name: Counter() for name in (*CODECS, *PEERS)}
        self.bound = Bound()

    def add(self, before: Tensors, after: Tensors) -> None:
        """Encode every tensor of `after`, whose base is that of the same name in `before`, by every method."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for name, (config, aggressive) in CODECS.items():
                blocks = _blocks(before, after, config, aggressive)
                self._count(name, threads.map(lambda work: (work[0], work[1]()), blocks))
            parts = list(_joined(before, after))
            for name, peer in PEERS.items():
                self._count(name, threads.map(lambda joined, peer=peer: (joined[0], peer(*joined[1:])), parts))
        for part, block, base in parts:
            self.raw[part] += block.nbytes
            self.bound.add(part, block, base)

    def _count(self, name: str, found: Iterable[tuple[Part, int]]) -> None:
        for part, size in found:
            self.sizes[name][part] += size

    def ratio(self, name: str, counts: Callable[[Part], bool]) -> float:
        """Return what a method makes of the parts that count, as a part of their raw bytes."""
        return _sum(self.sizes[name], counts) / _sum(self.raw, counts)

    def bound_ratio(self, counts: Callable[[Part], bool]) -> float:
        """Return the entropy bound of the parts that count, as a part of their raw bytes."""
        return self.bound.bits(filter(counts, self.raw)) / 8 / _sum(self.raw, counts)


def _sum(sizes: Counter[Part], counts: Callable[[Part], bool]) -> int:
    return sum(size for part, size in sizes.items() if counts(part))


def _blocks(
    before: Tensors, after: Tensors, config: DeltaConfig, aggressive: bool
) -> Iterator[tuple[Part, Callable[[], int]]]:
    """Yield what there is to do: the encoding of one block, or nothing for a tensor that stays whole."""
    for name, block in after.items():
        base, part = before[name], part_of(name)
        codec: Codec = Raw()
        if block.nbytes >= config.min_size:
            samples = [(block[span], base[span]) for span in spans(block.size)]
            codec = choose(samples, config, aggressive=aggressive).codec
        if isinstance(codec, Raw):
            yield part, lambda size=block.nbytes: size
            continue
        for at in range(0, block.size, BLOCK_ELEMENTS):
            piece = slice(at, at + BLOCK_ELEMENTS)
            yield part, lambda c=codec, x=block[piece], y=base[piece]: _encoded(c, x, y)


def _encoded(codec: Codec, block: Bits, base: Bits) -> int:
    data, out = codec.encode(block, base), np.empty_like(block)
    codec.decode(data, base, out)
    assert np.array_equal(out, block), f"{codec} does not decode to what was encoded"
    return len(data) + TABLE


def _joined(before: Tensors, after: Tensors) -> Iterator[tuple[Part, Bits, Bits]]:
    """Yield each part in one piece, with its base."""
    names: dict[Part, list[str]] = {}
    for name in after:
        names.setdefault(part_of(name), []).append(name)
    for part, of_part in names.items():
        yield part, *(np.concatenate([tensors[name] for name in of_part]) for tensors in (after, before))
