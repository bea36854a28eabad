"""Functions of the user's, called as training goes on."""

import logging
import threading

import pytest
import torch
from torch import nn

from coral import Repository
from coral.errors import ConfigError
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

EVERY_STEP = CheckpointConfig(save_every_n_steps=1, durability="fast", background_repack=False)
EVENTS = ("step_end", "epoch_end", "checkpoint_save")


@pytest.fixture
def trainer(repo):
    trainer = CoralTrainer(nn.Linear(2, 1), repo, "mine", EVERY_STEP)
    trainer.set_optimizer(torch.optim.SGD(trainer.model.parameters(), lr=0.1))
    return trainer


def hear(trainer, *events):
    heard = []
    for event in events:
        trainer.add_callback(event, lambda given, event=event, **facts: heard.append((event, given, facts)))
    return heard


def test_each_event_is_told_with_its_facts(trainer, repo):
    heard = hear(trainer, *EVENTS)
    loss = torch.tensor(2.0)
    trainer.step(loss, accuracy=0.5)
    trainer.epoch_end(0, val=1.0)
    trainer.close()
    assert all(given is trainer for _, given, _ in heard)
    told = {event: facts for event, _, facts in heard}
    assert told["step_end"] == {"step": 1, "epoch": 0, "metrics": {"loss": loss, "accuracy": 0.5}}
    assert told["epoch_end"] == {"step": 1, "epoch": 0, "metrics": {"loss": 2.0, "accuracy": 0.5, "val": 1.0}}
    facts = told["checkpoint_save"]
    assert (facts["step"], facts["commit"], facts["reasons"]) == (1, repo.resolve(), ("step",))
    assert set(facts) == {"step", "epoch", "commit", "reasons", "metrics"}
    assert len(heard) == 3


def test_a_save_is_told_by_the_thread_that_trains_once_for_each(trainer):
    told = []
    trainer.add_callback("checkpoint_save", lambda _, step, **facts: told.append((step, threading.current_thread())))
    for _ in range(5):
        trainer.step(1.0)
    trainer.wait()
    trainer.close()
    assert told == [(step, threading.main_thread()) for step in range(1, 6)]


def test_several_are_called_in_the_order_in_which_they_were_added(trainer):
    order = []
    for name in "abc":
        trainer.add_callback("step_end", lambda _, name=name, **facts: order.append(name))
    trainer.step(1.0)
    trainer.close()
    assert order == ["a", "b", "c"]


def test_an_unknown_event_names_those_there_are(trainer):
    with pytest.raises(ConfigError, match=r"no event 'on_save'.* step_end, epoch_end, checkpoint_save"):
        trainer.add_callback("on_save", print)
    with pytest.raises(ConfigError, match="must be a function"):
        trainer.add_callback("step_end", "print")
    trainer.close()


@pytest.mark.parametrize("event", EVENTS)
def test_what_a_callback_raises_comes_out_unchanged_and_nothing_is_lost(trainer, repo, event):
    mine = KeyError("mine")

    def fail(*_, **__):
        raise mine

    trainer.add_callback(event, fail)
    later = hear(trainer, event)

    def go_on():
        trainer.step(1.0)
        trainer.epoch_end(0)
        trainer.wait()

    with pytest.raises(KeyError) as raised:
        go_on()
    assert raised.value is mine
    trainer.wait()
    assert (trainer.global_step, repo.show().step) == (1, 1)
    assert [heard[0] for heard in later] == [event]  # what was to follow it is told next


def test_one_that_fails_while_an_exception_passes_does_not_take_its_place(trainer, repo, caplog):
    trainer.add_callback("checkpoint_save", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="the loop's own"), caplog.at_level(logging.ERROR, "coral"), trainer:  # noqa: PT012
        trainer.step(1.0)
        raise ValueError("the loop's own")
    assert repo.show().step == 1
    assert "division" in caplog.text


def test_a_save_by_hand_is_made_at_the_next_step(repo):
    config = CheckpointConfig(durability="fast", save_on_train_end=False)
    with CoralTrainer(nn.Linear(2, 1), repo, "mine", config) as trainer:
        trainer.step(1.0)
        trainer.request_save()
        trainer.step(1.0)
    assert [(commit.step, commit.reasons) for commit in repo.log()] == [(2, ("requested",))]


def test_each_save_is_one_line_in_the_log(trainer, caplog):
    with caplog.at_level(logging.INFO, "coral"):
        for _ in range(3):
            trainer.step(1.0)
        trainer.close()
    lines = [record for record in caplog.records if "saved step" in record.getMessage()]
    assert [record.levelname for record in lines] == ["INFO"] * 3
    newest = Repository(trainer.repository.path).show()
    assert f"mine: saved step 3 (step) as {newest.id[:12]}: {newest.nbytes:,} bytes in " in lines[-1].getMessage()
