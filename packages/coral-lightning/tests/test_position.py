"""A data loader that cannot tell its position stands in the way of a save, never of the training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from coral import Repository
from coral.integrations.lightning import CoralCallback


class Raises(DataLoader[Any]):
    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("no state here")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Passes(Raises):
    """Its state cannot be copied: the iterator of a source is in it."""

    def state_dict(self) -> dict[str, Any]:
        return {"source": (number for number in range(3))}


def fit(lab: SimpleNamespace, path: Path, loader: type[Raises], **options: Any) -> int:
    lab.seeded()
    saves = CoralCallback(path, include_optimizer=True, durability="fast", **options)
    trainer = lab.trainer(saves, max_epochs=2)
    trainer.fit(lab.Net(), *lab.loaders(loader))
    return int(trainer.global_step)


@pytest.mark.parametrize("loader", [Raises, Passes])
def test_it_is_said_once_and_the_training_goes_on(
    lab: SimpleNamespace, path: Path, loader: type[Raises], caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(lab, path, loader, save_every_n_steps=4) == 6
    said = [record.message for record in caplog.records if "position is not known" in record.message]
    assert len(said) == 1, said
    assert "coral could not save" in caplog.text or "saving step 4 failed" in caplog.text


def test_at_the_end_of_an_epoch_it_need_not_tell_it(lab: SimpleNamespace, path: Path) -> None:
    assert fit(lab, path, Passes, save_every_n_epochs=1) == 6
    assert [(commit.step, commit.exact) for commit in Repository(path).log()] == [(6, True), (3, True)]
