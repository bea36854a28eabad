"""Blocks that were encoded once are read for ever: golden/ holds one for each codec, width and coder.

`python packages/coral-core/tests/delta/test_golden.py` adds the files that are missing; it never changes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral.delta import GroupedDelta, PackDelta, Planes, Raw, Same, _pack, codec_of, entropy_of
from coral.delta._layout import Layout
from coral.errors import MissingExtra

GOLDEN = Path(__file__).parent / "golden"
CODES = {"raw": 0, "same": 1, "planes": 2, "pack": 3, "pieces": 3, "grouped": 4}
"""What there is a file of; "pieces" is a pack of which every kind of piece is used."""

CODERS = {"none": 0, "deflate": 1, "zstd": 2}
WIDTHS = (8, 16, 32, 64)
PIECES = {8: Layout(7, 2), 16: Layout(15, 4), 32: Layout(23, 8), 64: Layout(55, 4)}


def numbers(size: int, seed: int) -> list[int]:
    """Integers of 64 bits that look like chance (Knuth's MMIX generator)."""
    found = []
    for _ in range(size):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        found.append(seed ^ seed >> 29)
    return found


def case(codec: str, width: int) -> tuple[Any, Any]:
    """The (block, base) that a golden file is about: floats of some exponents, and the same a little later."""
    size = {"raw": 50, "same": 50, "grouped": 3601}.get(codec, 301)
    mask = 2**width - 1
    base, block = [], []
    for place, (a, b) in enumerate(zip(numbers(size, 1), numbers(size, 2), strict=True)):
        large = a % 3  # how large it is, and how little it moves
        base.append(
            (0b0111 << width - 4 | large << width - 6 | a >> 6 & mask >> (7 if codec == "planes" else 6)) & mask
        )
        step = b % (5 + (2 - large) * (3 if codec == "grouped" else 20)) - 2
        step = b & mask if place % 60 == 7 else step
        block.append(base[-1] if codec == "same" else base[-1] + step & mask)
    dtype = f"<u{width // 8}"
    return np.array(block, dtype), np.array(base, dtype)


def files() -> Iterator[tuple[str, str, int]]:
    for codec in CODES:
        for coder in ("none",) if codec in ("raw", "same") else ("deflate", "zstd"):
            for width in WIDTHS:
                yield codec, coder, width


def test_nothing_is_missing_and_nothing_else_is_there() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(f"{c}-{e}-{w}.bin" for c, e, w in files())


@pytest.mark.parametrize(("codec", "coder", "width"), list(files()))
def test_it_is_read_to_the_bit(codec: str, coder: str, width: int) -> None:
    data = (GOLDEN / f"{codec}-{coder}-{width}.bin").read_bytes()
    assert len(data) < 4096
    assert data[0] == CODES[codec]
    block, base = case(codec, width)
    try:
        reader = codec_of(CODES[codec], CODERS[coder])
    except MissingExtra as error:
        pytest.skip(str(error))
    out = np.empty_like(block)
    reader.decode(data, base if reader.needs_base else None, out)
    assert out.tobytes() == block.tobytes()


def encoded(codec: str, coder: str, width: int) -> bytes:
    block, base = case(codec, width)
    match codec:
        case "raw":
            return Raw().encode(block, None)
        case "same":
            return Same().encode(block, base)
        case "planes":
            return Planes(entropy_of(CODERS[coder])).encode(block, None)
        case "pack":
            return PackDelta(entropy_of(CODERS[coder])).encode(block, base)
        case "grouped":
            return GroupedDelta(entropy_of(CODERS[coder])).encode(block, base)
    return b"".join([b"\3", *_pack.write(block - base, PIECES[width], entropy_of(CODERS[coder]))])


def _add() -> None:
    for codec, coder, width in files():
        path = GOLDEN / f"{codec}-{coder}-{width}.bin"
        if not path.exists():
            path.write_bytes(encoded(codec, coder, width))


if __name__ == "__main__":
    _add()
