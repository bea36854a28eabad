"""CoralTrainer: metrics, events, errors, endings."""

import copy
import logging
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from coral import Repository
from coral.errors import (
    ConfigError,
    PolicyError,
    SaveFailedError,
    UnknownRef,
    UnsupportedValue,
    WeightsMismatch,
)
from coral.integrations.pytorch import CoralTrainer
from coral.integrations.pytorch import PyTorchIntegration as Pt
from coral.training import CheckpointConfig, EpochEnd, StepEnd

EPOCHS = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss", durability="fast")
STEPS = CheckpointConfig(save_every_n_steps=1, durability="fast", save_on_train_end=False)
ENDS = CheckpointConfig(durability="fast")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def make(model, optimizer, repo):
    """Make a trainer that is closed when the test ends."""
    made = []

    def make(config=EPOCHS, **options):
        trainer = CoralTrainer(model, repo, "mine", config, **options)
        trainer.set_optimizer(optimizer)
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        try:
            trainer.close()
        except SaveFailedError:
            pass


def events_of(trainer, monkeypatch):
    seen = []
    emit = trainer.manager.emit
    monkeypatch.setattr(trainer.manager, "emit", lambda *events: (seen.extend(events), emit(*events)))
    return seen


def update(model, optimizer):
    model(torch.ones(2)).backward()
    optimizer.step()


# Metrics


def test_the_metrics_of_an_epoch_are_the_means_of_its_steps(make, repo):
    trainer = make()
    for epoch in range(2):
        for value in [1.0, 3.0]:
            trainer.step(torch.tensor(value + epoch), accuracy=value / 4, rare=np.float32(2))
        trainer.epoch_end(epoch, val_loss=torch.tensor(0.5 + epoch))
    trainer.wait()
    assert trainer.training_metrics == {"loss": 3.0, "accuracy": 0.5, "rare": 2.0, "val_loss": 1.5}
    assert dict(repo.show("step:2").metrics) == {"loss": 2.0, "accuracy": 0.5, "rare": 2.0, "val_loss": 0.5}
    assert repo.show("best").step == 2


def test_a_metric_given_at_the_end_takes_the_place_of_the_mean(make):
    trainer = make()
    trainer.step(1.0)
    trainer.epoch_end(0, loss=5.0)
    assert trainer.training_metrics == {"loss": 5.0}


def test_a_step_hands_on_numbers_and_waits_for_no_tensor(make, monkeypatch):
    trainer = make()
    seen = events_of(trainer, monkeypatch)
    monkeypatch.setattr(torch.Tensor, "item", None)
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    trainer.step(torch.tensor(1.0), accuracy=0.5)
    trainer.step(2.0, accuracy=torch.tensor(0.7))
    trainer.epoch_end(0)
    steps = [event for event in seen if isinstance(event, StepEnd)]
    assert [dict(event.metrics) for event in steps] == [{"accuracy": 0.5}, {"loss": 2.0}]
    assert all(event.time is not None for event in steps)
    (end,) = [event for event in seen if isinstance(event, EpochEnd)]
    assert (end.step, end.epoch, end.complete) == (2, 0, True)
    assert end.metrics == {"loss": 1.5, "accuracy": pytest.approx(0.6)}


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_metric_that_is_not_finite_is_warned_of_and_never_the_best(make, repo, value):
    trainer = make()
    trainer.step(value)
    with pytest.warns(UserWarning, match="is (nan|inf) in epoch 0") as caught:
        trainer.epoch_end(0, val_loss=value)
    assert len(caught) == 2
    assert caught[0].filename == __file__
    trainer.step(1.0)
    trainer.epoch_end(1, val_loss=9.0)
    trainer.wait()
    assert repo.show("best").step == 2


@pytest.mark.parametrize("loss", [torch.zeros(3), "1.0", None])
def test_a_loss_that_is_no_number_is_refused_before_the_step_counts(make, loss):
    trainer = make()
    with pytest.raises(UnsupportedValue, match="metric 'loss'"):
        trainer.step(loss)
    assert trainer.global_step == 0


def test_a_missing_metric_is_logged_once_with_the_names_of_those_that_came(make, caplog):
    trainer = make()
    with caplog.at_level(logging.WARNING, "coral"):
        for epoch in range(3):
            trainer.step(1.0)
            trainer.epoch_end(epoch)
    said = [record.getMessage() for record in caplog.records if "val_loss" in record.getMessage()]
    assert len(said) == 1
    assert "loss" in said[0].replace("val_loss", "")


