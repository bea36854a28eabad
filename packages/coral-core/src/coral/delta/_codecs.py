"""The codecs: how a block of a tensor is encoded, and read again.

An encoded block begins with a byte that says which form it has. A codec may write the simpler forms where they are
shorter, and reads no others than those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from coral.delta import _groups, _layout, _pack, _planes
from coral.delta._bits import Bits, scratch
from coral.delta._cursor import Cursor
from coral.delta._entropy import Data, Entropy, entropy_of
from coral.errors import CorruptObject, NewerFormat

_RAW, _SAME, _PLANES, _PACK, _GROUPED = b"\0", b"\1", b"\2", b"\3", b"\4"

_DOUBT = 0.3
"""The part of the raw bits from which a difference is held against planes: a mantissa alone has more than that."""


@dataclass(frozen=True, slots=True)
class Raw:
    """The block's bytes as they are."""

    code: ClassVar[int] = 0
    needs_base: ClassVar[bool] = False

    @property
    def params(self) -> int:
        """What a reader needs beside the code: nothing."""
        return 0

    def encode(self, block: Bits, base: Bits | None) -> bytes:  # noqa: ARG002 - one shape for all codecs
        """The form byte and the bytes of `block`."""
        return _raw(block)

    def decode(self, data: Data, base: Bits | None, out: Bits) -> None:
        """Fill `out`; CorruptObject where `data` is not what `encode` gives for a block of that size."""
        _decode(data, base, out, None, _RAW)


@dataclass(frozen=True, slots=True)
class Same:
    """The base itself."""

    code: ClassVar[int] = 1
    needs_base: ClassVar[bool] = True

    @property
    def params(self) -> int:
        """What a reader needs beside the code: nothing."""
        return 0

    def encode(self, block: Bits, base: Bits | None) -> bytes:
        """The form byte alone, or the whole block where it differs from the base."""
        return _SAME if np.array_equal(block, _given(base, block)) else _raw(block)

    def decode(self, data: Data, base: Bits | None, out: Bits) -> None:
        """Fill `out`; CorruptObject where `data` is not what `encode` gives for a block of that size."""
        _decode(data, _given(base, out), out, None, _RAW + _SAME)


@dataclass(frozen=True, slots=True)
class Planes:
    """Byte planes of the elements, for what has no base or is not like it: exponents compress, mantissas do not."""

    entropy: Entropy

    code: ClassVar[int] = 2
    needs_base: ClassVar[bool] = False

    @property
    def params(self) -> int:
        """What a reader needs beside the code: the id of the entropy coder."""
        return self.entropy.id

    def encode(self, block: Bits, base: Bits | None) -> bytes:  # noqa: ARG002 - one shape for all codecs
        """The block in planes, or as it is."""
        return _shorter(block, [_PLANES, *_planes.write(block, self.entropy)])

    def decode(self, data: Data, base: Bits | None, out: Bits) -> None:
        """Fill `out`; CorruptObject where `data` is not what `encode` gives for a block of that size."""
        _decode(data, base, out, self.entropy, _RAW + _PLANES)


@dataclass(frozen=True, slots=True)
class PackDelta:
    """The differences of the bits as integers, packed."""

    entropy: Entropy

    code: ClassVar[int] = 3
    needs_base: ClassVar[bool] = True

    @property
    def params(self) -> int:
        """What a reader needs beside the code: the id of the entropy coder."""
        return self.entropy.id

    def encode(self, block: Bits, base: Bits | None) -> bytes:
        """The block as differences, or by whatever simpler form is likely to be shorter."""
        differences = scratch("differences", block.size, block.dtype)
        np.subtract(block, _given(base, block), out=differences)
        if not np.bitwise_or.reduce(differences):
            return _SAME
        bits, layout = _layout.estimate(differences, self.entropy.effort)
        if bits > _DOUBT * 8 * block.itemsize and _planes.estimate(block) < bits:
            return Planes(self.entropy).encode(block, None)
        return _shorter(block, [_PACK, *_pack.write(differences, layout, self.entropy)])

    def decode(self, data: Data, base: Bits | None, out: Bits) -> None:
        """Fill `out`; CorruptObject where `data` is not what `encode` gives for a block of that size."""
        _decode(data, _given(base, out), out, self.entropy, _RAW + _SAME + _PLANES + _PACK)


