"""What a tensor is best stored as a difference from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coral.delta import Bits, Choice, DeltaConfig, carrier, choose, similarity, spans
from coral.errors import CorruptObject
from coral.objects import TensorEntry
from coral.store import Chain, Copies
from coral.weights import DTYPES

__all__ = ["Bases", "Encoding"]

_PAYS = 0.15  # the part by which keyframes as differences from the first one have to shorten a group


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a tensor is to be encoded: by which codec, and against which base."""

    source: Chain
    base: Chain | None
    choice: Choice


@dataclass(slots=True)
class Bases:
    """Chooses among the tensors of one keyframe, for one commit at a time."""

    copies: Copies
    config: DeltaConfig
    candidates: Mapping[str, TensorEntry]  # of the keyframe, by name
    keyframe: bool  # whether the commit is to be a keyframe itself
    aggressive: bool = False
    _samples: dict[str, list[Bits]] = field(default_factory=dict)

    def encoding(self, name: str, id: str) -> Encoding:
        """How to encode a tensor of that name; CorruptObject if it cannot be read."""
        source = next(self.copies.chains(id), None)
        if source is None:
            raise CorruptObject(f"tensor {name!r} ({id[:12]}) is in no pack that can be read")
        sample = self._sample(source)
        base = self._base(name, source, sample) if self.config.codec not in ("raw", "planes") else None
        others: Sequence[Bits | None] = self._sample(base) if base else [None] * len(sample)
        choice = choose(list(zip(sample, others, strict=True)), self.config, aggressive=self.aggressive)
        if self.keyframe and choice.codec.needs_base:
            alone = choose([(span, None) for span in sample], self.config)
            # It stands alone, unless being a difference from the first keyframe pays for its whole group.
            if (alone.ratio - choice.ratio) / self.config.group_size <= _PAYS * choice.ratio:
                return Encoding(source, None, alone)
        return Encoding(source, base if choice.codec.needs_base else None, choice)

    def _base(self, name: str, source: Chain, sample: list[Bits]) -> Chain | None:
        entry = source.entry
        named = self.candidates.get(name)
        if named is not None and (named.dtype, named.shape) == (entry.dtype, entry.shape):
            return self._chain(named.id, source)
        best: tuple[float, str] = (self.config.similarity_threshold, "")
        assert entry.dtype is not None
        mine = _values(sample, entry.dtype)
        for other in {e.id: e for e in self.candidates.values()}.values():
            if (other.dtype, other.shape) == (entry.dtype, entry.shape) and other.id != entry.id:
                chain = self._chain(other.id, source)
                if chain is not None:
                    theirs = _values(self._sample(chain), entry.dtype)
                    best = max(best, (similarity(mine, theirs, entry.dtype), other.id))
        return self._chain(best[1], source) if best[1] else None

    def _chain(self, id: str, source: Chain) -> Chain | None:
        """A tensor as a base, or what it is itself a difference from where it is one too often."""
        while True:
            chain = next(self.copies.chains(id), None)
            if chain is None or any(link.entry.id == source.entry.id for link in chain.links):
                return None
            if chain.depth <= (0 if self.keyframe else self.config.max_depth - 1):
                return chain
            id = chain.links[1].entry.id

    def _sample(self, chain: Chain) -> list[Bits]:
        """Spans of a tensor, of the blocks that they lie in one unit each is read."""
        entry = chain.entry
        if entry.id not in self._samples:
            assert entry.dtype is not None
            bits = carrier(entry.dtype)
            units: dict[int, Bits] = {}
            found = []
            for span in spans(entry.nbytes // bits.itemsize):
                at = span.start * bits.itemsize // chain.unit * chain.unit
                if at not in units:
                    data = np.empty(min(chain.unit, entry.nbytes - at), np.uint8)
                    chain.read(at, data)
                    units = {at: data.view(bits)}  # spans come in order
                first = span.start - at // bits.itemsize
                found.append(units[at][first : first + span.stop - span.start].copy())
            self._samples[entry.id] = found
        return self._samples[entry.id]


def _values(sample: list[Bits], dtype: str) -> np.ndarray:
    joined = np.concatenate(sample) if sample else np.empty(0, carrier(dtype))
    return joined.view(DTYPES[dtype].numpy)