# Epochs and steps


def test_the_place_in_the_run_is_told(make):
    trainer = make()
    told = [(trainer.start_epoch, trainer.current_epoch, trainer.global_step)]
    for epoch in range(2):
        trainer.step(1.0)
        told.append((trainer.start_epoch, trainer.current_epoch, trainer.global_step))
        trainer.epoch_end(epoch, val_loss=1.0)
        told.append((trainer.start_epoch, trainer.current_epoch, trainer.global_step))
    assert told == [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 1, 2)]


@pytest.mark.parametrize("epoch", [0.0, "0", None, True, torch.tensor(0.5)])
def test_an_epoch_that_is_no_int_is_refused(make, epoch):
    trainer = make()
    trainer.step(1.0)
    with pytest.raises((UnsupportedValue, TypeError), match="int"):
        trainer.epoch_end(epoch)


@pytest.mark.parametrize(("epoch", "said"), [(1, "epoch 1 has ended already"), (0, "ended already"), (-1, "from 0")])
def test_an_epoch_does_not_end_twice(make, epoch, said):
    trainer = make()
    trainer.step(1.0)
    trainer.epoch_end(np.int64(1), val_loss=1.0)
    trainer.step(1.0)
    with pytest.raises(PolicyError, match=said):
        trainer.epoch_end(epoch)
    trainer.epoch_end(2, val_loss=1.0)  # nothing was lost


def test_a_save_of_a_step_that_ends_an_epoch_resumes_after_the_epoch(make, model, optimizer, repo):
    trainer = make(STEPS)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer.set_scheduler(scheduler)
    update(model, optimizer)
    trainer.step(1.0)
    trainer.epoch_end(0, val_loss=1.0)
    trainer.close()
    assert [commit.step for commit in repo.log()] == [1]  # one save for two reasons to
    again = make(STEPS, resume=True)
    assert again.start_epoch == 1
    assert again.training_metrics == {"loss": 1.0, "val_loss": 1.0}
    fresh = torch.optim.SGD(model.parameters(), lr=7.0)
    again.set_optimizer(fresh)
    again.set_scheduler(torch.optim.lr_scheduler.ExponentialLR(fresh, 0.5))
    assert fresh.param_groups[0]["lr"] == 0.05


# Going back


def test_without_a_checkpoint_there_is_nothing_to_load(make):
    trainer = make()
    assert trainer.load_checkpoint() is False
    assert trainer.load_checkpoint(load_best=True) is False
    assert make(resume=True).start_epoch == 0
    with pytest.raises(UnknownRef):
        trainer.load_checkpoint("nothing")


def test_a_new_trainer_does_not_resume_by_surprise(make, model, optimizer):
    trainer = make()
    trainer.step(1.0)
    trainer.epoch_end(0, val_loss=1.0)
    trainer.close()
    with torch.no_grad():
        model.weight.fill_(5)
    again = make()
    assert (again.start_epoch, again.global_step) == (0, 0)
    assert model.weight.tolist() == [[5, 5]]


def train_to(trainer, model, optimizer, scores):
    weights = []
    for epoch, score in enumerate(scores):
        update(model, optimizer)
        trainer.step(1.0)
        trainer.epoch_end(epoch, val_loss=score)
        weights.append(model.weight.tolist())
    trainer.wait()
    return weights


def test_the_best_the_last_and_any_other_can_be_loaded(make, model, optimizer, repo):
    trainer = make()
    weights = train_to(trainer, model, optimizer, [3.0, 1.0, 2.0])
    assert trainer.load_checkpoint(load_best=True)
    assert model.weight.tolist() == weights[1]
    assert (trainer.start_epoch, trainer.global_step) == (2, 2)
    assert trainer.training_metrics["val_loss"] == 1.0
    assert trainer.load_checkpoint(repo.show("step:1").id[:12])
    assert model.weight.tolist() == weights[0]
    assert trainer.load_checkpoint()
    assert model.weight.tolist() == weights[2]
    with pytest.raises(ConfigError, match="not both"):
        trainer.load_checkpoint("step:1", load_best=True)


