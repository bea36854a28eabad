"""Each option of CheckpointConfig does something: a run with it is not the run without it."""

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from coral import Repository
from coral.filesystem import LocalFileSystem
from coral.integrations.pytorch import CoralTrainer
from coral.integrations.pytorch._options import Options
from coral.training import CheckpointConfig, _pushing, _requests, _upkeep

SCORES = [4.0, 2.0, 1.9, 3.0]  # of the four epochs, two steps each


class Ran(NamedTuple):
    """A run that is over, and what was seen of it."""

    repo: Repository
    trainer: CoralTrainer
    log: str
    seen: dict[str, Any]


def saved(ran: Ran) -> list[Any]:
    return [commit.step for commit in reversed(ran.repo.log("main"))]


def kept(ran: Ran) -> list[Any]:
    return [commit.step for commit in reversed(ran.repo.log("main")) if not commit.pruned]


def best(ran: Ran) -> Any:
    return ran.repo.show("main@best").step


def parts(ran: Ran) -> set[str]:
    return {"optimizer", "scheduler", "random"} & set(ran.repo.load_state("main"))


def seen(what: str) -> Callable[[Ran], Any]:
    return lambda ran: ran.seen[what]


class Case(NamedTuple):
    """What is to be observed, for each of two values of an option."""

    observe: Callable[[Ran], Any]
    expected: dict[Any, Any]
    others: Mapping[str, Any] = MappingProxyType({})
    ends: str = "close"


EPOCHS = {"save_every_n_epochs": 1}
STEPS = {"save_every_n_steps": 1}
BEST = {"save_on_best_metric": "val"}
ALL = {"optimizer", "scheduler", "random"}

