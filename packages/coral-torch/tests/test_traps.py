"""What went wrong in an earlier system of this kind, measured there: each of these tests would have failed on it."""

import warnings

import pytest
import torch
from torch import nn

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.training import CheckpointConfig


class Count(nn.Module):
    """loss = -w with a learning rate of 1, so that the weight is the number of the step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self):
        return -self.w


def train(trainer, model, epochs, steps=2, accumulate=1, scores=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer.set_optimizer(optimizer)
    for epoch in range(epochs):
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(accumulate):
                loss = model() / accumulate
                loss.backward()
            optimizer.step()
            trainer.step(loss)
        trainer.epoch_end(epoch, **({"val_loss": scores[epoch]} if scores else {}))


def test_checkpoints_are_not_views_of_live_parameters(repo):
    # 11 saves, and every one of them restored as the first
    model = Count()
    with CoralTrainer(model, repo, checkpoint_config=CheckpointConfig(save_every_n_steps=1, durability="fast")) as t:
        train(t, model, 2, steps=3)
    assert {c.step: repo.load(c.id)["w"].data.item() for c in repo.log()} == {n: float(n) for n in range(1, 7)}
    assert not repo.diff("step:1", "step:2").identical


def test_a_repository_opens_again_after_a_checkpoint_and_with_init_too(tmp_path):
    for seen in range(2):
        repo = Repository(tmp_path / "repo", init=True, durability="fast")
        assert len(repo.log()) == 2 * seen
        model = Count()
        with CoralTrainer(model, repo) as trainer:
            train(trainer, model, 2)
    assert Repository(tmp_path / "repo").load("HEAD")["w"].data.item() == 4.0


def test_optimizer_state_survives_with_its_keys_and_types(repo):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with CoralTrainer(model, repo) as trainer:
        trainer.set_optimizer(optimizer)
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        trainer.step(1.0)
        trainer.epoch_end(0)
    fresh = torch.optim.Adam(model.parameters())
    trainer = CoralTrainer(model, repo)
    trainer.set_optimizer(fresh)
    assert trainer.load_checkpoint()
    state = fresh.state_dict()["state"]
    assert list(state) == [0, 1]
    assert torch.equal(state[0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert state[0]["exp_avg"].dtype is torch.float32


def test_bfloat16_zero_dimensional_buffers_and_tied_weights_are_saved(repo):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 3)
            self.norm = nn.BatchNorm1d(3)
            self.head = nn.Linear(3, 4, bias=False)
            self.head.weight = self.embed.weight

    model = Model().bfloat16()
    with CoralTrainer(model, repo) as trainer:
        trainer.step(1.0)
        trainer.epoch_end(0)
    assert set(repo.load()) == set(model.state_dict())
    assert repo.load()["norm.num_batches_tracked"].shape == ()
    other = Model().bfloat16()
    CoralTrainer(other, repo, resume=True).close()
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.embed.weight, model.embed.weight)
    Pt.weights_to_model(repo.load(), other)  # strict


def test_branch_means_the_branch(repo):
    model = Count()
    with CoralTrainer(model, repo, branch="tries") as trainer:
        train(trainer, model, 1)
    assert set(repo.branches()) == {"tries"}


def test_metrics_and_reasons_are_in_the_commit(repo):
    model = Count()
    config = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss", durability="fast")
    with CoralTrainer(model, repo, "mine", config) as trainer:
        train(trainer, model, 2, scores=[2.0, 1.0])
    assert [dict(c.metrics) for c in repo.log()] == [{"loss": -2.5, "val_loss": 1.0}, {"loss": -0.5, "val_loss": 2.0}]
    assert {"epoch", "best"} <= set(repo.log()[0].reasons)


def test_the_epoch_trigger_fires_once_an_epoch(repo):
    # 11 checkpoints in an epoch of 10 steps
    model = Count()
    config = CheckpointConfig(save_every_n_epochs=1, save_on_train_end=False, durability="fast")
    with CoralTrainer(model, repo, checkpoint_config=config) as trainer:
        train(trainer, model, 3, steps=10)
    assert [c.step for c in repo.log()] == [30, 20, 10]


def test_a_step_is_saved_once_under_accumulation(repo):
    model = Count()
    config = CheckpointConfig(save_every_n_steps=1, save_every_n_epochs=1, durability="fast")
    with CoralTrainer(model, repo, checkpoint_config=config) as trainer:
        train(trainer, model, 2, steps=2, accumulate=2)
    assert [c.step for c in repo.log()] == [4, 3, 2, 1]
    assert {c.step: repo.load(c.id)["w"].data.item() for c in repo.log()} == {n: float(n) for n in range(1, 5)}


@pytest.mark.filterwarnings("ignore:metric 'val_loss' is nan")
def test_nan_is_never_the_best_and_there_is_a_best(repo):
    model = Count()
    config = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss", durability="fast")
    trainer = CoralTrainer(model, repo, "mine", config)
    train(trainer, model, 3, scores=[float("nan"), 2.0, 3.0])
    trainer.load_checkpoint(load_best=True)
    assert model.w.item() == 4.0
    assert "best" in repo.show("step:4").reasons


def test_a_loss_that_is_a_tensor_with_a_graph_is_taken(repo):
    model = Count()
    with CoralTrainer(model, repo) as trainer, warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(model())
        trainer.epoch_end(0)
    assert repo.show().metrics["loss"] == 0.0
