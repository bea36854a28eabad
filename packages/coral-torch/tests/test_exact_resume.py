"""A run that was killed within an epoch, and goes on in a new process, is the run that nobody touched: to the bit.

The loop has what makes that hard: dropout, AdamW, warm-up and cosine, gradient accumulation, noise on the data, and
shuffling by a torchdata StatefulDataLoader.
"""

import json
import logging
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

LOOP = """
import json, os, random, signal, sys
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

path, end = sys.argv[1:3]
seed, workers, own = map(int, sys.argv[3:])
EPOCHS, ACCUMULATE, LAST = 3, 2, 10  # 14 batches and 7 updates an epoch: the 10th is within the second
random.seed(seed), torch.manual_seed(seed)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
scheduler = SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 16)], [4])
x = torch.sin(torch.arange(40 * 6.0)).reshape(40, 6)
generator = torch.Generator().manual_seed(seed) if own else None
loader = StatefulDataLoader(
    TensorDataset(x, x.sum(1, keepdim=True)), batch_size=3, shuffle=True, num_workers=workers, generator=generator
)
config = CheckpointConfig(save_every_n_steps=1)
losses = {}
with CoralTrainer(model, Repository(path, init=True), "exact", config, resume=True) as trainer:
    trainer.set_optimizer(optimizer)
    trainer.set_scheduler(scheduler, step_on="step")
    trainer.register("data", loader, data=True)
    if generator:
        trainer.register("order", generator)
    for epoch in range(trainer.start_epoch, EPOCHS):
        for number, (features, target) in enumerate(loader):
            noisy = features + 0.01 * random.random() + 0.01 * torch.randn_like(features)
            loss = (model(noisy) - target).square().mean() / ACCUMULATE
            loss.backward()
            if trainer.global_step == LAST and end == "exception":
                raise RuntimeError("in the middle of an accumulation")
            if trainer.global_step == LAST and end == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            if number % ACCUMULATE == ACCUMULATE - 1:
                optimizer.step()
                optimizer.zero_grad()
                trainer.step(loss)
                losses[trainer.global_step] = loss.item().hex()
        trainer.epoch_end(epoch)
        losses[f"epoch {epoch}"] = trainer.training_metrics["loss"].hex()
weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
moments = torch.cat([s["exp_avg_sq"].reshape(-1) for s in optimizer.state.values()])
print(json.dumps([losses, weights.tolist(), moments.tolist(), optimizer.param_groups[0]["lr"], random.random()]))
"""


def loop(path, end, *, seed=0, workers=0, own=0):
    """What became of the loop in a process of its own: its exit status, what it printed, what it said."""
    command = [sys.executable, "-c", LOOP, str(path), end, str(seed), str(workers), str(own)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("exception", {"workers": 0, "own": 0}),
        ("SIGKILL", {"workers": 0, "own": 1}),
        pytest.param("SIGKILL", {"workers": 2, "own": 0}, marks=pytest.mark.nightly),
    ],
    ids=["exception", "SIGKILL, the order by an own generator", "SIGKILL, data by worker processes"],
)
def test_the_killed_run_goes_on_to_the_bit(end, how, tmp_path):
    pytest.importorskip("torchdata")
    status, whole, said = loop(tmp_path / "whole", "end", **how)
    assert status == 0, said
    status, nothing, said = loop(tmp_path / "killed", end, **how)
    assert nothing is None
    assert status == (-signal.SIGKILL if end == "SIGKILL" else 1), said
    newest = Repository(tmp_path / "killed").show()
    # that these workers draw no random numbers is not known
    assert newest.exact == (not how["workers"]), newest.training
    assert newest.step in ((10,) if end == "exception" else (9, 10))  # the last one may not have been written yet

    status, rest, said = loop(tmp_path / "killed", "end", seed=99, **how)  # other weights, other numbers, before it
    assert status == 0, said
    losses, weights, *others = rest
    assert max(abs(a - b) for a, b in zip(weights, whole[1], strict=True)) == 0.0
    assert others == whole[2:]
    expected = {at: loss for at, loss in whole[0].items() if at not in map(str, range(newest.step + 1))}
    del expected["epoch 0"]
    assert losses == expected  # "epoch 1" is the mean of updates of both processes


# Where it cannot be exact, it is said when it is saved and when it is resumed


def interrupted(repo, config, *, in_the_update):
    """A run on a DataLoader that shuffles and does not know where it is; it is left in its second step."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(torch.linspace(0, 1, 8).reshape(4, 2), shuffle=True)
    with pytest.raises(RuntimeError), CoralTrainer(model, repo, "run", config) as trainer:  # noqa: PT012
        trainer.set_optimizer(optimizer)
        for features in loader:
            model(features).sum().backward()
            optimizer.step()
            if in_the_update and trainer.global_step == 1:
                raise RuntimeError
            trainer.step(1.0)
            if trainer.global_step == 2:
                raise RuntimeError


@pytest.mark.parametrize(
    ("config", "in_the_update", "step", "why"),
    [
        (CheckpointConfig(save_every_n_steps=1), False, 2, "the position in the data is not known"),
        (CheckpointConfig(), True, 1, r"interrupted inside optimizer\.step\(\)"),
        (CheckpointConfig(), False, 2, "saved on an interrupt"),
    ],
    ids=["shuffled data within an epoch", "within a step", "on an exception"],
)
def test_what_cannot_be_exact_says_why(config, in_the_update, step, why, repo, caplog):
    interrupted(repo, config, in_the_update=in_the_update)
    newest = repo.show()
    assert (newest.step, newest.exact) == (step, False)
    with caplog.at_level(logging.INFO, "coral"):
        CoralTrainer(nn.Linear(2, 1), repo, "run", resume=True).close()
    (line,) = [record for record in caplog.records if "resumed" in record.getMessage()]
    assert f"resumed approximately ({newest.training['why']})" in line.getMessage()
    assert re.search(why, line.getMessage())
