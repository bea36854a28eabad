"""Worker processes of a DataLoader, which begin while a save is under way, and read from the repository it goes to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig


class FromCommit(Dataset[torch.Tensor]):
    """Items that are read from a commit, in whatever process asks for them."""

    def __init__(self, repo: Repository, ref: str) -> None:
        self.repo = repo
        self.ref = ref

    def __len__(self) -> int:
        return 6

    def __getitem__(self, at: int) -> torch.Tensor:
        return torch.from_numpy(self.repo.load(self.ref, names=["data"])["data"].data[at].copy())


FORK = pytest.param("fork", marks=pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", [FORK, "spawn"])
def test_workers_begin_beside_a_save(tmp_path: Path, start: str) -> None:
    repo = Repository(tmp_path / "r", init=True)
    data = torch.arange(24, dtype=torch.float32).reshape(6, 4)
    at = repo.commit({"data": data.numpy()}, branch="data")
    model = nn.Linear(4, 20_000)  # large enough that its save is still under way when the workers begin
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(FromCommit(repo, at), batch_size=3, num_workers=2, multiprocessing_context=start)
    wanted = {}
    with CoralTrainer(model, repo, "run", CheckpointConfig(save_every_n_steps=1, keep_last_n_checkpoints=9)) as trainer:
        trainer.set_optimizer(optimizer)
        for epoch in range(2):
            seen = []
            for batch in loader:
                seen.append(batch)
                loss = model(batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                trainer.step(loss)
                wanted[trainer.global_step] = model.weight.detach().clone()
            assert torch.equal(torch.cat(seen), data)
            trainer.epoch_end(epoch)
    saved = {commit.step: commit.id for commit in repo.log("main") if commit.step is not None}
    assert sorted(saved) == [1, 2, 3, 4]
    for step, weight in wanted.items():
        assert torch.equal(torch.from_numpy(repo.load(saved[step])["weight"].data), weight)
    assert repo.fsck().ok


class Noise(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, at: int) -> torch.Tensor:
        return torch.randn(4) + at


WITHIN = "it was saved within an epoch, and the random states of the data loader's workers are not known"
PERSIST = "workers of a data loader that persist have random states of their own"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(
    ("options", "within", "after"),
    [
        ({"num_workers": 0}, "", ""),
        ({"num_workers": 1}, WITHIN, ""),
        ({"num_workers": 1, "persistent_workers": True}, WITHIN, PERSIST),
    ],
    ids=["none", "one", "one that persists"],
)
def test_what_workers_draw_is_known_where_they_begin_anew(
    repo: Repository, options: dict[str, Any], within: str, after: str
) -> None:
    """Each of them begins with a seed that the loader draws, and its random numbers end with it."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def run(resume: bool | str = False) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        loader = stateful(Noise(), batch_size=2, shuffle=True, **options)
        config = CheckpointConfig(save_every_n_steps=1, save_every_n_epochs=1, durability="fast")
        with CoralTrainer(model, repo, "run", config, resume=resume) as trainer:
            trainer.set_optimizer(optimizer)
            trainer.register("data", loader, data=True)
            for epoch in range(trainer.start_epoch, 2):
                for batch in loader:
                    loss = model(batch).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    trainer.step(loss)
                trainer.epoch_end(epoch)
        return model.state_dict()

    expected = run()
    first, epoch = repo.show("step:2"), repo.show("step:3")
    assert (first.training.get("why", ""), epoch.training.get("why", "")) == (within, after)
    for commit in (first, epoch):
        found = run(resume=commit.id)
        assert commit.exact == all(torch.equal(found[name], expected[name]) for name in expected)
