"""Data whose order, or whose own random numbers, a Trainer that goes on would have otherwise: the commits say so."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, WeightedRandomSampler
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    default_data_collator,
    trainer_pt_utils,
)

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.integrations.hf_trainer._data import own_generators, unknown_sampler


def coral(repo: Repository, **options: Any) -> CoralTrainerCallback:
    return CoralTrainerCallback(repo, include_optimizer=True, background_repack=False, **options)


def rows(training: Any) -> list[dict[str, torch.Tensor]]:
    """Examples with the input_ids that samplers measure, which the model does not take."""
    return [{**each, "input_ids": torch.zeros(4)} for each in training.examples()]


def collated(batch: Any) -> Any:
    return default_data_collator([{name: each[name] for name in ("x", "labels")} for each in batch])


SEEDED = {"remove_unused_columns": False, "data_collator": collated}
ORDERS: dict[str, tuple[dict[str, Any], str]] = {
    "drawn by length": ({"train_sampling_strategy": "group_by_length"}, "LengthGroupedSampler"),
    "drawn": ({"accelerator_config": {"use_seedable_sampler": False}}, "RandomSampler"),
    "seeded": ({}, ""),
    "sequential": ({"train_sampling_strategy": "sequential"}, ""),
    "seeded by length": ({"train_sampling_strategy": "batch_rebalance"}, ""),
}


@pytest.mark.parametrize("order", ORDERS)
def test_within_an_epoch_that_is_given_in_another_order_a_commit_is_not_exact(
    training: Any, repo: Repository, order: str
) -> None:
    """In the second, as in the first the generators are seeded alike."""
    options, sampler = {**SEEDED, **ORDERS[order][0]}, ORDERS[order][1]
    if options.get("train_sampling_strategy") == "batch_rebalance" and not hasattr(
        trainer_pt_utils, "BatchRebalanceSampler"
    ):
        pytest.skip("this version of transformers has no such sampler")
    whole = training.trainer(coral(repo, save_every_n_steps=1), train_dataset=rows(training), **options)
    whole.train()
    expected = training.everything(whole)
    commits = {step: repo.show(f"step:{step}") for step in (6, 9)}
    assert commits[6].exact
    assert commits[9].exact is not bool(sampler)
    assert sampler in str(commits[9].training.get("why", ""))

    for step, commit in commits.items():
        again = coral(repo, branch=f"from-{step}", save_on_train_end=False)
        other = training.trainer(again, seed=99, train_dataset=rows(training), **options)
        other.train(resume_from_checkpoint=again.resume_path(commit.id))
        assert (training.everything(other) == expected) is commit.exact


def test_a_sampler_that_is_told_no_epoch_may_give_another_order() -> None:
    """Between processes a Trainer that goes on does not reach a BatchRebalanceSampler with its set_epoch."""
    rebalance = getattr(trainer_pt_utils, "BatchRebalanceSampler", None)
    if rebalance is None:
        pytest.skip("this version of transformers has no such sampler")
    data: Any = list(range(8))

    def loader(processes: int, **options: Any) -> Any:
        return prepare_data_loader(
            DataLoader(data, **options), num_processes=processes, process_index=0, use_seedable_sampler=True,
            even_batches=False,
        )  # fmt: skip

    for processes in (1, 2):
        balanced = rebalance([1] * 8, effective_batch_size=2 * processes, dp_size=processes, grad_accum=1)
        of_batches = loader(processes, batch_sampler=balanced)
        assert unknown_sampler(of_batches) == (None if processes == 1 else "BatchRebalanceSampler")
        assert unknown_sampler(loader(processes, sampler=RandomSampler(data))) is None
        weighted = WeightedRandomSampler([1.0] * 8, 8)
        assert unknown_sampler(loader(processes, sampler=weighted)) == "WeightedRandomSampler"


class Shuffled(IterableDataset[Any]):
    """Data that gives itself an order as it is begun, of the global generators if it is drawn."""

    def __init__(self, examples: list[Any], drawn: bool) -> None:
        self.examples, self.drawn = examples, drawn

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Any:
        order = torch.randperm(len(self)).tolist() if self.drawn else range(len(self))
        return (self.examples[index] for index in order)


@pytest.mark.parametrize("drawn", [False, True])
def test_a_dataset_that_draws_an_order_is_exact_at_epochs_alone(training: Any, repo: Repository, drawn: bool) -> None:
    def trainer(*callbacks: Any, **options: Any) -> Any:
        return training.trainer(*callbacks, train_dataset=Shuffled(training.examples(), drawn), **options)

    whole = trainer(coral(repo, save_every_n_steps=1), num_train_epochs=3)
    whole.train()
    expected = training.everything(whole)
    commits = {step: repo.show(f"step:{step}") for step in (6, 9)}
    for step, commit in commits.items():
        again = coral(repo, branch=f"from-{step}", save_every_n_steps=1)
        other = trainer(again, seed=99, num_train_epochs=3)
        other.train(resume_from_checkpoint=again.resume_path(commit.id))
        assert commit.exact is (step == 6 or not drawn)
        assert (training.everything(other) == expected) is commit.exact
        later = {each.step: each.exact for each in repo.log(f"from-{step}") if (each.step or 0) > 12}
        assert later == {step: step == 18 or not drawn for step in range(18, 12, -1)}


class Noisy:
    """A collate function with a generator of its own, as DataCollatorForLanguageModeling(seed=...) has one."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, batch: Any) -> Any:
        made = default_data_collator(batch)
        return {**made, "x": made["x"] + torch.randn(made["x"].shape, generator=self.generator)}


