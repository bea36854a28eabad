"""What a tensor is best stored as a difference from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from coral.delta import Bits, Choice, DeltaConfig, Raw, carrier, choose, similarity, spans
from coral.errors import CorruptObject
from coral.objects import TensorEntry
from coral.store import Chain, Copies
from coral.store._pack import RAW
from coral.weights import DTYPES

__all__ = ["Bases", "Encoding"]

_WHOLE = 0.65  # the part of its bytes that a keyframe has to shrink to: it is read with each of its group
_PAYS = 0.15  # the part by which keyframes as differences from the first one have to shorten a group


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a tensor is to be encoded: by which codec, and against which base."""

    source: Chain
    base: Chain | None
    choice: Choice

    def pays(self, stored: int) -> bool:
        """Whether the tensor becomes at least 2 % shorter than it is stored now, and is not encoded so already."""
        codec, now = self.choice.codec, self.source.entry
        base = self.base.entry.id if self.base else None
        if codec.code == RAW or (codec.code, codec.params, base) == (now.codec, now.params, now.base):
            return False
        return self.choice.ratio * now.nbytes < 0.98 * stored


@dataclass(slots=True)
class Bases:
    """Chooses among the tensors of one keyframe, for one commit at a time."""

    copies: Copies
    config: DeltaConfig
    candidates: Mapping[str, TensorEntry]  # of the keyframe, by name
    unreadable: Set[str]  # ids that nothing may be a difference from
    keyframe: bool  # whether the commit is to be a keyframe itself
    aggressive: bool
    known: dict[str, Choice]  # by name: what was chosen for another commit of the same keyframe
    _samples: dict[str, list[Bits]] = field(default_factory=dict)

    def encoding(self, name: str, tensor: TensorEntry) -> Encoding:
        """How to encode a tensor of that name; CorruptObject if it cannot be read."""
        source = next(self._readable(tensor), None)
        if source is None:
            raise CorruptObject(f"tensor {name!r} ({tensor.id[:12]}) is in no pack that can be read")
        chosen, named = self.known.get(name), self._named(name, source)
        if chosen is not None and (named is not None or not chosen.codec.needs_base):
            return Encoding(source, named if chosen.codec.needs_base else None, chosen)
        found = self._encoding(source, named)
        if not self.keyframe and (found.base is None or found.base is named):
            self.known[name] = found.choice
        return found

    def _encoding(self, source: Chain, named: Chain | None) -> Encoding:
        sample = self._sample(source)
        base = None
        if self.config.codec not in ("raw", "planes"):
            base = named or self._most_similar(source, sample)
        others: Sequence[Bits | None] = self._sample(base) if base else [None] * len(sample)
        choice = choose(list(zip(sample, others, strict=True)), self.config, aggressive=self.aggressive)
        if self.keyframe and choice.codec.needs_base:
            alone = choose([(span, None) for span in sample], self.config)
            # It stands alone, unless being a difference from the first keyframe pays for its whole group.
            if (alone.ratio - choice.ratio) / self.config.group_size <= _PAYS * choice.ratio:
                choice = alone
        if self.keyframe and not choice.codec.needs_base and choice.ratio > _WHOLE:
            return Encoding(source, None, Choice(Raw(), 1.0))
        return Encoding(source, base if choice.codec.needs_base else None, choice)

    def _named(self, name: str, source: Chain) -> Chain | None:
        """The keyframe's tensor of the same name, dtype and shape."""
        named, entry = self.candidates.get(name), source.entry
        if named is None or (named.dtype, named.shape) != (entry.dtype, entry.shape):
            return None
        return self.usable(named, source)

    def _most_similar(self, source: Chain, sample: list[Bits]) -> Chain | None:
        """The tensor of the keyframe, of the same dtype and shape, that is most like it, if it is like it enough."""
        entry = source.entry
        best, found = self.config.similarity_threshold, None
        assert entry.dtype is not None
        mine = _values(sample, entry.dtype)
        for other in {e.id: e for e in self.candidates.values()}.values():
            if (other.dtype, other.shape) == (entry.dtype, entry.shape) and other.id != entry.id:
                chain = self.usable(other, source)
                if chain is not None:
                    theirs = _values(self._sample(chain), entry.dtype)
                    alike = similarity(mine, theirs, entry.dtype)
                    if alike >= best:
                        best, found = alike, chain
        return found

    def _readable(self, tensor: TensorEntry) -> Iterator[Chain]:
        """The copies of a tensor that say of it what the tree says."""
        known = tensor.dtype, tensor.shape, tensor.nbytes
        for chain in self.copies.chains(tensor.id):
            if (chain.entry.dtype, chain.entry.shape, chain.entry.nbytes) == known:
                yield chain

    def usable(self, tensor: TensorEntry, source: Chain) -> Chain | None:
        """A tensor as a base, or what it is itself a difference from where it is one too often."""
        chain = next(self._readable(tensor), None)
        while chain is not None:
            ids = {link.entry.id for link in chain.links}
            if source.entry.id in ids or not self.unreadable.isdisjoint(ids):
                return None
            if chain.depth <= (0 if self.keyframe else self.config.max_depth - 1):
                return chain
            chain = next(self.copies.chains(chain.links[1].entry.id), None)
        return None

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
