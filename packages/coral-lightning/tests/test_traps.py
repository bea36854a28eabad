"""What goes wrong in a callback that is written naively: each of these holds, and its naive way is shown to differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from packaging.version import Version
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from coral import Repository
from coral.integrations.lightning import CoralCallback
from coral.integrations.lightning._source import TrainerSource
from coral.integrations.pytorch._state import decode

Saved = Callable[..., dict[int | None, tuple[str, ...]]]

coral = partial(CoralCallback, durability="fast", background_repack=False, save_on_train_end=False)


class Look(pl.Callback):
    """Notes what a naive callback would see in a hook."""

    def __init__(self, hook: str, see: Callable[[Any], Any]) -> None:
        self.seen: list[Any] = []

        def look(trainer: Any, *_: Any, **__: Any) -> None:
            self.seen.append(see(trainer))

        setattr(self, hook, look)


def val_loss(trainer: Any) -> float:
    return float(trainer.callback_metrics.get("val_loss", math.nan))


def batches(n: int) -> DataLoader[Any]:
    return DataLoader([0.0] * n)  # type: ignore[arg-type]


def test_the_sanity_check_is_no_evaluation(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    look = Look("on_validation_end", lambda trainer: (trainer.sanity_checking, val_loss(trainer)))
    trainer = lab.trainer(look, coral(path, save_on_best="val_loss"), max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(lab.Scored(lambda step: step - 5), batches(3), batches(2))
    assert look.seen == [(True, -5.0), (False, -2.0), (False, 1.0)], "else it would be no trap"
    assert saved() == {3: ("best",)}


def test_the_best_is_not_judged_by_the_score_of_an_earlier_step(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    """After an epoch without a validation callback_metrics holds the score of the last one."""
    look = Look("on_train_epoch_end", lambda trainer: (trainer.global_step, val_loss(trainer)))
    callback = coral(path, save_every_n_epochs=1, save_on_best="val_loss")
    trainer = lab.trainer(look, callback, max_epochs=4, check_val_every_n_epoch=2)
    trainer.fit(lab.Scored(), batches(2), batches(1))
    assert look.seen == [(2, pytest.approx(math.nan, nan_ok=True)), (4, 4.0), (6, 4.0), (8, 8.0)]
    assert saved() == {2: ("epoch",), 4: ("best", "epoch"), 6: ("epoch",), 8: ("epoch",)}
    log = Repository(path).log()
    assert [commit.metrics.get("val_loss") for commit in log] == [8.0, None, 4.0, None]


def test_a_batch_after_a_validation_has_no_score(lab: SimpleNamespace, path: Path) -> None:
    look = Look("on_train_batch_end", val_loss)
    trainer = lab.trainer(look, coral(path, save_every_n_steps=1), max_epochs=1, val_check_interval=2)
    trainer.fit(lab.Scored(), batches(4), batches(1))
    assert look.seen[2:] == [2.0, 2.0], "else a batch's metrics would do"
    log = Repository(path).log()
    assert [commit.metrics.get("val_loss") for commit in log] == [4.0, None, 2.0, None]
    assert [commit.metrics["train_loss"] for commit in log] == [3.0, 2.0, 1.0, 0.0]


def test_what_the_module_logs_at_the_end_of_its_epoch_is_of_that_epoch(
    lab: SimpleNamespace, path: Path, saved: Saved
) -> None:
    class Late(lab.Scored):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self) -> None:
            self.log("late", {2: 1.0, 4: 3.0, 6: 0.0}[self.global_step])

    look = Look("on_train_epoch_end", lambda trainer: float(trainer.callback_metrics.get("late", -1)))
    lab.trainer(look, coral(path, save_on_best="late")).fit(Late(), batches(2), batches(1))
    assert look.seen == [-1.0, 1.0, 3.0], "else a callback's on_train_epoch_end would do"
    assert saved() == {2: ("best",), 6: ("best",)}
    assert [commit.metrics["late"] for commit in Repository(path).log()] == [0.0, 1.0]


def test_a_validation_has_no_metric_that_the_last_epoch_ended_with(
    lab: SimpleNamespace, path: Path, saved: Saved
) -> None:
    class Late(lab.Scored):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self) -> None:
            self.log("late", float(self.global_step))

    look = Look("on_validation_end", lambda trainer: float(trainer.callback_metrics.get("late", -1)))
    callback = coral(path, save_every_n_steps=2)
    trainer = lab.trainer(look, callback, max_epochs=2, val_check_interval=2, num_sanity_val_steps=0)
    trainer.fit(Late(), batches(4), batches(1))
    assert look.seen == [-1.0, -1.0, 4.0, 4.0], "else the metrics of a validation would do"
    assert [commit.metrics.get("late") for commit in Repository(path).log()] == [8.0, None, 4.0, None]


def test_epochs_and_metadata_are_those_of_the_event(lab: SimpleNamespace, path: Path) -> None:
    at_the_boundary = Look("on_train_epoch_start", lambda trainer: trainer.current_epoch)
    at_the_end = Look("on_train_end", lambda trainer: trainer.current_epoch)
    trainer = lab.trainer(at_the_boundary, at_the_end, coral(path, save_every_n_epochs=1))
    trainer.fit(lab.Scored(), batches(2), batches(1))
    assert (at_the_boundary.seen[1:], at_the_end.seen) == ([1, 2], [3]), "one more than the epoch that was saved"
    log = list(reversed(Repository(path).log()))
    assert [commit.epoch for commit in log] == [0, 1, 2]
    assert [dict(commit.metadata) for commit in log] == [
        {"current_epoch": epoch, "global_step": 2 * epoch + 2} for epoch in range(3)
    ]


def test_an_epoch_that_max_steps_cuts_short_is_none(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    look = Look("on_train_epoch_end", lambda trainer: trainer.global_step)
    trainer = lab.trainer(look, coral(path, save_every_n_epochs=1), max_steps=5)
    trainer.fit(lab.Scored(), batches(3), batches(1))
    assert look.seen == [3, 5], "else the hook would be enough"
    assert saved() == {3: ("epoch",)}


def test_limited_epochs_are_complete(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    trainer = lab.trainer(coral(path, save_every_n_epochs=1), max_epochs=2, limit_train_batches=2)
    trainer.fit(lab.Scored(), batches(5), batches(1))
    assert saved() == {2: ("epoch",), 4: ("epoch",)}


class TwoOptimizers(pl.LightningModule):
    """Manual optimization: each batch is two steps of the trainer's count."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, weight in zip(self.optimizers(), (self.a, self.b), strict=True):  # type: ignore[arg-type]
            optimizer.zero_grad()
            self.manual_backward(-weight.sum())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([weight], lr=1.0) for weight in (self.a, self.b)]


