"""A Hub on loopback, that the real client of huggingface_hub talks to."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pytest

from coral import WeightTensor
from coral.integrations.huggingface import CoralHubClient, HubRemote, _transfer
from coral.remotes import _opening, _patient

sys.path.insert(0, str(Path(__file__).parent))

from loopback_hub import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_transfer, "_PAUSES", (0.0, 0.0, 0.0))
    found = Hub()
    yield found
    huggingface_hub.close_session()
    found.stop()


@pytest.fixture
def reachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub, at the address that huggingface_hub takes for it; what fails is tried again without a pause."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.partition(".co")[2]
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.setattr(_patient, "_PAUSES", (0.0, 0.0, 0.0))
    if "hf" not in _opening.schemes():  # coral-hf is on the path, but not installed
        monkeypatch.setattr(_opening, "_entry_points", lambda: {"hf": lambda: HubRemote})
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
