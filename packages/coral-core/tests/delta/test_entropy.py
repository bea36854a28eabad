from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from coral.delta import Deflate, DeltaConfig, Zstd, _entropy, codec_of, entropy_of
from coral.errors import ConfigError, CorruptObject, MissingExtra, NewerFormat


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    _entropy._zstd.cache_clear()
    _entropy._zstd_options.cache_clear()
    yield
    _entropy._zstd.cache_clear()


def test_each_coder_has_an_id_of_its_own() -> None:
    assert (Deflate.id, Zstd.id) == (1, 2)


def test_a_coder_is_rebuilt_from_its_id(coder: Any) -> None:
    assert type(entropy_of(coder.id)) is type(coder)


@pytest.mark.parametrize("id", [0, 3, 255, -1])
def test_an_unknown_coder_is_of_a_newer_coral(id: int) -> None:
    with pytest.raises(NewerFormat, match="newer"):
        entropy_of(id)


@pytest.mark.parametrize("size", [0, 1, 100, 1 << 18])
def test_round_trip(coder: Any, size: int) -> None:
    data = (bytes(100) + bytes(range(256)))[:size] if size < 300 else bytes(range(256)) * (size // 256)
    assert coder.decompress(coder.compress(data), size) == data


def test_runs_are_coded_as_such() -> None:
    assert len(Deflate().compress(bytes(1 << 18))) < 1000
    assert len(Deflate().compress(bytes(range(200)) * 1000)) > 100_000  # a level of None looks for no matches
    assert len(Deflate(9).compress(bytes(range(200)) * 1000)) < 10_000


@pytest.mark.usefixtures("without_zstd")
def test_reading_zstd_without_it_names_the_extra() -> None:
    for ask in (lambda: entropy_of(2), lambda: codec_of(3, 2), lambda: Zstd().decompress(b"", 0)):
        with pytest.raises(MissingExtra, match=r"coral-core\[zstd\]") as caught:
            ask()
        assert isinstance(caught.value, ImportError)


@pytest.mark.usefixtures("without_zstd")
def test_without_zstd_deflate_is_the_automatic_choice() -> None:
    assert DeltaConfig().coder() == Deflate()
    with pytest.raises(ConfigError, match=r"coral-core\[zstd\]"):
        DeltaConfig(entropy="zstd")


def test_with_zstd_it_is_the_automatic_choice() -> None:
    if _entropy._zstd() is None:
        pytest.skip("zstd is not installed: pip install 'coral-core[zstd]'")
    assert DeltaConfig().coder() == DeltaConfig(entropy="zstd").coder() == Zstd()
    assert DeltaConfig(level=7).coder() == Zstd(7)


def test_a_window_too_large_is_refused() -> None:
    zstd = _entropy._zstd()
    if zstd is None:
        pytest.skip("zstd is not installed: pip install 'coral-core[zstd]'")
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    frame = compressor.compress(bytes(100)) + compressor.flush()  # a frame that does not say how much it holds
    with pytest.raises(CorruptObject, match="zstd"):
        Zstd().decompress(frame, 100)
