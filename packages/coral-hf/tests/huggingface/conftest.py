"""A Hub on loopback, that the real client of huggingface_hub talks to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import get_session

from coral import WeightTensor
from coral.integrations.huggingface import CoralHubClient

sys.path.insert(0, str(Path(__file__).parent))

from loopback_hub import Hub, online, reach


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    online(monkeypatch)
    get_session()  # older clients make several, and leave all but one open, where the first calls come at once
    yield found
    huggingface_hub.close_session()
    found.stop()


@pytest.fixture
def reachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub, at the address that huggingface_hub takes for it."""
    reach(monkeypatch, hub.url)
    return hub


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> CoralHubClient:
    return CoralHubClient(tmp_path / "cache", endpoint=hub.url)


@pytest.fixture
def another(hub: Hub, tmp_path: Path) -> Callable[[str], CoralHubClient]:
    """A client with a cache of its own, as on another machine."""
    return lambda name: CoralHubClient(tmp_path / name, endpoint=hub.url)


@pytest.fixture
def model() -> dict[str, WeightTensor]:
    """A model of 10 tensors, 4 MB, as a fine-tune would change it."""
    rng = np.random.default_rng(0)
    return {
        f"layer.{i}": WeightTensor(rng.standard_normal((100, 1000), np.float32) * np.float32(0.02)) for i in range(10)
    }
