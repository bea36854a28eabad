"""Every layout of a packed run, those that no estimate asks for among them, is written and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral.delta import Deflate, _pack
from coral.delta._cursor import Cursor
from coral.delta._layout import WIDTHS, Layout, estimate
from coral.errors import CorruptObject

CODER = Deflate()


def written(values: Any, layout: Layout) -> bytes:
    return b"".join(_pack.write(values.copy(), layout, CODER))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_layout(dtype: Any, width: int, pairs: Callable[..., Any]) -> None:
    for _, block, base in pairs(75, dtype):
        differences = block - base
        for shift in range(np.dtype(dtype).itemsize * 8):
            cursor = Cursor(written(differences, Layout(shift, width)))
            out = np.full_like(differences, 0x5A)
            _pack.read(cursor, out, CODER)
            cursor.end()
            assert out.tobytes() == differences.tobytes()


def test_runs_one_after_another(dtype: Any, pairs: Callable[..., Any]) -> None:
    runs = [block - base for size in (90, 3) for _, block, base in pairs(size, dtype)]
    cursor = Cursor(b"".join(written(run, estimate(run)[1]) for run in runs))
    for run in runs:
        out = np.empty_like(run)
        _pack.read(cursor, out, CODER)
        assert out.tobytes() == run.tobytes()
    cursor.end()


def test_a_layout_that_cannot_be(dtype: Any) -> None:
    values = np.zeros(20, dtype)
    good = written(values, Layout(0, 4))
    bits = np.dtype(dtype).itemsize * 8
    for head in [(bits, 4), (255, 8), (0, 0), (0, 1), (0, 3), (0, 16), (0, 255)]:
        with pytest.raises(CorruptObject, match="layout"):
            _pack.read(Cursor(bytes(head) + good[2:]), values, CODER)


def test_the_estimate_is_close(dtype: Any, words: Callable[..., Any]) -> None:
    bits = np.dtype(dtype).itemsize * 8
    for size in (300, 5_000, 60_000):
        for most in range(1, bits, 5):
            steps = (words(size, np.uint64, most) % np.uint64(1 << most)).astype(dtype) - dtype(1 << most - 1)
            found, layout = estimate(steps)
            stored = len(written(steps, layout)) * 8 / size
            assert stored == pytest.approx(found, rel=0.15, abs=0.3 + 3000 / size)
            assert stored < most * 1.1 + 0.5 + 3000 / size
