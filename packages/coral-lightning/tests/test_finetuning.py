"""Parameters that are frozen or unfrozen as training goes on: no checkpoint of Lightning's says which those are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning

from coral import Repository
from coral.integrations.lightning import CoralCallback


class Unfreezes(BaseFinetuning):
    """Trains the first layer from the second epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.01)


class Unfrozen(pl.Callback):
    """Sees to it, as a run goes on, that what was trained is trained again."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch > 1:
            BaseFinetuning.make_trainable(pl_module.net[0])


def fit(lab: SimpleNamespace, path: Path, *callbacks: Any, ref: str | None = None, **options: Any) -> Any:
    class Net(lab.Net):  # type: ignore[misc, name-defined]
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([each for each in self.parameters() if each.requires_grad], lr=0.01)

    lab.seeded()
    saves = CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast")
    trainer, module = lab.trainer(Unfreezes(), saves, *callbacks, **options), Net()
    trainer.fit(module, *lab.loaders(), ckpt_path=ref and f"coral://{path}@{ref}")
    return lab.everything(trainer)


def test_before_it_is_unfrozen_it_is_exact_and_after_it_that_is_said(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fit(lab, path)
    before, after = Repository(path).show("step:3"), Repository(path).show("step:6")
    assert before.exact, before.training
    assert fit(lab, path, ref=before.id) == expected
    assert not after.exact
    assert after.training["why"] == (
        "2 parameters (net.0.bias, net.0.weight) were frozen or unfrozen since training began, and a run that goes on "
        "has them as it begins itself"
    )
    assert fit(lab, path, ref=after.id) != expected
    assert "approximately: 2 parameters" in caplog.text


def test_who_unfreezes_them_as_it_goes_on_has_the_same_run(lab: SimpleNamespace, path: Path) -> None:
    expected = fit(lab, path)
    assert fit(lab, path, Unfrozen(), ref="step:6") == expected
    assert Repository(path).show("step:9").exact


def test_what_is_frozen_from_the_start_on_changes_nothing(lab: SimpleNamespace, path: Path) -> None:
    fit(lab, path, max_epochs=1)
    assert Repository(path).show().exact