def test_a_generator_of_the_datas_own_is_said_not_to_be_saved(training: Any, repo: Repository) -> None:
    whole = training.trainer(coral(repo, save_every_n_epochs=1), data_collator=Noisy())
    whole.train()
    expected = training.everything(whole)
    commit = repo.show("step:6")
    again = coral(repo, branch="again")
    other = training.trainer(again, data_collator=Noisy())
    other.train(resume_from_checkpoint=again.resume_path(commit.id))
    assert training.everything(other) != expected
    assert not commit.exact
    assert "generators of its own, which are not saved: collate_fn" in str(commit.training["why"])


class Rows(Dataset[Any]):
    def __init__(self, **held: Any) -> None:
        self.__dict__ |= held

    def __len__(self) -> int:
        return 8

    def collate(self, batch: Any) -> Any:
        return batch


def test_generators_are_found_where_data_has_them() -> None:
    torchs, numpys, pythons = torch.Generator(), np.random.default_rng(0), random.Random(0)

    def closed(batch: Any) -> Any:
        return batch, pythons.random()

    found = {
        "dataset.dataset.rng": DataLoader(Subset(Rows(rng=numpys), [0, 1])),
        "dataset.transforms.rng": DataLoader(Rows(transforms=[Rows(), Rows(rng=pythons)])),
        "collate_fn.__self__.rng": DataLoader(Rows(), collate_fn=Rows(rng=numpys).collate),
        "collate_fn.pythons": DataLoader(Rows(), collate_fn=closed),
        "collate_fn.rng": DataLoader(Rows(), collate_fn=partial(default_data_collator, rng=numpys)),
        "collate_fn.func.pythons": DataLoader(Rows(), collate_fn=partial(closed)),
        "batch_sampler.sampler.generator": DataLoader(Rows(), sampler=RandomSampler(Rows(), generator=torchs)),
    }
    assert {path: own_generators(loader) for path, loader in found.items()} == {path: [path] for path in found}

    def early(batch: Any) -> Any:
        return late, batch

    assert own_generators(DataLoader(Rows(), collate_fn=early)) == []
    late = around = Rows()
    around.dataset = around  # type: ignore[attr-defined]
    assert own_generators(DataLoader(around)) == []


def test_a_collator_of_transformers_with_a_seed_has_a_generator() -> None:
    core = Tokenizer(models.WordLevel({"?": 0, "#": 1, "a": 2}, unk_token="?"))
    processing = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", pad_token="?", mask_token="#")
    collator = DataCollatorForLanguageModeling(processing, seed=7)
    collator([{"input_ids": [2, 2, 2]}])
    assert own_generators(DataLoader(Rows(), collate_fn=collator)) == ["collate_fn.generator"]


def test_the_data_of_a_plain_trainer_has_none(training: Any) -> None:
    trainer: Trainer = training.trainer()
    assert own_generators(trainer.get_train_dataloader()) == []
