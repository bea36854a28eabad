"""What counts as a buffer that training has moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coral.integrations.hf_trainer._moved import Buffers


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("small", torch.zeros(4))
        self.register_buffer("large", torch.zeros(1 << 17))
        self.register_buffer("passing", torch.zeros(4), persistent=False)


def moved_by(change: Any) -> set[str]:
    holder = Holder()
    before = Buffers(holder)
    assert before.moved() == {}
    change(holder)
    return {*before.moved()}


def test_what_is_written_or_replaced_has_moved() -> None:
    assert moved_by(lambda holder: holder.norm(torch.rand(3, 4))) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    assert moved_by(lambda holder: holder.small.add_(1)) == {"small"}
    assert moved_by(lambda holder: holder.large.add_(1)) == {"large"}
    assert moved_by(lambda holder: setattr(holder, "small", torch.ones(4))) == {"small"}
    assert moved_by(lambda holder: setattr(holder, "large", torch.ones(1 << 17))) == {"large"}
    assert moved_by(lambda holder: holder.double()) >= {"small", "large"}
    assert moved_by(lambda holder: holder.register_buffer("late", torch.zeros(1))) == {"late"}


def test_what_is_as_it_was_has_not() -> None:
    assert moved_by(lambda holder: holder.passing.add_(1)) == set()
    assert moved_by(lambda holder: holder.small.copy_(holder.small.clone())) == set()
    assert moved_by(lambda holder: holder.norm.eval()(torch.rand(3, 4))) == set()
