"""One class, in the trainers of both packages and in the command line of both."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from coral import Repository
from coral.integrations.lightning import CoralCallback, CoralCheckpointIO

Saved = Callable[..., dict[int | None, tuple[str, ...]]]

PACKAGES = ["pytorch_lightning", "lightning.pytorch"]


def batches(n: int) -> DataLoader[Any]:
    return DataLoader([0.0] * n)  # type: ignore[arg-type]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    pytest.importorskip(request.param)
    return importlib.import_module(request.param)


def test_both_know_it_as_their_own(package: ModuleType) -> None:
    assert issubclass(CoralCallback, package.Callback)
    base = "lightning.fabric" if package.__name__.startswith("lightning.") else "lightning_fabric"
    assert issubclass(CoralCheckpointIO, importlib.import_module(f"{base}.plugins").CheckpointIO)


def test_it_saves_and_resumes_in_both(lab: SimpleNamespace, path: Path, saved: Saved, package: ModuleType) -> None:
    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        training_step, validation_step = lab.Net.training_step, lab.Net.validation_step
        configure_optimizers, loss = lab.Net.configure_optimizers, lab.Net.loss

        def __init__(self) -> None:
            super().__init__()
            like = lab.Net()
            self.net, self.plateau, self.seen = like.net, False, []

    callbacks = [CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, save_on_best="val_loss")]
    lab.seeded()
    trainer = lab.trainer(*callbacks, package=package)
    trainer.fit(Module(), *lab.loaders())
    expected = lab.everything(trainer)
    assert list(saved()) == [3, 6, 9]
    again = lab.trainer(*callbacks, package=package)
    again.fit(Module(), *lab.loaders(), ckpt_path=f"coral://{path}@step:3")
    assert lab.everything(again) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what LightningCLI asks of jsonargparse
def test_it_is_configured_from_the_command_line(
    lab: SimpleNamespace, path: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonargparse")
    cli = importlib.import_module(f"{package.__name__}.cli")
    bases = (package.LightningModule,)
    scored = {name: vars(lab.Scored)[name] for name in ("training_step", "validation_step", "configure_optimizers")}
    module = type("Module", bases, {**scored, "__init__": lambda self: counting(self, package, lab)})
    data = type(
        "Data",
        (package.LightningDataModule,),
        {"train_dataloader": lambda self: batches(3), "val_dataloader": lambda self: batches(1)},
    )
    options = {
        "max_epochs": 2,
        "callbacks": "coral.integrations.lightning.CoralCallback",
        "callbacks.repo_path": path,
        "callbacks.save_every_n_epochs": 1,
        "callbacks.save_on_best": "val_loss",
        "callbacks.keep_last_n_checkpoints": 1,
        "callbacks.include_optimizer": "true",
        "accelerator": "cpu",
        "logger": "false",
        "enable_checkpointing": "false",
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
    }
    arguments = ["fit", *(f"--trainer.{name}={value}" for name, value in options.items())]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    cli.LightningCLI(module, data, save_config_callback=None, seed_everything_default=0)
    log = Repository(path).log()
    assert [(commit.step, commit.pruned) for commit in log] == [(6, False), (3, False)]
    more = ["--trainer.max_epochs=3", f"--ckpt_path=coral://{path}@main"]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, *more])
    cli.LightningCLI(module, data, save_config_callback=None, seed_everything_default=0)
    assert [(commit.step, commit.pruned) for commit in Repository(path).log()] == [
        (9, False),
        (6, False),
        (3, False),
    ], "the best, and what it goes on from"


def counting(module: Any, package: ModuleType, lab: SimpleNamespace) -> None:
    package.LightningModule.__init__(module)
    like = lab.Scored()
    module.weight, module.scores = like.weight, like.scores


def test_without_the_other_package_one_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """lightning need not be installed."""
    hosts = "coral.integrations.lightning._hosts"
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lightning" else find(name))
    monkeypatch.delitem(sys.modules, hosts)
    alone = importlib.import_module(hosts)
    assert [kind.__module__.partition(".")[0] for kind in alone.Callback.__bases__] == ["pytorch_lightning"]
    assert [kind.__module__.partition(".")[0] for kind in alone.CheckpointIO.__bases__] == ["lightning_fabric"]