CASES = {
    "save_every_n_steps": Case(saved, {None: [8], 3: [3, 6, 8]}),
    "save_every_n_epochs": Case(saved, {None: [8], 2: [4, 8]}),
    "save_every_seconds": Case(saved, {None: [8], 30.0: [4, 7, 8]}),
    "save_on_best_metric": Case(saved, {None: [8], "val": [2, 4, 6, 8]}),
    "minimize_metric": Case(best, {True: 6, False: 2}, BEST),
    "best_threshold": Case(best, {0.0: 6, 0.5: 4}, BEST),
    "keep_last_n_checkpoints": Case(kept, {None: [2, 4, 6, 8], 2: [6, 8]}, EPOCHS),
    "keep_best_n_checkpoints": Case(kept, {None: [6, 8], 2: [4, 6, 8]}, EPOCHS | BEST | {"keep_last_n_checkpoints": 1}),
    "keep_checkpoint_every_n_epochs": Case(kept, {None: [8], 2: [4, 8]}, EPOCHS | {"keep_last_n_checkpoints": 1}),
    "save_on_train_end": Case(saved, {True: [8], False: []}),
    "save_on_interrupt": Case(saved, {True: [8], False: []}, {"save_on_train_end": False}, "raise"),
    "save_optimizer_state": Case(parts, {True: ALL, False: ALL - {"optimizer"}}),
    "save_scheduler_state": Case(parts, {True: ALL, False: ALL - {"scheduler"}}),
    "save_random_state": Case(parts, {True: ALL, False: ALL - {"random"}}),
    "commit_message_template": Case(
        lambda ran: ran.repo.show("main").message,
        {"{experiment}: step {step} ({reasons})": "mine: step 8 (final)", "{step}/{epoch}": "8/3"},
    ),
    "tag_best_checkpoints": Case(lambda ran: list(ran.repo.tags()), {True: ["best/mine"], False: []}, BEST),
    "early_stopping_patience": Case(lambda ran: ran.trainer.should_stop, {None: False, 1: True}, BEST),
    "early_stopping_threshold": Case(
        lambda ran: ran.trainer.should_stop, {0.0: False, 0.5: True}, BEST | {"early_stopping_patience": 2}
    ),
    "async_save": Case(seen("saved by the main thread"), {True: False, False: True}, STEPS),
    "durability": Case(seen("synced folders"), {"full": True, "fast": False}, STEPS),
    "background_repack": Case(seen("repacks"), {True: True, False: False}, STEPS),
    "save_on_request": Case(saved, {True: [3, 8], False: [8]}, {}, "ask"),
    "handle_signals": Case(seen("heard SIGUSR1"), {False: False, True: True}),
    "prune_remote": Case(seen("pruned over there"), {False: False, True: True}, {}, "push"),
    "check_disk": Case(lambda ran: "7 bytes free" in ran.log, {True: True, False: False}),
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[..., Ran]:
    """Runs four epochs under a config, with whatever its options are about to be seen."""

    def run(config: CheckpointConfig, ends: str) -> Ran:
        notes: dict[str, Any] = {"saved by the main thread": False, "synced folders": False, "repacks": False}
        now = [0.0]
        commit, sync = Repository.commit, LocalFileSystem.fsync_dir
        main = threading.main_thread()

        def watched(*args: Any, **how: Any) -> str:
            notes["saved by the main thread"] |= threading.current_thread() is main
            return commit(*args, **how)

        repo = Repository(tmp_path / "repo", init=True, durability="fast")
        monkeypatch.setattr(Repository, "commit", watched)
        monkeypatch.setattr(
            LocalFileSystem, "fsync_dir", lambda fs, path: (notes.update({"synced folders": True}), sync(fs, path))[1]
        )
        monkeypatch.setattr(LocalFileSystem, "free", lambda fs: 7)
        monkeypatch.setattr(_upkeep, "_REPACK_AT", 1)
        monkeypatch.setattr(_upkeep.Upkeep, "_start", lambda upkeep: notes.update(repacks=True))
        monkeypatch.setattr(_requests, "_EVERY", 0.0)
        checked = _pushing.DuePush.checked

        def due(remote: Any, branch: str, *, prune: bool) -> Any:
            notes["pruned over there"] = prune
            return checked(remote, branch, prune=prune)

        monkeypatch.setattr(_pushing.DuePush, "checked", due)
        monkeypatch.setattr(_pushing.Pushing, "_start", lambda pushing: None)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        before = signal.getsignal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        caplog.set_level(logging.INFO, "coral")
        try:
            trainer = _train(repo, config, ends, now, notes)
        finally:
            signal.signal(signal.SIGUSR1, before)
        return Ran(repo, trainer, caplog.text, notes)

    return run


def _train(
    repo: Repository, config: CheckpointConfig, ends: str, now: list[float], notes: dict[str, Any]
) -> CoralTrainer:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    there = repo.path.with_name("there") if ends == "push" else None
    trainer = CoralTrainer(model, repo, "mine", config, push_to=there)
    trainer.set_optimizer(optimizer)
    trainer.set_scheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
    for epoch, score in enumerate(SCORES):
        for _ in range(2):
            now[0] += 10.0
            model(torch.ones(2)).backward()
            optimizer.step()
            if ends == "ask" and trainer.global_step == 2:
                (repo.path / "SAVE").touch()
            trainer.step(1.0)
        trainer.epoch_end(epoch, val=score)
    notes["heard SIGUSR1"] = signal.getsignal(signal.SIGUSR1) != signal.SIG_IGN
    if ends == "raise":
        with pytest.raises(RuntimeError), trainer:
            raise RuntimeError
    trainer.close()
    return trainer


def test_every_option_is_in_the_table() -> None:
    assert {field.name for field in dataclasses.fields(CheckpointConfig)} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_default_is_one_of_the_two(name: str) -> None:
    default = getattr(CheckpointConfig(), name)
    assert len(CASES[name].expected) == 2
    assert default in CASES[name].expected


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the run under which all are tried sets its handler")
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, case in CASES.items() for value in case.expected])
def test_each_value_does_what_it_says(name: str, value: Any, ran: Callable[..., Ran]) -> None:
    case = CASES[name]
    (one, other) = case.expected.values()
    assert one != other
    options: dict[str, Any] = {"durability": "fast", **case.others, name: value}
    assert case.observe(ran(CheckpointConfig(**options), case.ends)) == case.expected[value]


def test_every_field_of_the_config_is_a_keyword_of_the_callbacks() -> None:
    named = {"save_every_n_epochs", "save_every_n_steps", "save_on_best_metric", "minimize_metric", "save_on_train_end"}
    assert {*Options.__annotations__} | named == {field.name for field in dataclasses.fields(CheckpointConfig)}
