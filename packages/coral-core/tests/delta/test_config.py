from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from coral.delta import Deflate, DeltaConfig
from coral.errors import ConfigError


def build(**options: Any) -> DeltaConfig:
    """A config from values of any type, right or wrong."""
    return DeltaConfig(**options)


def test_the_defaults() -> None:
    assert dataclasses.asdict(DeltaConfig()) == {
        "codec": "auto",
        "entropy": "auto",
        "level": None,
        "similarity_threshold": 0.9,
        "group_size": 8,
        "max_depth": 2,
        "min_size": 4096,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("codec", value) for value in ("", "Pack", "xor", None, 3)),
        *(("entropy", value) for value in ("", "lzma", None, 1)),
        *(("level", value) for value in (0, -1, 10, True, 3.0, "3", math.nan)),
        *(("similarity_threshold", value) for value in (-0.1, 1.1, math.nan, math.inf, True, "0.9", None)),
        *(("group_size", value) for value in (1, 0, -8, True, 8.0, "8", None)),
        *(("max_depth", value) for value in (0, 3, -1, True, 2.0, None)),
        *(("min_size", value) for value in (-1, True, 4096.0, "4096", None)),
    ],
)
def test_a_value_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**{"entropy": "deflate", name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}; it must be ")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("codec", value) for value in ("auto", "raw", "planes", "pack", "grouped")),
        *(("level", value) for value in (None, 1, 9)),
        *(("similarity_threshold", value) for value in (0, 0.0, 0.5, 1, 1.0)),
        *(("group_size", value) for value in (2, 1000)),
        *(("max_depth", value) for value in (1, 2)),
        *(("min_size", value) for value in (0, 1, 1 << 40)),
    ],
)
def test_a_value_that_can_be(name: str, value: Any) -> None:
    assert getattr(build(**{"entropy": "deflate", name: value}), name) == value


def test_the_coder_has_the_level() -> None:
    assert DeltaConfig(entropy="deflate").coder() == Deflate()
    assert DeltaConfig(entropy="deflate", level=6).coder() == Deflate(6)