def test_with_no_best_the_last_is_loaded_and_that_is_logged(make, model, optimizer, caplog):
    trainer = make(CheckpointConfig(save_every_n_epochs=1, durability="fast"))
    weights = train_to(trainer, model, optimizer, [3.0, 1.0])
    with caplog.at_level(logging.WARNING, "coral"):
        assert trainer.load_checkpoint(load_best=True)
    assert model.weight.tolist() == weights[1]
    assert any("best" in record.getMessage() for record in caplog.records)


def test_the_optimizer_and_the_scheduler_can_be_left_alone(make, model, optimizer):
    trainer = make()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer.set_scheduler(scheduler)
    train_to(trainer, model, optimizer, [3.0, 1.0])
    optimizer.param_groups[0]["lr"] = 9.0
    assert trainer.load_checkpoint(load_optimizer=False, load_scheduler=False)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (9.0, 2)
    trainer.load_checkpoint("step:1", load_optimizer=False)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (9.0, 1)
    trainer.load_checkpoint("step:1", load_scheduler=False)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (0.05, 1)


def test_what_a_checkpoint_holds_for_nothing_that_was_set_is_warned_of(make, model, optimizer, repo):
    trainer = make()
    trainer.register("ema", nn.Linear(1, 1))
    train_to(trainer, model, optimizer, [1.0])
    trainer.close()
    bare = CoralTrainer(model, repo, "mine", EPOCHS, resume=True)
    with pytest.warns(UserWarning, match="state for what was not set: optimizer, ema"):
        bare.step(1.0)
    bare.step(1.0)  # said once
    bare.close()


def test_another_model_is_refused_and_stays_as_it_was(make, model, optimizer, repo):
    train_to(make(), model, optimizer, [1.0])
    other = nn.Linear(3, 1)
    before = other.weight.tolist()
    trainer = CoralTrainer(other, repo, "mine", EPOCHS)
    with pytest.raises(WeightsMismatch, match=r"weight: the model has float32 \(1, 3\)"):
        trainer.load_checkpoint()
    assert other.weight.tolist() == before
    trainer.close()


def test_another_optimizer_is_refused_before_the_model_is_touched(make, model, optimizer):
    trainer = make()
    train_to(trainer, model, optimizer, [1.0])
    with torch.no_grad():
        model.weight.fill_(5)
    trainer.set_optimizer(torch.optim.SGD([model.weight], lr=1.0))
    with pytest.raises(WeightsMismatch, match=r"optimizer\.param_groups"):
        trainer.load_checkpoint()
    assert model.weight.tolist() == [[5, 5]]


def test_another_kind_of_scheduler_is_refused_before_the_model_is_touched(make, model, optimizer):
    trainer = make()
    trainer.set_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    train_to(trainer, model, optimizer, [1.0])
    update(model, optimizer)
    before = model.weight.tolist()
    trainer.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9))
    with pytest.raises(WeightsMismatch, match="has CosineAnnealingLR with"):
        trainer.load_checkpoint()
    assert model.weight.tolist() == before
    assert trainer.load_checkpoint(load_scheduler=False)


def test_a_commit_of_weights_alone_can_be_loaded(make, model, repo):
    repo.commit(Pt.model_to_weights(nn.Linear(2, 1)), "by hand")
    trainer = make()
    assert trainer.load_checkpoint()
    assert (trainer.start_epoch, trainer.global_step) == (0, 0)
    assert model.weight.detach().numpy().tolist() == repo.load()["weight"].data.tolist()


