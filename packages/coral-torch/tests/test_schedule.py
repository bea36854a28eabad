"""When the trainer steps the scheduler, and when it leaves that alone."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from coral.errors import ConfigError
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

CONFIG = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss", durability="fast")


@pytest.fixture
def training(repo):
    """A trainer with an optimizer, and a way to run an epoch of two steps."""

    class Training:
        def __init__(self):
            self.model = nn.Linear(1, 1)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
            self.trainer = CoralTrainer(self.model, repo, checkpoint_config=CONFIG)
            self.trainer.set_optimizer(self.optimizer)

        @property
        def lr(self):
            return self.optimizer.param_groups[0]["lr"]

        def epoch(self, number, between=None, **metrics):
            for _ in range(2):
                self.model(torch.ones(1)).backward()
                self.optimizer.step()
                self.trainer.step(0.5)
                if between:
                    between()
            self.trainer.epoch_end(number, **metrics)

    made = Training()
    yield made
    made.trainer.close()


def test_by_default_it_is_stepped_at_the_end_of_the_epoch_and_before_saving(training, repo):
    scheduler = lrs.ExponentialLR(training.optimizer, 0.5)
    training.trainer.set_scheduler(scheduler)
    training.epoch(0)
    assert training.lr == 0.5
    training.epoch(1)
    training.trainer.wait()
    assert training.lr == 0.25
    state = repo.load_state()
    assert state["scheduler"]["last_epoch"] == 2
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.25


def test_it_can_be_stepped_at_each_step(training):
    training.trainer.set_scheduler(lrs.ExponentialLR(training.optimizer, 0.5), "step")
    training.epoch(0)
    assert training.lr == 0.25


def test_it_can_be_left_to_the_loop(training):
    scheduler = lrs.ExponentialLR(training.optimizer, 0.5)
    training.trainer.set_scheduler(scheduler, step_on=None)
    training.epoch(0)
    assert training.lr == 1.0
    training.epoch(1, between=scheduler.step)
    assert training.lr == 0.25


def test_another_moment_is_refused(training):
    with pytest.raises(ConfigError, match="step_on is 'batch'"):
        training.trainer.set_scheduler(lrs.ExponentialLR(training.optimizer, 0.5), "batch")


@pytest.mark.parametrize("step_on", ["epoch", "step"])
@pytest.mark.parametrize(
    "make",
    [
        lambda o: lrs.ExponentialLR(o, 0.5),
        lambda o: lrs.ChainedScheduler([lrs.ExponentialLR(o, 0.5)]),
        lambda o: lrs.SequentialLR(o, [lrs.ExponentialLR(o, 0.5), lrs.ConstantLR(o)], [100]),
    ],
    ids=["plain", "chained", "sequential"],
)
def test_a_loop_that_steps_it_itself_is_warned_once_and_left_alone(training, make, step_on):
    scheduler = make(training.optimizer)
    training.trainer.set_scheduler(scheduler, step_on)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3):
            before = training.lr
            if step_on == "epoch":
                training.epoch(number, between=scheduler.step)
                assert training.lr == pytest.approx(before / 4)  # the loop's two steps, and no third
            else:
                scheduler.step()
                training.trainer.step(0.5)
                assert training.lr == pytest.approx(before / 2)
    ours = [each for each in caught if "stepped by the training loop" in str(each.message)]
    assert len(ours) == 1
    assert ours[0].filename == __file__


def test_a_plateau_scheduler_gets_the_monitored_metric(training):
    training.trainer.set_scheduler(lrs.ReduceLROnPlateau(training.optimizer, factor=0.5, patience=0))
    training.epoch(0, val_loss=torch.tensor(1.0))
    training.epoch(1, val_loss=0.5)
    assert training.lr == 1.0
    training.epoch(2, val_loss=0.5)
    assert training.lr == 0.5


def test_a_plateau_scheduler_can_have_a_metric_of_its_own(training):
    training.trainer.set_scheduler(lrs.ReduceLROnPlateau(training.optimizer, factor=0.5, patience=0), metric="loss")
    training.epoch(0, val_loss=3.0)
    training.epoch(1, val_loss=2.0)
    assert training.lr == 0.5  # the loss stood still


def test_a_plateau_scheduler_without_its_metric_is_warned_of_once(training):
    training.trainer.set_scheduler(lrs.ReduceLROnPlateau(training.optimizer, factor=0.5, patience=0))
    with pytest.warns(UserWarning, match=r"'val_loss' is not among \['loss'\]") as caught:
        training.epoch(0)
    training.epoch(1)  # a second warning would be an error
    assert len(caught) == 1
    assert training.lr == 1.0


def test_a_scheduler_that_counts_nothing_is_stepped(training):
    class Own:
        steps = 0

        def step(self):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    scheduler = Own()
    training.trainer.set_scheduler(scheduler)
    training.epoch(0)
    training.epoch(1)
    assert scheduler.steps == 2


def test_the_scheduler_is_not_taken_for_stepped_after_a_restore(training):
    training.trainer.set_scheduler(lrs.ExponentialLR(training.optimizer, 0.5))
    training.epoch(0)
    training.epoch(1)
    assert training.trainer.load_checkpoint("step:2")
    assert training.lr == 0.5
    training.epoch(1)
    assert training.lr == 0.25


def test_one_that_was_never_set_makes_it_approximate(training, repo):
    scheduler = lrs.StepLR(training.optimizer, 1)
    training.epoch(0, between=scheduler.step)
    training.trainer.wait()
    commit = repo.show()
    assert not commit.exact
    assert commit.training["why"] == "the optimizer follows a scheduler that was not set: set_scheduler saves it"
    training.trainer.register("scheduler", scheduler)
    training.epoch(1, between=scheduler.step)
    training.trainer.wait()
    assert repo.show().exact
