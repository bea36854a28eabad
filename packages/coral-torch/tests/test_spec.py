"""The documented snippets, run as they are written."""

import textwrap

import pytest
import torch
from torch import nn

BASIC_TRAINING = """
from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

# Initialize
repo = Repository("./checkpoints", init=True)
config = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss")
trainer = CoralTrainer(model, repo, "my-experiment", config)

# Training loop
for epoch in range(10):
    for batch in train_loader:
        loss = train_step(batch)
        trainer.step(loss)
    trainer.epoch_end(epoch)

# Resume from best
trainer.load_checkpoint(load_best=True)
"""

TRAINER = """
trainer = CoralTrainer(
    model=model,
    repository=repo,
    experiment_name="my-experiment",
    checkpoint_config=CheckpointConfig(
        save_every_n_epochs=1,
        save_on_best_metric="loss",
        minimize_metric=True,
        keep_last_n_checkpoints=5,
        keep_best_n_checkpoints=3,
    )
)

trainer.set_optimizer(optimizer)
trainer.set_scheduler(scheduler)

# Training loop
for epoch in range(epochs):
    for batch in dataloader:
        loss = train_step(batch)
        trainer.step(loss, accuracy=acc)  # Records metrics, may checkpoint
    trainer.epoch_end(epoch)

# Load best checkpoint
trainer.load_checkpoint(load_best=True)
"""

INTEGRATION = """
weights = PyTorchIntegration.model_to_weights(model)
PyTorchIntegration.weights_to_model(weights, model)
state = PyTorchIntegration.save_optimizer_state(optimizer)
PyTorchIntegration.load_optimizer_state(optimizer, state)
state = PyTorchIntegration.save_scheduler_state(scheduler)
PyTorchIntegration.load_scheduler_state(scheduler, state)
state = PyTorchIntegration.get_random_state()  # For reproducibility
PyTorchIntegration.set_random_state(state)
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    """What the snippets take for granted."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(batch):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    batches = [torch.randn(4, 3) for _ in range(2)]
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5),
        "train_loader": batches,
        "dataloader": batches,
        "train_step": train_step,
        "epochs": 3,
        "acc": 0.5,
    }


def run(snippet, names):
    exec(compile(textwrap.dedent(snippet), "snippet", "exec"), names)  # noqa: S102, that is what is tested


def test_basic_training_runs_as_written(training, caplog):
    run(BASIC_TRAINING, training)
    log = training["repo"].log()
    assert [commit.step for commit in log] == list(range(20, 0, -2))
    assert [commit.experiment for commit in log] == ["my-experiment"] * 10
    assert training["trainer"].global_step == 20  # there was no best: the last was loaded
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2
    assert "'val_loss' did not come" in said[0]
    assert "no checkpoint is marked as the best" in said[1]


def test_the_trainer_runs_as_written(training):
    run(BASIC_TRAINING.split("config =", maxsplit=1)[0] + TRAINER, training)
    log = training["repo"].log()
    assert [commit.step for commit in log] == [6, 4, 2]
    assert log[0].metrics["accuracy"] == 0.5
    assert training["trainer"].training_metrics == dict(training["repo"].show("best").metrics)


def test_the_integration_runs_as_written(training):
    run("from coral.integrations.pytorch import PyTorchIntegration\n" + INTEGRATION, training)
