"""Optimizers whose state is wider than the parameters, which Lightning has torch cast as it is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coral import Repository
from coral.integrations.lightning import CoralCallback


class FullPrecision(torch.optim.Optimizer):
    """Momentum in float32, whatever the parameter is, as Adafactor has it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for parameter in self.param_groups[0]["params"]:
            momentum = self.state[parameter].get("momentum", torch.zeros_like(parameter, dtype=torch.float32))
            self.state[parameter]["momentum"] = momentum = momentum * 0.9 + parameter.grad.float()
            parameter -= (0.01 * momentum).to(parameter.dtype)
        return loss


def fit(lab: SimpleNamespace, path: Path, make: Any, ref: str | None = None) -> Any:
    class Net(lab.Net):  # type: ignore[misc, name-defined]
        def loss(self, batch: Any) -> torch.Tensor:
            x, y = batch
            return (self.net(x.bfloat16()) - y).square().mean()

        def configure_optimizers(self) -> Any:
            return make(self.parameters())

    lab.seeded()
    saves = CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast")
    trainer = lab.trainer(saves, precision="bf16-true")
    trainer.fit(
        Net(), *lab.loaders(), ckpt_path=ref if ref is None or ref.endswith(".ckpt") else f"coral://{path}@{ref}"
    )
    return lab.everything(trainer)


@pytest.mark.parametrize("make", [FullPrecision, torch.optim.NAdam], ids=["of one's own", "NAdam"])
@pytest.mark.parametrize("link", [True, False], ids=["link", "file"])
def test_it_goes_on_to_the_bit(lab: SimpleNamespace, path: Path, make: Any, link: bool) -> None:
    expected = fit(lab, path, make)
    commit = Repository(path).show("step:3")
    assert commit.exact, commit.training
    ref = commit.id if link else CoralCallback(path).resume_path(commit.id)
    assert fit(lab, path, make, ref) == expected


@pytest.mark.parametrize("make", [FullPrecision, torch.optim.Adam], ids=["wide", "as the parameters"])
def test_where_the_model_is_in_parts_it_is_approximate(
    lab: SimpleNamespace, path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is loaded part by part, by what strategies have for that."""
    monkeypatch.setattr("coral.integrations.lightning._source.is_sharded", lambda _: True)
    fit(lab, path, make)
    commit = Repository(path).show("step:3")
    assert commit.exact == (make is torch.optim.Adam)
    assert commit.exact or "is cast to its parameters' dtype" in commit.training["why"]
