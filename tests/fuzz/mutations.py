"""Changing some bytes into others that are near them, and as likely to be misread as can be."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

NUMBERS = (
    0, 1, 2, 3, 7, 8, 16, 63, 64, 65, 127, 128, 255, 256, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
LONGEST = 64 << 10
_DIGITS = re.compile(rb"-?[0-9]+(\.[0-9]+)?")


def mutate(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], rng: random.Random) -> bytes:
    """`data` after a few changes; parts of `others` and whole `tokens` may come into it. At most LONGEST bytes."""
    found = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        size = len(found)
        at = rng.randrange(size + 1)
        match rng.randrange(11):
            case 0 if size:
                found[at % size] ^= 1 << rng.randrange(8)
            case 1 if size:
                found[at % size] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x7B, 0x5B, rng.randrange(256)))
            case 2:
                found[at:at] = rng.choice(tokens)
            case 3:
                del found[at : at + 1 + rng.randrange(1 + min(size, 32))]
            case 4:
                part = found[at : at + 1 + rng.randrange(64)]
                found[at:at] = part * rng.choice((1, 1, 2, 50))
            case 5:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                found[at : at + rng.randrange(32)] = other[start : start + rng.randrange(1 + min(len(other), 256))]
            case 6 | 7:
                _a_binary_number(found, rng)
            case 8 | 9:
                _a_written_number(found, tokens, rng)
            case _:
                del found[at:]
    return bytes(found[:LONGEST])


def _a_binary_number(found: bytearray, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    if len(found) >= width:
        at = rng.randrange(len(found) // width) * width
        number = rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))
        if rng.random() < 0.3:
            number = int.from_bytes(found[at : at + width], "little") + rng.choice((1, -1, 64, -64))
        found[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")


def _a_written_number(found: bytearray, tokens: Sequence[bytes], rng: random.Random) -> None:
    places = [match.span() for match in _DIGITS.finditer(found[:4096])]
    if places:
        start, end = rng.choice(places)
        number = str(rng.choice(NUMBERS) * rng.choice((1, -1))).encode()
        found[start:end] = rng.choice((number, b"1" * 5000, b"1e999", b"2.0", b"true", b"null", rng.choice(tokens)))
