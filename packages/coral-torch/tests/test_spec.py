"""The documented snippets, run as they are written."""

import re
import textwrap
from pathlib import Path

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


FUNCTIONS = """
# Save model
save_model_to_coral(model, repo, "Commit message")

# Load model
load_model_from_coral(model, repo, commit_ref=None)

# Flexible loading with key mapping
load_into_model(model, weights, strict=True, key_map=None, device='cpu')

# Load from repo path
load_from_repo(model, "./repo", branch="main", device='cpu')

# Save with options
save_model(model, "./repo", "Message", branch="exp", push_to="origin")

# Compare weights
compare_model_weights(model, weights)  # identical, modified, similarity

# Create model from weights
create_model_from_weights(ModelClass, weights, device='cpu', **model_kwargs)
"""

REMOTE = """
# Load from remote
load_from_remote(model, "./repo", remote_name="origin", pull_first=True)
"""

STREAMING = """
loader = StreamingWeightLoader("./large-model-repo", commit_ref=None)

# Get info without loading
print(f"Weights: {loader.num_weights}")
print(f"Memory needed: {loader.estimate_memory()} bytes")

# Stream weights one at a time
for name, tensor in loader.stream_weights(device='cpu', progress=True):
    # Process each weight individually
    pass

# Stream directly into model
stats = loader.stream_into_model(model, device='cpu', strict=False)

# Convenience function
stats = stream_load_model(model, "./repo", device='cpu', progress=True)
"""

LARGE_MODEL_LOADING = """
from coral.integrations.pytorch import stream_load_model

# Memory-efficient loading for LLMs
stats = stream_load_model(
    large_model,
    "./llm-weights",
    device='cpu',
    progress=True,
)
print(f"Loaded {stats['matched']} weights")
"""

EVERYTHING = "from coral import *\nfrom coral.integrations.pytorch import *\n"


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


def test_the_functions_run_as_written(training):
    names = {**training, "ModelClass": nn.Linear, "model_kwargs": {"in_features": 3, "out_features": 1}}
    run(
        EVERYTHING + 'repo = Repository("./repo", init=True)\nweights = PyTorchIntegration.model_to_weights(model)',
        names,
    )
    run(FUNCTIONS, names)
    assert [commit.message for commit in names["repo"].log("exp")] == ["Message", "Commit message"]
    Path("origin").symlink_to("repo")  # what a remote is as yet: the folder of a repository
    run(REMOTE, names)


def test_streaming_runs_as_written(training, capsys):
    run(EVERYTHING + 'save_model(model, "./repo", "")\nsave_model(model, "./large-model-repo", "")', training)
    run(STREAMING, training)
    assert capsys.readouterr().out == "Weights: 2\nMemory needed: 16 bytes\n"
    assert training["stats"]["loaded"] == ["weight", "bias"]


def test_large_model_loading_runs_as_written(training, capsys):
    with torch.device("meta"):
        training["large_model"] = nn.Linear(3, 1)
    run(EVERYTHING + 'save_model(model, "./llm-weights", "")', training)
    run(LARGE_MODEL_LOADING, training)
    assert capsys.readouterr().out == "Loaded 2 weights\n"
    assert torch.equal(training["large_model"].weight, training["model"].weight)


def test_the_readme_runs_as_written(training, capsys):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Linear(3, 2), nn.Linear(2, 1)
            self.model = nn.ModuleDict({"fc": nn.Linear(2, 1)})

        def forward(self, x):
            return self.model["fc"](self.body(x)) + self.fc(self.body(x))

    names = {
        **training,
        "model": Whole(),
        "LargeModel": Whole,
        "head": nn.ModuleDict({"classifier": nn.Linear(2, 1)}),
        "batches": training["train_loader"],
    }
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    names["train_on"] = lambda batch: names["model"](batch).square().mean().detach()
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(snippets) == 5
    for number, snippet in enumerate(snippets):
        run(snippet, names)
        if number == 0:
            names["trainer"].close()
            names["repo"] = names["trainer"].repository
    assert names["report"]["loaded"] == ["classifier.weight", "classifier.bias"]
    printed = capsys.readouterr().out
    assert printed.startswith("6 ")
    assert names["repo"].resolve("main") in printed
    assert all(torch.equal(a, b) for a, b in zip(names["large"].parameters(), names["model"].parameters(), strict=True))
