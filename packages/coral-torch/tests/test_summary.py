"""What a trainer says of its checkpoints and of its run."""

import json

import pytest
import torch
from torch import nn

from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

CONFIG = CheckpointConfig(
    save_every_n_epochs=1, save_on_best_metric="val", keep_last_n_checkpoints=1, keep_best_n_checkpoints=1,
    durability="fast",
)  # fmt: skip


@pytest.fixture
def trained(repo):
    """Three epochs of two steps, the second of which is the best."""
    trainer = CoralTrainer(nn.Linear(2, 1), repo, "mine", CONFIG)
    trainer.set_optimizer(torch.optim.SGD(trainer.model.parameters(), lr=0.1))
    for epoch, score in enumerate([3.0, 1.0, 2.0]):
        for _ in range(2):
            trainer.model(torch.ones(2)).backward()
            trainer.manager._source.optimizer.step()
            trainer.step(1.0)
        trainer.epoch_end(epoch, val=score)
    yield trainer
    trainer.close()


def test_the_checkpoints_are_listed_newest_first(trained, repo):
    other = CoralTrainer(trained.model, repo, "another", CONFIG)
    other.step(1.0)
    other.close()
    found = trained.list_checkpoints()
    assert [(each["step"], each["epoch"], each["pruned"], each["is_best"]) for each in found] == [
        (6, 2, False, False),
        (4, 1, False, True),
        (2, 0, True, False),
    ]
    assert found[1]["metrics"] == {"loss": 1.0, "val": 1.0}
    assert found[1]["reasons"] == ["best", "epoch"]
    assert found[1]["commit"] == repo.tags()["best/mine"]
    json.dumps(found)  # plain values


def test_a_checkpoint_of_the_list_can_be_loaded(trained):
    assert trained.load_checkpoint(trained.list_checkpoints()[1]["commit"])
    assert trained.global_step == 4


def test_the_run_in_a_few_numbers(trained, repo):
    summary = trained.get_training_summary()
    seconds, run = summary.pop("seconds"), summary.pop("run")
    stored = summary.pop("stored_bytes")
    raw = sum(commit.nbytes for commit in repo.log() if not commit.pruned)
    assert summary == {
        "experiment": "mine",
        "branch": "main",
        "steps": 6,
        "epochs": 3,
        "monitored": "val",
        "best_metric": 1.0,
        "best_step": 4,
        "checkpoints_saved": 3,
        "checkpoints_kept": 2,
        "raw_bytes": raw,
    }
    assert run == repo.show().run
    assert seconds > 0
    assert 0 < stored <= raw
    json.dumps(summary)


def test_before_anything_is_saved_there_is_nothing(repo):
    trainer = CoralTrainer(nn.Linear(2, 1), repo, "mine", CONFIG)
    assert trainer.list_checkpoints() == []
    summary = trainer.get_training_summary()
    assert (summary["steps"], summary["best_step"], summary["checkpoints_saved"]) == (0, None, 0)
    trainer.close()
