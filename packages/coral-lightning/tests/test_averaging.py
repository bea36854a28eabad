"""StochasticWeightAveraging puts a scheduler of its own in the place of the module's, as training goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import StochasticWeightAveraging

from coral import Repository
from coral.errors import WeightsMismatch
from coral.integrations.lightning import CoralCallback


def fit(lab: SimpleNamespace, path: Path, *callbacks: Any, ref: str | None = None, before: bool = True) -> Any:
    lab.seeded()
    saves = CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast")
    trainer = lab.trainer(*([saves, *callbacks] if before else [*callbacks, saves]), max_epochs=4)
    trainer.fit(lab.Net(), *lab.loaders(), ckpt_path=ref and f"coral://{path}@{ref}")
    return lab.everything(trainer)


def averages() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", [3, 6, 9])
def test_before_it_has_begun_and_after_it_a_run_goes_on_exactly(
    lab: SimpleNamespace, path: Path, step: int, before: bool
) -> None:
    expected = fit(lab, path, averages(), before=before)
    commit = Repository(path).show(f"step:{step}")
    assert commit.exact, commit.training
    assert fit(lab, path, averages(), ref=commit.id, before=before) == expected


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_without_it_the_scheduler_is_of_another_kind(lab: SimpleNamespace, path: Path) -> None:
    fit(lab, path, averages())
    with pytest.raises(WeightsMismatch, match=r"StepLR with .*another kind"):
        fit(lab, path, ref="step:6")
