"""The same run leaves the same checkpoints, whichever framework drives it."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from coral import Repository
from coral.testing import SCHEDULES, AdapterTests

pytestmark = [  # what Lightning says of small runs, and what it makes torch and Python say; and a score that is meant
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".*does not have many workers",
        ".*found .* module.s. in eval mode",
        ".*lightning_fabric.*:DeprecationWarning",
        "Please use `torch.*` instead of `torch.*`",
        ".*isinstance.treespec, LeafSpec.*",
        ".*resuming from a checkpoint that ended before the epoch ended",
        "metric 'eval_loss' is nan",
    )
]

ROOT = Path(__file__).parents[1]
ADAPTERS = {
    "coral-torch": "TestCoralTrainer",
    "coral-lightning": "TestCoralCallback",
    "coral-hf": "TestCoralTrainerCallback",
}
NAMES = (
    "every second step, the last two kept",
    "accumulation",
    "evaluation before the end of each epoch",
    "evaluation every second epoch",
    "two evaluation sets",
    "a score that is not a number",
    "max_steps within an epoch",
    "early stopping at an epoch",
    "the best is loaded at the end",
    "resumed at the end of an epoch",
    "resumed within an epoch, with accumulation",
    "resumed from the best",
)


def adapter(package: str) -> AdapterTests:
    """The one that a package's own conformance test puts through the kit."""
    name = f"conformance_of_{package.replace('-', '_')}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / "packages" / package / "tests" / "test_conformance.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    found: AdapterTests = getattr(sys.modules[name], ADAPTERS[package])()
    return found


def checkpoints(repo: Repository) -> list[dict[str, Any]]:
    """What is compared of each checkpoint, oldest first."""
    return [
        {
            "step": commit.step,
            "reasons": sorted(commit.reasons),
            "pruned": commit.pruned,
            "weights": None if commit.pruned else {name: entry.id for name, entry in repo.tree(commit.id).items()},
        }
        for commit in reversed(repo.log("counting"))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_three_frameworks_leave_the_same(name: str, tmp_path: Path) -> None:
    found = {}
    for package in ADAPTERS:
        folder = tmp_path / package
        folder.mkdir()
        adapter(package).check(SCHEDULES[name], folder)
        found[package] = checkpoints(Repository(folder / "repo"))
    mine = found["coral-torch"]
    assert mine
    assert found == dict.fromkeys(ADAPTERS, mine)