def test_with_two_optimizers_a_batch_is_two_steps(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    look = Look("on_train_batch_end", lambda trainer: trainer.global_step)
    trainer = lab.trainer(look, coral(path, save_every_n_steps=3), max_epochs=1)
    trainer.fit(TwoOptimizers(), batches(4))
    assert look.seen == [2, 4, 6, 8], "step % 3 would save once"
    assert list(saved()) == [4, 6]
    weights = Repository(path).load("step:4")
    assert [weights[name].data.item() for name in ("a", "b")] == [2.0, 2.0]


def test_with_accumulation_a_step_is_told_once(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    look = Look("on_train_batch_end", lambda trainer: trainer.global_step)
    trainer = lab.trainer(look, coral(path, save_every_n_steps=1), max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(lab.Scored(), batches(6), batches(1))
    assert look.seen == [0, 1, 1, 2, 2, 3], "else every batch would be a step"
    assert list(saved()) == [1, 2, 3]


def test_the_learning_rate_is_that_which_the_next_epoch_has(lab: SimpleNamespace, path: Path) -> None:
    """ReduceLROnPlateau steps after the hooks of the epoch's end."""
    rate = Look("on_train_epoch_end", lambda trainer: trainer.optimizers[0].param_groups[0]["lr"])
    used = Look("on_train_batch_start", lambda trainer: trainer.optimizers[0].param_groups[0]["lr"])
    lab.seeded()
    trainer = lab.trainer(rate, used, coral(path, save_every_n_epochs=1, include_optimizer=True), max_epochs=4)
    trainer.fit(lab.Net(plateau=True), *lab.loaders())
    kept = []
    for epoch in range(3):
        state = decode(Repository(path).load_state(f"step:{3 * epoch + 3}"))
        kept.append(state["lightning"]["optimizer_states"][0]["param_groups"][0]["lr"])
    assert kept == used.seen[3::3]
    assert kept != rate.seen[:3], "else the end of the epoch would do"


def test_a_checkpoint_dumped_at_the_boundary_loses_an_epoch_and_ours_does_not(
    lab: SimpleNamespace, path: Path, tmp_path: Path
) -> None:
    class Naive(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "naive.ckpt")

    saves = coral(path, save_every_n_epochs=1, include_optimizer=True)
    lab.trainer(Naive(), saves).fit(lab.Scored(), batches(6), batches(1))
    steps = []
    for ckpt_path in (tmp_path / "naive.ckpt", f"coral://{path}@{Repository(path).resolve('step:6')}"):
        trainer = lab.trainer(coral(path, include_optimizer=True))
        trainer.fit(lab.Scored(), batches(6), batches(1), ckpt_path=ckpt_path)
        steps.append(trainer.global_step)
    assert steps == [12, 18]


def test_a_checkpoint_of_lightning_itself_goes_on_with_other_random_numbers(
    lab: SimpleNamespace, path: Path, tmp_path: Path
) -> None:
    class Naive(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "naive.ckpt")

    lab.seeded()
    saves = partial(coral, path, save_every_n_epochs=1, include_optimizer=True)
    trainer = lab.trainer(Naive(), saves())
    trainer.fit(lab.Net(), *lab.loaders())
    expected = lab.everything(trainer)
    exact = []
    for ckpt_path in (tmp_path / "naive.ckpt", f"coral://{path}@{Repository(path).resolve('step:3')}"):
        torch.manual_seed(7)
        trainer = lab.trainer(saves())
        trainer.fit(lab.Net(), *lab.loaders(), ckpt_path=ckpt_path)
        exact.append(lab.everything(trainer) == expected)
    assert exact == [False, True]


def test_the_trainer_keeps_its_own_checkpoints(lab: SimpleNamespace, path: Path, tmp_path: Path) -> None:
    """A callback that is a Checkpoint takes the place of the default ModelCheckpoint, and breaks ckpt_path="best"."""
    callback = coral(path, save_every_n_epochs=1)
    assert not isinstance(callback, Checkpoint)
    trainer = lab.trainer(callback, enable_checkpointing=True, default_root_dir=tmp_path)
    assert [type(each) for each in trainer.checkpoint_callbacks] == [ModelCheckpoint]
    trainer.fit(lab.Scored(), batches(2), batches(1))
    assert trainer.validate(ckpt_path="best", dataloaders=batches(1), verbose=False)


def test_two_callbacks_live_together(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    class Naive(CoralCallback):
        state_key = "CoralCallback"  # type: ignore[assignment]

    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        lab.trainer(Naive(path, branch="a"), Naive(path, branch="b"))
    lab.trainer(coral(path, branch="a", save_every_n_epochs=1), coral(path, branch="b", save_every_n_steps=4)).fit(
        lab.Scored(), batches(3), batches(1)
    )
    assert (list(saved("a")), list(saved("b"))) == ([3, 6, 9], [4, 8])


def test_what_is_saved_at_the_end_need_be_no_copy(
    lab: SimpleNamespace, path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[bool] = []
    real = TrainerSource.capture

    def capture(self: TrainerSource, *, copy: bool = True) -> Any:
        copies.append(copy)
        return real(self, copy=copy)

    monkeypatch.setattr(TrainerSource, "capture", capture)
    callback = coral(path, save_every_n_steps=2, include_optimizer=True)
    lab.trainer(callback, max_epochs=2).fit(lab.Scored(), batches(3), batches(1))
    assert copies == [False, True, True, False], "the first is measured before it is copied"
    assert list(saved()) == [2, 4, 6]


def test_a_score_that_is_not_a_number_is_never_the_best(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    trainer = lab.trainer(coral(path, save_on_best="val_loss"))
    trainer.fit(lab.Scored(lambda step: {2: math.nan, 4: 1.0, 6: -math.inf}.get(step, 0)), batches(2), batches(1))
    assert saved() == {4: ("best",)}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")], ids=repr)
def test_an_exception_is_saved_and_stays_what_it_is(
    lab: SimpleNamespace, path: Path, saved: Saved, error: BaseException
) -> None:
    """teardown and on_train_end do not come after one; KeyboardInterrupt becomes SystemExit."""

    class Raises(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                raise error

    ends = [Look(hook, lambda _: None) for hook in ("on_train_end", "teardown")]
    trainer = lab.trainer(Raises(), *ends, coral(path))
    with pytest.raises(type(error) if isinstance(error, Exception) else SystemExit) as came:
        trainer.fit(lab.Scored(), batches(3), batches(1))
    if isinstance(error, Exception):
        assert came.value is error
    assert [end.seen for end in ends] == [[], []]
    assert saved() == {4: ("requested" if isinstance(error, KeyboardInterrupt) else "exception",)}


def test_a_save_that_fails_leaves_the_run_and_its_exception_alone(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Repository, "commit", fail)
    lab.trainer(coral(path, save_every_n_steps=1)).fit(lab.Scored(), batches(3), batches(1))
    assert "saving step 1 failed: the disk is gone" in caplog.text
    assert "saving step 9 failed" in caplog.text


def test_a_save_that_fails_as_the_run_ends_takes_no_exceptions_place(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("mine")

    class Raises(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                raise error

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Repository, "commit", fail)
    with pytest.raises(RuntimeError) as came:
        lab.trainer(Raises(), coral(path)).fit(lab.Scored(), batches(3), batches(1))
    assert came.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert "saving step 4 failed: the disk is gone" in caplog.text


@pytest.mark.parametrize("several", [False, True], ids=["one", "with another"])
def test_nothing_is_made_by_a_development_run(lab: SimpleNamespace, path: Path, several: bool) -> None:
    trainer = lab.trainer(coral(path, save_every_n_steps=1), fast_dev_run=2 if several else True)
    trainer.fit(lab.Scored(), batches(3), batches(1))
    assert not path.exists()


def test_evaluations_outside_of_training_are_none(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    class Tested(lab.Scored):  # type: ignore[misc, name-defined]
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.weight

    module, trainer = Tested(), lab.trainer(coral(path, save_on_best="val_loss", save_every_n_epochs=3))
    for evaluate in (trainer.validate, trainer.test):
        evaluate(module, batches(1), verbose=False)
    trainer.predict(module, batches(1))
    assert not path.exists()
    trainer.fit(module, batches(2), batches(1))
    for evaluate in (trainer.validate, trainer.test):
        evaluate(module, batches(1), verbose=False)
    assert saved() == {2: ("best",), 6: ("epoch",)}


def test_early_stopping_ends_the_training_before_another_batch(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path, save_on_best="val_loss", early_stopping_patience=2)
    trainer = lab.trainer(callback, val_check_interval=2, max_epochs=9)
    trainer.fit(lab.Scored(), batches(10), batches(1))
    assert trainer.global_step == 6, "the scores of steps 2, 4 and 6 get no better"


def test_early_stopping_by_what_the_module_logs_at_the_end_of_an_epoch(lab: SimpleNamespace, path: Path) -> None:
    """It is known at the start of the next epoch, which has no batch then, and is none."""

    class Late(lab.Scored):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.0)

    trainer = lab.trainer(coral(path, save_on_best="late", early_stopping_patience=2), max_epochs=9)
    trainer.fit(Late(), batches(2), batches(1))
    assert trainer.global_step == 6


@pytest.mark.skipif(Version(pl.__version__) < Version("2.6"), reason="there are no intervals by time before 2.6")
def test_a_stop_at_an_evaluation_by_time_is_an_ordinary_end(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    """Then there is no number of batches after which one comes: val_check_batch is None."""
    look = Look("on_validation_end", lambda trainer: trainer.val_check_batch)
    stop = EarlyStopping("val_loss", patience=1, check_on_train_epoch_end=False)
    callback = coral(path, save_on_best="val_loss")
    every = {"val_check_interval": timedelta(0), "check_val_every_n_epoch": 1}
    trainer = lab.trainer(look, stop, callback, max_epochs=9, num_sanity_val_steps=0, **every)
    trainer.fit(lab.Scored(), batches(5), batches(2))
    assert None in look.seen, "else it would be no trap"
    assert trainer.global_step < 45
    assert saved() == {1: ("best",)}


def test_a_metric_that_cannot_be_computed_does_not_take_the_place_of_what_ends_the_run(
    lab: SimpleNamespace, path: Path, saved: Saved
) -> None:
    """The trainer computes what is logged at the end of an epoch after the hooks, and so would who looks once more."""

    class Broken(Metric):
        full_state_update = False
        asked = 0

        def update(self) -> None: ...

        def compute(self) -> Any:
            Broken.asked += 1
            raise ArithmeticError(f"out of luck {Broken.asked}")

    class Model(lab.Scored):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.broken = Broken()

        def on_train_epoch_end(self) -> None:
            self.broken.update()
            self.log("broken", self.broken)

    with pytest.raises(ArithmeticError, match=r"out of luck 1\b"):
        lab.trainer(coral(path), max_epochs=2).fit(Model(), batches(3), batches(2))
    assert Broken.asked > 1, "else it would be no trap"
    assert saved() == {3: ("exception",)}


@pytest.mark.parametrize("complete", [False, True], ids=["weights", "complete"])
def test_a_callback_that_averages_weights_at_the_end_comes_after_the_save(
    lab: SimpleNamespace, path: Path, saved: Saved, complete: bool
) -> None:
    """Those of Lightning (StochasticWeightAveraging, WeightAveraging) put their averages in the weights' place then."""

    class Averages(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.weight.data.fill_(-1.0)

    look = Look("on_train_end", lambda trainer: trainer.lightning_module.weight.item())
    saves = coral(path, save_every_n_epochs=1, save_on_best="val_loss", mode="max", include_optimizer=complete)
    trainer = lab.trainer(Averages(), look, saves)
    callbacks = list(trainer.callbacks)
    trainer.fit(lab.Scored(), batches(3), batches(1))
    assert look.seen == [-1.0], "else it would be no trap"
    assert saved()[9] == ("best", "epoch")
    assert Repository(path).load("step:9")["weight"].data.item() == 9.0
    assert trainer.callbacks == callbacks


def test_a_callback_that_moves_weights_as_a_batch_begins_comes_after_the_save(
    lab: SimpleNamespace, path: Path, saved: Saved
) -> None:
    class Moves(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.weight.data.add_(10.0)

    lab.trainer(Moves(), coral(path, save_every_n_steps=1), max_epochs=1).fit(lab.Scored(), batches(3), batches(1))
    assert [Repository(path).load(f"step:{step}")["weight"].data.item() for step in saved()] == [11.0, 22.0, 33.0]


def test_after_an_exception_the_trainer_has_the_callbacks_that_it_was_given(lab: SimpleNamespace, path: Path) -> None:
    class Raises(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("mine")

    trainer = lab.trainer(coral(path), Raises())
    callbacks = list(trainer.callbacks)
    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit(lab.Scored(), batches(3), batches(1))
    assert trainer.callbacks == callbacks


@pytest.mark.parametrize("complete", [False, True], ids=["weights", "complete"])
def test_of_averages_that_are_evaluated_the_averages_are_saved(
    lab: SimpleNamespace, path: Path, saved: Saved, complete: bool
) -> None:
    """As WeightAveraging does: its hook puts what it swaps in for evaluations into the checkpoint."""

    class Averages(pl.Callback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {"weight": checkpoint["state_dict"]["weight"] / 2}

    saves = coral(path, save_every_n_epochs=1, include_optimizer=complete)
    lab.trainer(Averages(), saves).fit(lab.Scored(), batches(3), batches(1))
    assert [Repository(path).load(f"step:{step}")["weight"].data.item() for step in saved()] == [1.5, 3.0, 4.5]
