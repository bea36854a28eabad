"""Optimizer state that a Trainer that goes on loses bits of, as load_state_dict casts it: the commits say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.integrations.hf_trainer._casting import cast_when_loaded


class Half(nn.Module):
    """A model in bfloat16 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8, dtype=torch.bfloat16)
        self.head = nn.Linear(8, 1, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.body(x.bfloat16()).relu())
        return {"loss": (logits.float() - labels).square().mean(), "logits": logits}


@pytest.mark.parametrize(("optimizer", "exact"), [("adafactor", False), ("adamw_torch", True)])
def test_state_that_is_wider_than_its_parameter_is_said_to_be_cast(
    training: Any, repo: Repository, optimizer: str, exact: bool
) -> None:
    def trainer(*callbacks: Any) -> Any:
        return training.trainer(*callbacks, model=Half(), optim=optimizer, learning_rate=0.05)

    whole = trainer(CoralTrainerCallback(repo, save_every_n_epochs=1, include_optimizer=True))
    whole.train()
    expected = training.everything(whole)
    commit = repo.show("step:6")
    again = CoralTrainerCallback(repo, include_optimizer=True, branch="again")
    other = trainer(again)
    other.train(resume_from_checkpoint=again.resume_path(commit.id))
    assert (training.everything(other) == expected) is exact
    assert commit.exact is exact
    assert ("exp_avg_sq_row" in str(commit.training.get("why", ""))) is not exact


def test_state_that_its_optimizer_keeps_as_it_is_is_not_cast() -> None:
    """A step counts in float32 whatever the parameter is, and those of bitsandbytes name what they do not cast."""
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(1.0), "absmax1": torch.ones(1), "codes": torch.ones(1).byte()}
    assert cast_when_loaded(optimizer) == ["absmax1"]
    optimizer.non_castable_tensor_keys = {"absmax1"}  # type: ignore[attr-defined]
    assert cast_when_loaded(optimizer) == []
