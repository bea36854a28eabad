"""How stored differences are made: the options of a repack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from coral.delta._entropy import Entropy, configured
from coral.errors import ConfigError

CodecName = Literal["auto", "raw", "planes", "pack", "grouped"]
EntropyName = Literal["auto", "deflate", "zstd"]


@dataclass(frozen=True, slots=True)
class DeltaConfig:
    """The options of storing tensors as lossless differences.

    `codec` is how a tensor is encoded: "auto" picks by a sample; "pack" and "grouped" take tensors that have no base by
    "planes". `entropy` is the coder beneath: "auto" is zstd where it is installed, else deflate. `level` is the coder's
    compression level, 1 to 22 for zstd and 1 to 9 for deflate; None is a fast setting made for weights, which is
    nearly as small as the highest.

    A tensor whose name has no older version is encoded against the most similar one, if the cosine of the two is
    `similarity_threshold` or more. One checkpoint in `group_size` is a keyframe, which needs no other. `max_depth` is
    how many differences may have to be applied to read a tensor. Tensors below `min_size` bytes are stored whole.

    Raises ConfigError for a value that cannot be, and for entropy="zstd" where zstd is not installed.

    >>> from coral.delta import DeltaConfig
    >>> config = DeltaConfig(entropy="deflate", group_size=4)
    """

    codec: CodecName = "auto"
    entropy: EntropyName = "auto"
    level: int | None = None
    similarity_threshold: float = 0.9
    group_size: int = 8
    max_depth: int = 2
    min_size: int = 4096

    def __post_init__(self) -> None:
        if self.codec not in get_args(CodecName):
            raise self._wrong("codec", 'one of "auto", "raw", "planes", "pack" and "grouped"')
        if self.entropy not in get_args(EntropyName):
            raise self._wrong("entropy", 'one of "auto", "deflate" and "zstd"')
        coder = self.coder()
        if self.level is not None and not self._is_whole("level", 1, type(coder).MAX_LEVEL):
            allowed = f"an int from 1 to {type(coder).MAX_LEVEL}, the levels of {coder.name}"
            raise self._wrong("level", f"{allowed}, or None for the fast setting")
        threshold: object = self.similarity_threshold
        if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise self._wrong("similarity_threshold", "a number from 0 to 1, the cosine of two tensors")
        if not self._is_whole("group_size", 2):
            raise self._wrong("group_size", "an int, 2 or more: the checkpoints to a keyframe, itself included")
        if not self._is_whole("max_depth", 1, 2):
            raise self._wrong("max_depth", "1 or 2: the differences that reading a tensor may take")
        if not self._is_whole("min_size", 0):
            raise self._wrong("min_size", "an int, 0 or more: the bytes below which a tensor is stored whole")

    def coder(self) -> Entropy:
        """The entropy coder that these options name."""
        return configured(self.entropy, self.level)

    def _is_whole(self, name: str, least: int, most: int | None = None) -> bool:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return value >= least and (most is None or value <= most)

    def _wrong(self, name: str, allowed: str) -> ConfigError:
        return ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")
