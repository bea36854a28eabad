"""Lossless differences between tensors: codecs for blocks of bits, and the choice among them.

Nothing here reads or writes files, and nothing knows of packs. A tensor is cut into blocks of `BLOCK_ELEMENTS`; each
is encoded, and decoded, on its own, against the block of the base at the same place.

>>> import numpy as np
>>> from coral.delta import DeltaConfig, choose
>>> base = np.arange(10_000, dtype=np.float32).view(np.uint32)
>>> block = base + np.uint32(3)
>>> codec, ratio = choose([(block, base)], DeltaConfig())
>>> data, out = codec.encode(block, base), np.empty_like(base)
>>> codec.decode(data, base, out)
>>> bool((out == block).all())
True
"""

from coral.delta._bits import BLOCK_ELEMENTS, Bits, carrier
from coral.delta._choose import Choice, choose, spans
from coral.delta._codecs import Codec, GroupedDelta, PackDelta, Planes, Raw, Same, codec_of
from coral.delta._config import DeltaConfig
from coral.delta._entropy import Deflate, Entropy, Zstd, entropy_of
from coral.delta._similarity import similarity

__all__ = [
    "BLOCK_ELEMENTS",
    "Bits",
    "Choice",
    "Codec",
    "Deflate",
    "DeltaConfig",
    "Entropy",
    "GroupedDelta",
    "PackDelta",
    "Planes",
    "Raw",
    "Same",
    "Zstd",
    "carrier",
    "choose",
    "codec_of",
    "entropy_of",
    "similarity",
    "spans",
]
