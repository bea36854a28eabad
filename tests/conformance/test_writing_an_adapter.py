"""docs/writing-an-adapter.md: its adapter is short, its loop trains, and its test passes the kit."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from coral import Repository
from coral.training import CheckpointConfig

PAGE = Path(__file__).parents[2] / "docs" / "writing-an-adapter.md"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def page() -> ModuleType:
    """The page's code as a module: the adapter, the loop, the test."""
    found = ModuleType("writing_an_adapter")
    sys.modules[found.__name__] = found  # where pytest and dataclasses look a class's module up
    exec(compile("\n".join(CODE), str(PAGE), "exec"), vars(found))  # noqa: S102 - the page is this repository's
    return found


PAGE_MODULE = page()
TestNumpyCheckpoints = PAGE_MODULE.TestNumpyCheckpoints


def test_the_adapter_takes_less_than_60_lines() -> None:
    assert "class NumpyCheckpoints" in CODE[0]
    assert len(CODE[0].splitlines()) < 60


def test_the_loop_of_the_page_saves_its_best(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "repo", init=True)
    weights = {"w": np.ones(2)}
    PAGE_MODULE.train(weights, [{"w": np.ones(2)}] * 2, repo, CheckpointConfig(save_on_best_metric="loss"))
    assert [commit.step for commit in repo.log("best")] == [6, 4, 2]
    assert repo.load("best")["w"].data == pytest.approx(np.full(2, 0.4))