def test_weights_that_are_tied_no_more_are_warned_of(make, repo):
    class Model(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            if tied:
                self.b.weight = self.a.weight

    trainer = CoralTrainer(Model(tied=True), repo, "mine", EPOCHS)
    trainer.step(1.0)
    trainer.epoch_end(0, val_loss=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.load_checkpoint()
    trainer.close()
    with pytest.warns(UserWarning, match=r"several in this model: a\.weight = b\.weight"):
        CoralTrainer(Model(tied=False), repo, "mine", EPOCHS, resume=True).close()


def test_extra_state_goes_with_the_training_state(repo):
    class Extra(nn.Linear):
        extra: object = None

        def get_extra_state(self):
            return self.extra

        def set_extra_state(self, state):
            self.extra = state

    model = Extra(1, 1)
    model.extra = {"seen": 3, "mask": torch.tensor([1, 0])}
    with CoralTrainer(model, repo, "mine", EPOCHS) as trainer:
        trainer.step(1.0)
        trainer.epoch_end(0, val_loss=1.0)
    again = Extra(1, 1)
    CoralTrainer(again, repo, "mine", EPOCHS, resume=True).close()
    assert again.extra["seen"] == 3
    assert again.extra["mask"].tolist() == [1, 0]
    model.extra = object()
    trainer = CoralTrainer(model, repo, "mine", EPOCHS)
    trainer.step(1.0)
    with pytest.raises(SaveFailedError, match=r"extra state\._extra_state is a builtins\.object"):
        trainer.epoch_end(0, val_loss=1.0)


# Options


@pytest.mark.parametrize(
    ("option", "part"),
    [("save_optimizer_state", "optimizer"), ("save_scheduler_state", "scheduler"), ("save_random_state", "random")],
)
def test_a_part_that_is_not_to_be_saved_is_not_and_the_checkpoint_says_so(make, optimizer, repo, option, part):
    trainer = make(CheckpointConfig(save_every_n_epochs=1, durability="fast", **{option: False}))
    trainer.set_scheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), None)
    trainer.step(1.0)
    trainer.epoch_end(0)
    trainer.wait()
    assert part not in repo.load_state()
    assert len({"optimizer", "scheduler", "random"} & repo.load_state().keys()) == 2
    assert repo.show().exact is False


def test_a_repository_can_be_named_by_its_folder(model, tmp_path):
    with CoralTrainer(model, tmp_path / "new") as trainer:
        trainer.step(1.0)
    assert Repository(tmp_path / "new").show().step == trainer.repository.show().step == 1


def test_no_scheduler_and_no_scaler_can_be_set(make, optimizer, repo):
    with make() as trainer:
        trainer.set_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 1))
        trainer.set_scheduler(None)
        trainer.set_scaler(None)
        trainer.step(1.0)
        trainer.epoch_end(0, val_loss=1.0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert {"scheduler", "scaler"}.isdisjoint(repo.load_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.set_optimizer(None), "set_optimizer was given a NoneType"),
        (lambda t: t.set_optimizer("adam"), "set_optimizer was given a str; it takes what has state_dict and load_"),
        (lambda t: t.set_optimizer(t.model.parameters()), "set_optimizer was given a generator"),
        (lambda t: t.set_optimizer(torch.optim.SGD), "set_optimizer was given the class SGD"),
        (lambda t: t.set_scheduler("cosine"), "set_scheduler was given a str"),
        (lambda t: t.set_scaler(1.0), "set_scaler was given a float"),
        (
            lambda t: t.register("lr", 0.1),
            r"register\('lr', ...\) was given a float; it takes a random generator, or what",
        ),
        (lambda t: t.register("x", None), "was given a NoneType"),
        (lambda t: t.register(t.model, "x"), "register was given the name Linear"),
    ],
)
def test_what_has_no_state_is_refused_when_it_is_set(make, call, message):
    with pytest.raises(ConfigError, match=message):
        call(make())


def test_arguments_in_the_wrong_place_are_refused(model, repo):
    with pytest.raises(ConfigError, match="experiment_name is a CheckpointConfig; it must be a str"):
        CoralTrainer(model, repo, EPOCHS)
    with pytest.raises(ConfigError, match="checkpoint_config is a str; it must be a CheckpointConfig"):
        CoralTrainer(model, repo, "mine", "branch")


def test_a_model_that_could_not_be_saved_is_refused_at_once(repo):
    class Own(nn.Linear):
        def state_dict(self):
            return super().state_dict()

    with pytest.raises(UnsupportedValue, match="on the meta device, which has no data to save: weight, bias"):
        CoralTrainer(nn.Linear(2, 2, device="meta"), repo)
    with pytest.raises(UnsupportedValue, match=r"Own\.state_dict takes no keep_vars"):
        CoralTrainer(Own(2, 2), repo)


def test_a_branch_is_made_and_committed_to(make, repo, model, optimizer):
    train_to(make(branch="tries/one"), model, optimizer, [1.0])
    train_to(make(branch="other"), model, optimizer, [1.0])
    assert set(repo.branches()) == {"tries/one", "other"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_trainer_on_another_rank_is_warned_of(make, monkeypatch, number):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: number)
    if number:
        with pytest.warns(UserWarning, match="CoralTrainer on rank 1 saves a run of its own"):
            make()
    else:
        make()  # a warning would be an error