@dataclass(frozen=True, slots=True)
class GroupedDelta:
    """As PackDelta, but elements whose exponents are alike in the base are packed together: smaller, and slower."""

    entropy: Entropy

    code: ClassVar[int] = 4
    needs_base: ClassVar[bool] = True

    @property
    def params(self) -> int:
        """What a reader needs beside the code: the id of the entropy coder."""
        return self.entropy.id

    def encode(self, block: Bits, base: Bits | None) -> bytes:
        """The block as grouped differences, or by whatever simpler form is likely to be shorter."""
        base = _given(base, block)
        if np.array_equal(block, base):
            return _SAME
        places, groups = _groups.order(base)
        if len(groups) < 2:
            return PackDelta(self.entropy).encode(block, base)
        differences = np.take(block - base, places)
        estimates = [_layout.estimate(differences[group], self.entropy.effort) for group in groups]
        bits = sum(cost * (group.stop - group.start) for (cost, _), group in zip(estimates, groups, strict=True))
        if bits > _DOUBT * 8 * block.nbytes and _planes.estimate(block) * block.size < bits:
            return Planes(self.entropy).encode(block, None)
        parts: list[Data] = [_GROUPED]
        for (_, layout), group in zip(estimates, groups, strict=True):
            parts.append(b"".join(_pack.write(differences[group], layout, self.entropy)))
        return _shorter(block, parts)

    def decode(self, data: Data, base: Bits | None, out: Bits) -> None:
        """Fill `out`; CorruptObject where `data` is not what `encode` gives for a block of that size."""
        _decode(data, _given(base, out), out, self.entropy, _RAW + _SAME + _PLANES + _PACK + _GROUPED)


Codec: TypeAlias = Raw | Same | Planes | PackDelta | GroupedDelta
"""How the blocks of a tensor are encoded; `code` and `params` stand in the directory of a pack."""


def codec_of(code: int, params: int) -> Codec:
    """The codec to read blocks of that code with; NewerFormat where this version does not know it.

    Raises MissingExtra where the blocks need zstd, and it is not installed.
    """
    if code in (Raw.code, Same.code) and not params:
        return Raw() if code == Raw.code else Same()
    for codec in (Planes, PackDelta, GroupedDelta):
        if code == codec.code:
            return codec(entropy_of(params))
    raise NewerFormat(
        f"codec {code} with parameter {params} is not known to this version of coral: install a newer one."
    )


def _raw(block: Bits) -> bytes:
    return _RAW + block.tobytes()


def _shorter(block: Bits, parts: list[Data]) -> bytes:
    found = b"".join(parts)
    return found if len(found) <= block.nbytes else _raw(block)


def _given(base: Bits | None, like: Bits) -> Bits:
    if base is None or base.size != like.size or base.dtype != like.dtype:
        raise ValueError("a difference needs a base of the block's size and dtype")
    return base


def _decode(data: Data, base: Bits | None, out: Bits, entropy: Entropy | None, forms: bytes) -> None:
    cursor = Cursor(data)
    form = bytes((cursor.byte(),))
    if form not in forms:
        raise CorruptObject(f"a block of form {form[0]} is none that its codec writes")
    if form == _RAW:
        out.view(np.uint8)[:] = np.frombuffer(cursor.take(out.nbytes), np.uint8)
    elif form == _SAME:
        assert base is not None
        out[:] = base
    elif form == _PLANES:
        assert entropy is not None
        _planes.read(cursor, out, entropy)
    else:
        assert entropy is not None
        assert base is not None
        if form == _PACK:
            _pack.read(cursor, out, entropy)
        else:
            _read_groups(cursor, base, out, entropy)
        out += base
    cursor.end()


def _read_groups(cursor: Cursor, base: Bits, out: Bits, entropy: Entropy) -> None:
    places, groups = _groups.order(base)
    differences = scratch("differences", out.size, out.dtype)
    for group in groups:
        _pack.read(cursor, differences[group], entropy)
    out[places] = differences
