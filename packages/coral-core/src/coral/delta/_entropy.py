"""The entropy coders: deflate, which Python brings, and zstd, where it is installed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, TypeAlias

import numpy as np

from coral.errors import ConfigError, CorruptObject, MissingExtra, NewerFormat

Data: TypeAlias = Any
"""Whatever gives its bytes by the buffer protocol."""

_INSTALL = "pip install 'coral-core[zstd]'"

_MEMORY = 9  # zlib's most: longer blocks, and so fewer tables

WINDOW_LOG = 18
"""No stream is longer than 2^18 bytes; a reader keeps no more than that of what it has decoded."""


@dataclass(frozen=True, slots=True)
class Deflate:
    """Raw deflate (RFC 1951). A level of None codes single bytes, or runs, and looks for no matches."""

    level: int | None = None

    id: ClassVar[int] = 1
    name: ClassVar[str] = "deflate"
    effort: ClassVar[float] = 2.5
    """The bits that coding one more byte has to save, to be worth its time."""

    MAX_LEVEL: ClassVar[int] = 9

    def compress(self, data: Data) -> bytes:
        """The stream of some bytes."""
        if self.level is None:
            strategy = zlib.Z_RLE if _has_runs(data) else zlib.Z_HUFFMAN_ONLY
            coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY, strategy)
        else:
            coder = zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY, zlib.Z_FILTERED)
        return coder.compress(data) + coder.flush()

    def decompress(self, data: Data, size: int) -> bytes:
        """The `size` bytes of a stream; CorruptObject if it holds more or fewer, or if anything comes after it."""
        decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = decoder.decompress(data, size) if size else b""
            if not decoder.eof:  # the end may stand behind the last byte, and an empty stream is nothing but its end
                found += decoder.decompress(decoder.unconsumed_tail if size else data, 1)
        except zlib.error as error:
            raise CorruptObject(f"a deflate stream cannot be decoded: {error}") from error
        return _whole(found, size, eof=decoder.eof, behind=bool(decoder.unused_data or decoder.unconsumed_tail))


@dataclass(frozen=True, slots=True)
class Zstd:
    """One zstd frame (RFC 8878). A level of None looks for long matches only, which is what differences have."""

    level: int | None = None

    id: ClassVar[int] = 2
    name: ClassVar[str] = "zstd"
    effort: ClassVar[float] = 0.4
    """The bits that coding one more byte has to save, to be worth its time."""

    MAX_LEVEL: ClassVar[int] = 22

    def compress(self, data: Data) -> bytes:
        """The frame of some bytes."""
        zstd = _zstd_or_raise()
        compressor = zstd.ZstdCompressor(options=_zstd_options(self.level))
        frame: bytes = compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
        return frame

    def decompress(self, data: Data, size: int) -> bytes:
        """The `size` bytes of a frame; CorruptObject if it holds more or fewer, or if anything comes after it."""
        zstd = _zstd_or_raise()
        decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
        try:
            found: bytes = decoder.decompress(data, size)
            if not decoder.eof:
                found += decoder.decompress(b"", 1)
        except (zstd.ZstdError, EOFError) as error:
            raise CorruptObject(f"a zstd frame cannot be decoded: {error}") from error
        return _whole(found, size, eof=decoder.eof, behind=bool(decoder.unused_data))


Entropy: TypeAlias = Deflate | Zstd
"""An entropy coder; its `id` stands in what it encoded."""


def entropy_of(id: int) -> Entropy:
    """The coder to read streams of that `id` with.

    Raises MissingExtra for zstd where it is not installed, and NewerFormat for an id that this version does not know.
    """
    match id:
        case Deflate.id:
            return Deflate()
        case Zstd.id:
            _zstd_or_raise()
            return Zstd()
    raise NewerFormat(f"entropy coder {id} is not known to this version of coral: install a newer one.")


def configured(name: str, level: int | None) -> Entropy:
    """The coder of that name ("auto": zstd where it is installed), to write with."""
    if name == "zstd" and _zstd() is None:
        raise ConfigError(f"entropy is 'zstd', which is not installed; run {_INSTALL}, or leave it at 'auto'.")
    return Deflate(level) if name == "deflate" or _zstd() is None else Zstd(level)


def _whole(found: bytes, size: int, *, eof: bool, behind: bool) -> bytes:
    if len(found) != size or not eof:
        raise CorruptObject(f"a compressed stream does not hold exactly the {size} bytes it should")
    if behind:
        raise CorruptObject("something stands behind the end of a compressed stream")
    return found


def _has_runs(data: Data) -> bool:
    """Whether a sample of the bytes repeats often enough for coding runs to pay."""
    sample = np.frombuffer(data, np.uint8)
    step = max(1, sample.size // 8192)
    here, there = sample[:-1:step], sample[1::step]
    return 2 * int(np.count_nonzero(here == there)) > here.size


@cache
def _zstd() -> Any:
    """The module of the standard library from Python 3.14 on, else the backport, else None."""
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(module)
        except ImportError:
            pass
    return None


def _zstd_or_raise() -> Any:
    zstd = _zstd()
    if zstd is None:
        raise MissingExtra(f"this is stored with zstd, which is not installed; run {_INSTALL}.")
    return zstd


@cache
def _zstd_options(level: int | None) -> dict[int, int]:
    zstd = _zstd_or_raise()
    p = zstd.CompressionParameter
    if level is not None:
        return {p.compression_level: level, p.window_log: WINDOW_LOG}
    return {p.strategy: zstd.Strategy.fast, p.window_log: 17, p.hash_log: 6, p.chain_log: 6, p.min_match: 7}