def test_early_stopping_is_told(make, model, optimizer):
    config = CheckpointConfig(save_on_best_metric="val_loss", early_stopping_patience=2, durability="fast")
    trainer = make(config)
    train_to(trainer, model, optimizer, [1.0, 2.0])
    assert not trainer.should_stop
    trainer.step(1.0)
    trainer.epoch_end(2, val_loss=3.0)
    assert trainer.should_stop
    assert "val_loss" in trainer.manager.stop_reason


# The end


def test_leaving_the_with_saves_the_end(make, model, optimizer, repo):
    with make(ENDS) as trainer:
        update(model, optimizer)
        trainer.step(1.0)
    assert repo.show().step == 1
    assert trainer.repository is repo


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_saves_and_goes_on_unchanged(make, model, optimizer, repo, error):
    with pytest.raises(type(error)) as caught, make(ENDS) as trainer:  # noqa: PT012
        update(model, optimizer)
        trainer.step(1.0)
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert repo.show().step == 1
    assert repo.show().exact is False
    assert set(repo.show().reasons) == {"requested" if isinstance(error, KeyboardInterrupt) else "exception"}


@pytest.mark.parametrize("where", ["before the update", "in the update", "after the update"])
def test_an_interrupt_tells_whether_an_update_has_begun(make, model, optimizer, monkeypatch, where):
    trainer = make(ENDS)
    seen = events_of(trainer, monkeypatch)
    with pytest.raises(RuntimeError), trainer:  # noqa: PT012
        update(model, optimizer)
        trainer.step(1.0)
        model(torch.ones(2)).backward()
        if where == "in the update":
            model.weight.grad = model.weight.grad.to_sparse()  # foreach SGD chokes on nothing less
            monkeypatch.setattr(optimizer, "_init_group", lambda *_: 1 / 0)
            try:
                optimizer.step()
            except ZeroDivisionError:
                raise RuntimeError from None
        elif where == "after the update":
            optimizer.step()
        raise RuntimeError
    assert seen[-1].mid_step is (where != "before the update")


def gan(repo):
    model = nn.ModuleDict({"g": nn.Linear(2, 1), "d": nn.Linear(2, 1)})
    optimizers = [torch.optim.Adam(model[name].parameters(), lr=0.1) for name in "gd"]
    return CoralTrainer(model, repo, "gan", EPOCHS), model, optimizers


def test_an_optimizer_that_was_replaced_and_goes_on_is_warned_of(repo):
    trainer, model, (first, second) = gan(repo)
    trainer.set_optimizer(first)
    trainer.set_optimizer(second)
    with pytest.warns(UserWarning, match="Adam goes on"):
        update(model["g"], first)
    update(model["g"], first)  # it is said once
    update(model["d"], second)
    trainer.step(1.0)
    trainer.epoch_end(0, val_loss=1.0)
    trainer.close()
    assert repo.show().exact is False
    assert repo.show().training["why"] == "the state of one of the optimizers was not saved"
    trainer.register("optimizer_g", first)
    trainer.epoch_end(1, val_loss=1.0)
    trainer.close()
    assert repo.show().exact is True


def test_an_optimizer_that_is_made_anew_takes_the_place_of_the_last(make, model, optimizer, repo):
    with make() as trainer:
        update(model, optimizer)
        trainer.set_optimizer(again := torch.optim.SGD(model.parameters(), lr=0.1))
        update(model, again)
        update(model, optimizer)
        trainer.step(1.0)
        trainer.epoch_end(0, val_loss=1.0)
    assert repo.show().exact is True


