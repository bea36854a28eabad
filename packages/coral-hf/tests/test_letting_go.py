"""What a run that ends by an exception leaves behind: none of coral's handlers, threads and announcements."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import TrainerCallback

from coral import Repository
from coral.integrations.hf_trainer import CoralTrainerCallback


class Raises(TrainerCallback):
    """Raises as a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            raise ArithmeticError("out of luck")


@pytest.fixture
def mine() -> Iterator[Any]:
    """A handler of the program's own for SIGTERM."""

    def handler(*_: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def coral(repo: Repository) -> CoralTrainerCallback:
    return CoralTrainerCallback(repo, handle_signals=True, background_repack=False, include_optimizer=True)


@pytest.mark.parametrize("step", [0, 2])
def test_a_guarded_run_puts_the_handlers_back(training: Any, repo: Repository, mine: Any, step: int) -> None:
    callback = coral(repo)
    with pytest.raises(ArithmeticError), callback.guard():
        training.trainer(callback, Raises(step)).train()
    assert signal.getsignal(signal.SIGTERM) is mine
    assert [commit.step for commit in repo.log()] == ([step] if step else [])
    assert repo.store.fs.list("intents") == []


def test_the_next_run_lets_go_of_one_that_nobody_guarded(training: Any, repo: Repository, mine: Any) -> None:
    callback = coral(repo)
    with pytest.raises(ArithmeticError):
        training.trainer(callback, Raises(2)).train()
    assert signal.getsignal(signal.SIGTERM) is not mine, "nobody has said that it ended"
    training.trainer(callback, seed=1).train()
    assert signal.getsignal(signal.SIGTERM) is mine
    assert [commit.step for commit in repo.log()] == [12], "the model has moved on: of that run nothing is saved"
