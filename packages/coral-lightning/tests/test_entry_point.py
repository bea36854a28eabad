"""The package names itself as an adapter, so that `coral --version` can tell of it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

import pytest

from coral.integrations import lightning
from coral.integrations.lightning import __version__


def test_it_is_known_as_an_adapter() -> None:
    try:
        package = distribution("coral-lightning")
    except PackageNotFoundError:
        pytest.skip("coral-lightning is on the path, but not installed")
    (entry,) = package.entry_points.select(group="coral.adapters", name="lightning")
    assert entry.load() is lightning
    assert package.version == __version__
