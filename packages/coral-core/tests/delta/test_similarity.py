from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from coral.delta import similarity
from coral.weights import DTYPES

RNG = np.random.default_rng(7)


def bfloat16(values: Any) -> Any:
    return (np.asarray(values, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_it_is_the_cosine(dtype: str) -> None:
    a, b = RNG.standard_normal((2, 1000)).astype(dtype)
    expected = float(a.astype(float) @ (a + b).astype(float))
    expected /= math.sqrt(
        float(a.astype(float) @ a.astype(float)) * float((a + b).astype(float) @ (a + b).astype(float))
    )
    assert similarity(a, a + b, dtype) == pytest.approx(expected, abs=1e-6)
    assert similarity(a, a, dtype) == pytest.approx(1)
    assert similarity(a, -a, dtype) == 0
    assert similarity(a.reshape(10, 100), a, dtype) == pytest.approx(1)


def test_of_bfloat16() -> None:
    a, b = RNG.standard_normal((2, 1000))
    assert similarity(bfloat16(a), bfloat16(a), "bfloat16") == pytest.approx(1)
    assert similarity(bfloat16(a), bfloat16(a + b), "bfloat16") == pytest.approx(math.sqrt(0.5), abs=0.05)
    assert similarity(bfloat16(a), bfloat16(-a), "bfloat16") == 0


@pytest.mark.parametrize(("dtype", "bits"), [("float32", np.uint32(0x7F800001)), ("bfloat16", np.uint16(0x7F81))])
def test_nan_that_signals(dtype: str, bits: Any) -> None:
    a = np.full(100, bits)
    a[10:] = 0x3F80 if dtype == "bfloat16" else 0x3F800000
    with np.errstate(all="raise"):
        assert similarity(a, a, dtype) == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_of_complex_numbers(dtype: str) -> None:
    a = (RNG.standard_normal(100) + 1j * RNG.standard_normal(100)).astype(dtype)
    assert similarity(a, a, dtype) == pytest.approx(1)
    assert similarity(a, a * 1j, dtype) == pytest.approx(0, abs=0.01)


def test_of_complex32() -> None:
    a = RNG.standard_normal(200).astype(np.float16)
    assert similarity(a.view(np.uint32), a.view(np.uint32), "complex32") == pytest.approx(1)
    assert similarity(a.view(np.uint32), (-a).view(np.uint32), "complex32") == 0


def test_of_whole_numbers() -> None:
    a = np.array([-1, 2, 3], np.int8)
    assert similarity(a, a, "int8") == pytest.approx(1)
    assert similarity(a.astype(np.int64), -a.astype(np.int64), "int64") == 0


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2", "bool"])
def test_what_numpy_cannot_count_with_is_compared(dtype: str) -> None:
    carrier = DTYPES[dtype].carrier
    a, b = np.array([0, 1, 1, 1], np.uint8).view(carrier), np.array([0, 1, 1, 0], np.uint8).view(carrier)
    assert similarity(a, b, dtype) == 0.75
    assert similarity(a, a, dtype) == 1


def test_zeros() -> None:
    zeros, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    assert similarity(zeros, -zeros, "float32") == 1
    assert similarity(zeros, ones, "float32") == 0
    assert similarity(np.empty(0, np.float32), np.empty(0, np.float32), "float32") == 1


def test_what_is_not_finite_is_left_out() -> None:
    a = np.array([1, np.nan, 3, np.inf], np.float32)
    b = np.array([1, 2, 3, 4], np.float32)
    assert similarity(a, b, "float32") == pytest.approx(1)
    assert similarity(np.full(4, np.nan, np.float32), b, "float32") == 1  # nothing is left that differs
    large, small = np.array([1e308, 1e-308]), np.array([1e308, 0])
    assert similarity(large, small, "float64") == pytest.approx(1)
    assert similarity(np.full(9, 5e-324), np.full(9, 5e-324), "float64") == pytest.approx(1)


def test_a_sample_is_enough() -> None:
    a = RNG.standard_normal(1_000_003).astype(np.float32)
    b = a + RNG.standard_normal(a.size).astype(np.float32)
    assert similarity(a, b, "float32") == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_sizes_have_to_be_equal() -> None:
    with pytest.raises(ValueError, match="elements"):
        similarity(np.ones(3, np.float32), np.ones(4, np.float32), "float32")