def test_a_second_optimizer_and_its_scheduler_are_registered(repo, monkeypatch):
    trainer, model, (first, second) = gan(repo)
    warm_up = torch.optim.lr_scheduler.MultiStepLR(second, [2, 3])
    trainer.set_optimizer(first)
    trainer.register("optimizer_d", second)
    trainer.register("scheduler_d", warm_up)
    seen = events_of(trainer, monkeypatch)
    with pytest.raises(KeyError), trainer:  # noqa: PT012
        update(model["d"], second)
        warm_up.step()
        trainer.step(1.0)
        trainer.epoch_end(0, val_loss=1.0)
        expected = copy.deepcopy(second.state_dict())
        update(model["d"], second)
        raise KeyError
    assert seen[-1].mid_step is True
    trainer, model, (first, second) = gan(repo)
    warm_up = torch.optim.lr_scheduler.MultiStepLR(second, [2, 3])
    trainer.load_checkpoint(load_best=True)
    trainer.set_optimizer(first)
    trainer.register("scheduler_d", warm_up)
    trainer.register("optimizer_d", second)
    assert str(second.state_dict()) == str(expected)
    update(model["d"], second)
    warm_up.step()
    assert second.param_groups[0]["lr"] == pytest.approx(0.01)


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, as accelerate makes it: what its base class sets up is not there."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_an_optimizer_in_a_wrapper_is_saved_and_its_updates_are_seen(model, repo, monkeypatch):
    def wrapped():
        return Wrapper(Wrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)))

    first, second = wrapped(), wrapped()
    trainer = CoralTrainer(model, repo, "mine", EPOCHS)
    trainer.set_optimizer(first)
    seen = events_of(trainer, monkeypatch)
    with pytest.raises(KeyError), trainer:  # noqa: PT012
        update(model, first)
        trainer.step(1.0)
        trainer.epoch_end(0, val_loss=1.0)
        saved = copy.deepcopy(first.state_dict())
        update(model, first)
        raise KeyError
    assert seen[-1].mid_step is True
    CoralTrainer(model, repo, "mine", EPOCHS, resume="best").set_optimizer(second)
    momenta = [
        [each["momentum_buffer"].tolist() for each in state["state"].values()]
        for state in (saved, second.state_dict(), first.state_dict())
    ]
    assert momenta[0] == momenta[1] != momenta[2]


def test_an_exception_before_the_first_step_saves_nothing(make, repo):
    with pytest.raises(ValueError, match="mine"), make(ENDS):
        raise ValueError("mine")
    assert repo.log() == []


def test_a_save_that_fails_at_an_exception_does_not_take_its_place(make, model, optimizer, monkeypatch, caplog):
    trainer = make(ENDS)
    with pytest.raises(ValueError, match="mine") as caught, trainer:  # noqa: PT012
        update(model, optimizer)
        trainer.step(1.0)
        monkeypatch.setattr(Repository, "commit", lambda *_, **__: 1 / 0)
        raise ValueError("mine")
    assert caught.value.__context__ is None
    assert any("could not save" in record.getMessage() for record in caplog.records)


def test_a_save_that_failed_in_the_background_is_raised_and_the_run_can_go_on(make, monkeypatch, repo):
    trainer = make(STEPS)
    with monkeypatch.context() as patched:
        patched.setattr(Repository, "commit", lambda *_, **__: 1 / 0)
        trainer.step(1.0)
        with pytest.raises(SaveFailedError, match="saving step 1 failed"):
            trainer.wait()
    trainer.step(1.0)
    trainer.close()
    assert repo.show().step == 2


def test_a_failed_save_does_not_spoil_going_back(make, model, optimizer, monkeypatch):
    trainer = make()
    train_to(trainer, model, optimizer, [1.0])
    with monkeypatch.context() as patched:
        patched.setattr(Repository, "commit", lambda *_, **__: 1 / 0)
        trainer.step(1.0)
        trainer.epoch_end(1, val_loss=1.0)
        with pytest.raises(SaveFailedError):
            trainer.load_checkpoint()
    assert trainer.start_epoch == 1
    trainer.step(1.0)
    trainer.epoch_end(1, val_loss=1.0)
    assert trainer.global_step == 2


def test_a_run_is_pushed_as_it_goes(tmp_path):
    repo = Repository(tmp_path / "repo", init=True, durability="fast")
    config = CheckpointConfig(save_every_n_steps=1, durability="fast", background_repack=False)
    with CoralTrainer(nn.Linear(2, 2), repo, "pushed", config, push_to=tmp_path / "there") as trainer:
        trainer.step(1.0)
        trainer.step(0.5)
    found = Repository(tmp_path / "there")
    assert [commit.step for commit in found.log()] == [2, 1]
    assert found.branches() == repo.branches()
