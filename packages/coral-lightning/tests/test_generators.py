"""Random generators that loaders, samplers, data sets and collate functions have for themselves go on, too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset

from coral import Repository
from coral.integrations.lightning import CoralCallback


class Data(Dataset[Any]):
    """Its items have noise of its own; with `late` it makes the generator when it is first asked for one."""

    def __init__(self, inner: Dataset[Any], *, late: bool = False) -> None:
        self.inner = inner
        self.dice = None if late else np.random.default_rng(3)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, at: int) -> Any:
        if self.dice is None:
            self.dice = np.random.default_rng(3)
        x, y = self.inner[at]
        return x + torch.tensor(self.dice.normal(size=4), dtype=torch.float32), y


class Order(Sampler[int]):
    def __init__(self, generator: torch.Generator) -> None:
        self.shuffles = generator

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(12, generator=self.shuffles).tolist())


class Collate:
    def __init__(self) -> None:
        self.drawn = random.Random(7)
        self.legacy = np.random.RandomState(5)

    def __call__(self, items: list[Any]) -> Any:
        noise = self.drawn.random() + self.legacy.rand()
        return torch.stack([x + noise for x, _ in items]), torch.stack([y for _, y in items])

    def method(self, items: list[Any]) -> Any:
        return self(items)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS: dict[str, Any] = {
    "data set": lambda data: DataLoader(Data(data), batch_size=4),
    "part of a data set": lambda data: DataLoader(Subset(Data(data), range(12)), batch_size=4),
    "several data sets": lambda data: DataLoader(ConcatDataset([data, Data(data)]), batch_size=8, shuffle=True),
    "collate_fn": lambda data: DataLoader(data, batch_size=4, collate_fn=Collate()),
    "method": lambda data: DataLoader(data, batch_size=4, collate_fn=Collate().method),
    "sampler": lambda data: DataLoader(data, batch_size=4, sampler=Order(seeded())),
    "loader": lambda data: DataLoader(data, batch_size=4, shuffle=True, generator=seeded()),
}


def fit(lab: SimpleNamespace, path: Path, loaders: Any, ref: str | None = None, **options: Any) -> Any:
    lab.seeded()
    saves = CoralCallback(path, include_optimizer=True, durability="fast", **options)
    trainer = lab.trainer(saves)
    trainer.fit(lab.Net(), *loaders, ckpt_path=ref and f"coral://{path}@{ref}")
    return lab.everything(trainer), trainer.callback_metrics["val_loss"].item()


@pytest.mark.parametrize("name", LOADERS)
def test_at_the_end_of_an_epoch_they_are_put_back(lab: SimpleNamespace, path: Path, name: str) -> None:
    def loaders() -> Any:
        return LOADERS[name](lab.dataset()), lab.loaders()[1]

    expected = fit(lab, path, loaders(), save_every_n_epochs=1)
    commit = Repository(path).show("step:3")
    assert commit.exact, commit.training
    assert fit(lab, path, loaders(), commit.id) == expected


def test_so_are_those_of_the_validation(lab: SimpleNamespace, path: Path) -> None:
    def loaders() -> Any:
        return lab.loaders()[0], LOADERS["data set"](lab.dataset())

    expected = fit(lab, path, loaders(), save_every_n_epochs=1)
    commit = Repository(path).show("step:3")
    assert commit.exact, commit.training
    assert fit(lab, path, loaders(), commit.id) == expected


def test_one_that_is_made_as_training_goes_on_makes_it_approximate(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def loaders() -> Any:
        return DataLoader(Data(lab.dataset(), late=True), batch_size=4), lab.loaders()[1]

    fit(lab, path, loaders(), save_every_n_epochs=1)
    commit = Repository(path).show("step:3")
    assert not commit.exact
    assert commit.training["why"].startswith("random generators (train.0.dataset.dice) were made since training began")
    fit(lab, path, loaders(), commit.id)
    assert "there is no random generator train.0.dataset.dice to be put back" in caplog.text


@pytest.mark.parametrize(
    ("where", "make"),
    [
        ("dataset.dice", lambda data: {"dataset": Data(data), "shuffle": True}),
        ("collate_fn.drawn", lambda data: {"dataset": data, "shuffle": True, "collate_fn": Collate()}),
        ("sampler.shuffles", lambda data: {"dataset": data, "sampler": Order(seeded())}),
        ("loader.generator", lambda data: {"dataset": data, "shuffle": True, "generator": seeded()}),
        (None, lambda data: {"dataset": data, "shuffle": True}),
    ],
)
def test_within_an_epoch_they_make_it_approximate(
    lab: SimpleNamespace, path: Path, where: str | None, make: Any
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    fit(lab, path, (stateful(batch_size=4, **make(lab.dataset())), lab.loaders()[1]), save_every_n_steps=4)
    commit = Repository(path).show("step:4")
    assert commit.exact == (where is None)
    if where is not None:
        why = "it was saved within an epoch, and a data loader has random generators of its own (train.0."
        assert commit.training["why"].startswith(f"{why}{where}")


class Wrapped(Dataset[Any]):
    """It is a part of itself, as no data set should be."""

    def __init__(self) -> None:
        self.dataset = self
        self.dice = random.Random(1)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, at: int) -> Any:
        return torch.full((4,), float(self.dice.random())), torch.ones(1)


def test_a_data_set_within_itself_is_looked_at_once(lab: SimpleNamespace, path: Path) -> None:
    def loaders() -> Any:
        return DataLoader(Wrapped(), batch_size=4), lab.loaders()[1]

    expected = fit(lab, path, loaders(), save_every_n_epochs=1)
    assert fit(lab, path, loaders(), "step:3") == expected
