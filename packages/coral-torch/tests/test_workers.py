"""Worker processes of a DataLoader, which begin while a save is under way, and read from the repository it goes to."""

from __future__ import annotations

import sys
from pathlib import Path

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
