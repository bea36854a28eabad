"""A run that ends early and goes on is the run that never ended: difference 0.0."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.optim import lr_scheduler as lrs
from torch.utils.data import DataLoader, IterableDataset

from coral import Repository
from coral.errors import WeightsMismatch
from coral.integrations.lightning import CoralCallback
from coral.integrations.lightning._checkpoints import check_kinds


class Stop(Exception):
    """What ends a run before its time."""


class StopAt(pl.Callback):
    """Ends a run when a batch of this step begins."""

    def __init__(self, step: int, act: Callable[[], None] | None = None) -> None:
        self.step = step
        self.act = act

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if self.act is None:
                raise Stop
            self.act()


def whole(lab: SimpleNamespace, net: dict[str, Any], make: Any, **options: Any) -> Any:
    """All there is at the end of a run that was never interrupted, and its data."""
    lab.seeded()
    trainer, module = lab.trainer(**options), lab.Net(**net)
    trainer.fit(module, *lab.loaders(make))
    return lab.everything(trainer), module.seen


def broken(lab: SimpleNamespace, path: Path, net: dict[str, Any], make: Any, at: StopAt, **options: Any) -> None:
    """The first part of the same run, which ends at some step."""
    lab.seeded()
    saves = CoralCallback(path, save_every_n_steps=1, save_every_n_epochs=1, include_optimizer=True, durability="fast")
    with pytest.raises((Stop, SystemExit)):
        lab.trainer(saves, at, **options).fit(lab.Net(**net), *lab.loaders(make))


def resumed(
    lab: SimpleNamespace, path: Path, net: dict[str, Any], make: Any, ref: str, *, link: bool = True, **options: Any
) -> Any:
    """The rest of it, by a new trainer, whose program has drawn other random numbers before."""
    torch.manual_seed(5)
    saves = CoralCallback(path, include_optimizer=True, durability="fast")
    trainer, module = lab.trainer(saves, **options), lab.Net(**net)
    trainer.fit(module, *lab.loaders(make), ckpt_path=f"coral://{path}@{ref}" if link else saves.resume_path(ref))
    return lab.everything(trainer), module.seen


def stateful() -> Any:
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "plateau": ({"plateau": True}, {}),
    "accumulation": ({}, {"accumulate_grad_batches": 2}),
    "no validation": ({}, {"limit_val_batches": 0}),
    "validation every second epoch": ({}, {"check_val_every_n_epoch": 2}),
}


@pytest.mark.parametrize("link", [True, False], ids=["link", "file"])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_end_of_an_epoch_it_is_exact(lab: SimpleNamespace, path: Path, shape: str, link: bool) -> None:
    net, options = SHAPES[shape]
    expected, batches = whole(lab, net, DataLoader, **options)
    step = 2 if "accumulate_grad_batches" in options else 3
    broken(lab, path, net, DataLoader, StopAt(step + 1), **options)
    commit = Repository(path).show(f"step:{step}")
    assert commit.exact, commit.training
    assert commit.reasons == ("epoch", "step")
    found, rest = resumed(lab, path, net, DataLoader, f"step:{step}", link=link, **options)
    assert found == expected
    assert rest == [each for each in batches if each[0] >= step]


@pytest.mark.parametrize("shape", SHAPES)
def test_within_an_epoch_it_is_exact_with_a_loader_that_knows_its_position(
    lab: SimpleNamespace, path: Path, shape: str
) -> None:
    net, options = SHAPES[shape]
    expected, batches = whole(lab, net, stateful(), **options)
    step = 1 if "accumulate_grad_batches" in options else 4
    broken(lab, path, net, stateful(), StopAt(step + 1), **options)
    commit = Repository(path).show(f"step:{step}")
    assert commit.exact, commit.training
    found, rest = resumed(lab, path, net, stateful(), f"step:{step}", **options)
    assert found == expected
    assert rest == [each for each in batches if each[0] >= step]


def test_at_the_end_of_an_epoch_it_is_exact_with_a_loader_that_knows_its_position(
    lab: SimpleNamespace, path: Path
) -> None:
    expected, batches = whole(lab, {}, stateful())
    broken(lab, path, {}, stateful(), StopAt(4))
    assert Repository(path).show("step:3").exact
    assert resumed(lab, path, {}, stateful(), "step:3") == (expected, [each for each in batches if each[0] >= 3])


class Draws(pl.Callback):
    """Draws from every generator in a hook, and trains with what it draws as the epoch starts."""

    def __init__(self, hook: str) -> None:
        def draw(trainer: Any, pl_module: Any, *_: Any) -> None:
            number = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
            if hook == "on_train_epoch_start":
                pl_module.net[0].bias.data += number

        setattr(self, hook, draw)


HOOKS = ("on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("hook", HOOKS)
def test_at_the_end_of_an_epoch_it_is_exact_whatever_hooks_draw(
    lab: SimpleNamespace, path: Path, hook: str, before: bool
) -> None:
    """Random numbers are put back when all is over that a run which goes on does anew."""

    def fit(ref: str | None = None) -> Any:
        saves = CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast")
        both = [Draws(hook), saves] if before else [saves, Draws(hook)]
        trainer = lab.trainer(*both)
        trainer.fit(lab.Net(), *lab.loaders(), ckpt_path=ref)
        return lab.everything(trainer)

    lab.seeded()
    expected = fit()
    commit = Repository(path).show("step:3")
    assert commit.exact, commit.training
    torch.manual_seed(5)
    assert fit(f"coral://{path}@{commit.id}") == expected


@pytest.mark.parametrize("hook", HOOKS[:3])
def test_at_the_end_of_an_epoch_it_is_exact_whatever_the_modules_hooks_draw(
    lab: SimpleNamespace, path: Path, hook: str
) -> None:
    """They come after those of all callbacks."""
    draws = Draws(hook)

    def fit(ref: str | None = None) -> Any:
        module = lab.Net()
        setattr(module, hook, partial(getattr(draws, hook), None, module))
        trainer = lab.trainer(CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast"))
        trainer.fit(module, *lab.loaders(), ckpt_path=ref)
        return lab.everything(trainer)

    lab.seeded()
    expected = fit()
    commit = Repository(path).show("step:3")
    assert commit.exact, commit.training
    torch.manual_seed(5)
    assert fit(f"coral://{path}@{commit.id}") == expected


def test_what_is_fetched_ahead_is_fetched_again(lab: SimpleNamespace, path: Path) -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from ((torch.randn(4), torch.randn(1)) for _ in range(12))

    def fit(ref: str | None = None) -> Any:
        trainer = lab.trainer(CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast"))
        trainer.fit(lab.Net(), DataLoader(Endless(), batch_size=4), lab.loaders()[1], ckpt_path=ref)
        return lab.everything(trainer)

    lab.seeded()
    expected = fit()
    commit = Repository(path).show("step:3")
    assert commit.exact, commit.training
    torch.manual_seed(5)
    assert fit(f"coral://{path}@{commit.id}") == expected


def test_within_an_epoch_numbers_that_are_drawn_as_training_starts_make_it_approximate(
    lab: SimpleNamespace, path: Path
) -> None:
    saves = partial(CoralCallback, path, save_every_n_steps=1, include_optimizer=True, durability="fast")
    lab.trainer(saves(), Draws("on_train_start"), max_steps=4).fit(lab.Net(), *lab.loaders(stateful()))
    assert not Repository(path).show("step:4").exact
    assert "before the first batch draws random numbers" in Repository(path).show("step:4").training["why"]
    assert Repository(path).show("step:3").exact
    link = f"coral://{path}@main"
    trainer = lab.trainer(saves(), Draws("on_train_start"), max_steps=5)
    trainer.fit(lab.Net(), *lab.loaders(stateful()), ckpt_path=link)
    assert not Repository(path).show("step:5").exact
    lab.trainer(saves(), max_steps=5).fit(lab.Net(), *lab.loaders(stateful()), ckpt_path=f"coral://{path}@step:3")
    assert Repository(path).show().exact


@pytest.mark.parametrize("every", [1, 2])
def test_data_loaders_that_are_made_anew_make_it_approximate(lab: SimpleNamespace, path: Path, every: int) -> None:
    saves = CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast")
    trainer = lab.trainer(saves, reload_dataloaders_every_n_epochs=every)
    trainer.fit(lab.Net(), *lab.loaders())
    for commit in Repository(path).log():
        assert not commit.exact
        assert "reload_dataloaders_every_n_epochs" in commit.training["why"]


def test_a_loader_that_is_used_up_begins_anew(lab: SimpleNamespace, path: Path) -> None:
    def in_order(data: Any, batch_size: int, shuffle: bool) -> Any:
        return stateful()(data, batch_size=batch_size, shuffle=False)

    expected, batches = whole(lab, {}, in_order)
    broken(lab, path, {}, in_order, StopAt(4))
    assert Repository(path).show("step:3").exact
    assert resumed(lab, path, {}, in_order, "step:3") == (expected, [each for each in batches if each[0] >= 3])


def test_with_validation_within_the_epoch_it_is_exact(lab: SimpleNamespace, path: Path) -> None:
    expected, _ = whole(lab, {}, stateful(), val_check_interval=1)
    broken(lab, path, {}, stateful(), StopAt(5), val_check_interval=1)
    assert Repository(path).show("step:4").exact
    found, _ = resumed(lab, path, {}, stateful(), "step:4", val_check_interval=1)
    assert found == expected


@pytest.mark.parametrize("make", [DataLoader, None], ids=["epoch", "batch"])
def test_after_sigterm_it_is_exact(lab: SimpleNamespace, path: Path, make: Any) -> None:
    """It comes while a step is computed: the last of an epoch, or one within."""
    make, step = make or stateful(), 3 if make else 5
    expected, _ = whole(lab, {}, make, limit_val_batches=0)
    terminate = partial(os.kill, os.getpid(), signal.SIGTERM)
    broken(lab, path, {}, make, StopAt(step - 1, terminate), limit_val_batches=0)
    commit = Repository(path).show()
    assert (commit.step, commit.exact) == (step, True), commit.training
    assert "preempted" in commit.reasons
    found, _ = resumed(lab, path, {}, make, "HEAD", limit_val_batches=0)
    assert found == expected


@pytest.mark.parametrize("step", [5, 6], ids=["batch", "epoch"])
@pytest.mark.parametrize("interval", [1.0, 1], ids=["by epoch", "by batch"])
def test_a_run_that_handles_sigterm_itself_is_exact(
    lab: SimpleNamespace, path: Path, step: int, interval: float
) -> None:
    """It is saved at once, and as it ends one update later, after a validation that only the end has brought."""

    class AfterBatch(pl.Callback):  # and before the boundary, where the callback is the first
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    expected, _ = whole(lab, {}, stateful(), val_check_interval=interval)
    lab.seeded()
    saves = CoralCallback(path, include_optimizer=True, durability="fast", handle_signals=True)
    lab.trainer(AfterBatch(), saves, val_check_interval=interval).fit(lab.Net(), *lab.loaders(stateful()))
    log = Repository(path).log()
    assert [(commit.step, commit.reasons, commit.exact) for commit in log] == [
        (step, ("final",), True), (step - 1, ("preempted",), True),
    ]  # fmt: skip
    for commit in log:
        found, _ = resumed(lab, path, {}, stateful(), commit.id, val_check_interval=interval)
        assert found == expected, commit.reasons


def test_sigterm_within_a_validation_is_approximate(lab: SimpleNamespace, path: Path) -> None:
    broken(lab, path, {}, DataLoader, StopAt(2, partial(os.kill, os.getpid(), signal.SIGTERM)))
    commit = Repository(path).show()
    assert (commit.step, commit.exact) == (3, False)
    assert "saved on an exception" in commit.training["why"]


def test_sigterm_between_the_batches_of_one_update_is_approximate(lab: SimpleNamespace, path: Path) -> None:
    class AtBatch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 0):
                os.kill(os.getpid(), signal.SIGTERM)

    saves = CoralCallback(path, include_optimizer=True, durability="fast")
    with pytest.raises(SystemExit):
        lab.trainer(saves, AtBatch(), accumulate_grad_batches=2).fit(lab.Net(), *lab.loaders(stateful()))
    commit = Repository(path).show()
    assert (commit.step, commit.exact) == (2, False)
    assert "saved on an exception" in commit.training["why"]


def test_within_an_epoch_a_plain_loader_is_approximate_and_that_is_said(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken(lab, path, {}, DataLoader, StopAt(5))
    commit = Repository(path).show("step:4")
    assert not commit.exact
    assert commit.training["why"] == "it was saved within an epoch, and the position in the data is not known"
    _, rest = resumed(lab, path, {}, DataLoader, "step:4")
    assert caplog.text.count("approximately: it was saved within an epoch") == 1
    assert [step for step, _ in rest] == [4, 5, 6, 7, 8]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the callback has another repository
def test_it_is_said_of_another_repositorys_checkpoint_too(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken(lab, path, {}, DataLoader, StopAt(5))
    elsewhere = CoralCallback(path.with_name("elsewhere"), include_optimizer=True, durability="fast")
    lab.trainer(elsewhere).fit(lab.Net(), *lab.loaders(), ckpt_path=f"coral://{path}@step:4")
    assert caplog.text.count("approximately: it was saved within an epoch") == 1


def test_what_is_saved_when_a_batch_has_begun_is_approximate(lab: SimpleNamespace, path: Path) -> None:
    lab.seeded()
    saves = CoralCallback(path, include_optimizer=True, durability="fast")
    with pytest.raises(Stop):
        lab.trainer(StopAt(4), saves).fit(lab.Net(), *lab.loaders(stateful()))
    assert (Repository(path).show().step, Repository(path).show().exact) == (4, False)
    assert "saved on an exception" in Repository(path).show().training["why"]


def test_a_run_that_max_steps_ended_within_an_epoch_goes_on_there(lab: SimpleNamespace, path: Path) -> None:
    expected, batches = whole(lab, {}, stateful())
    lab.seeded()
    saves = CoralCallback(path, include_optimizer=True, durability="fast")
    lab.trainer(saves, max_steps=4).fit(lab.Net(), *lab.loaders(stateful()))
    assert Repository(path).show().exact
    assert resumed(lab, path, {}, stateful(), "main") == (expected, [each for each in batches if each[0] >= 4])


def test_several_loaders_are_taken_together(lab: SimpleNamespace, path: Path) -> None:
    class Pair(lab.Net):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch["a"], batch_idx) + self.loss(batch["b"][0])  # type: ignore[no-any-return]

    def fit(trainer: Any, ckpt_path: str | None = None) -> Any:
        make = stateful()
        both = {"a": lab.loaders(make)[0], "b": [lab.loaders(make)[0]]}
        trainer.fit(Pair(), both, lab.loaders()[1], ckpt_path=ckpt_path)
        return lab.everything(trainer)

    lab.seeded()
    expected = fit(lab.trainer())
    lab.seeded()
    saves = partial(CoralCallback, path, include_optimizer=True, durability="fast")
    fit(lab.trainer(saves(save_every_n_steps=1), max_steps=5))
    assert Repository(path).show("step:4").exact
    assert fit(lab.trainer(saves()), f"coral://{path}@step:4") == expected


class Transposed(torch.nn.Module):
    """Version 1 of it kept its weight transposed."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if (local_metadata.get("version") or 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"].t().contiguous()
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


@pytest.mark.parametrize("link", [True, False], ids=["link", "file"])
def test_modules_are_told_of_which_versions_the_weights_are(lab: SimpleNamespace, path: Path, link: bool) -> None:
    class Net(lab.Net):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.versioned = torch.nn.Sequential(Transposed())

    first, second = Net(), Net()
    saves = CoralCallback(path, include_optimizer=True, durability="fast")
    lab.trainer(saves).fit(first, *lab.loaders())
    ref = f"coral://{path}@last" if link else saves.resume_path("last")
    lab.trainer(saves).fit(second, *lab.loaders(), ckpt_path=ref)
    assert lab.plain(second.state_dict()) == lab.plain(first.state_dict())


@pytest.mark.parametrize("link", [True, False], ids=["link", "file"])
def test_a_warm_up_before_milestones_goes_on(lab: SimpleNamespace, path: Path, link: bool) -> None:
    class Net(lab.Net):  # type: ignore[misc, name-defined]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            parts = [lrs.LinearLR(optimizer), lrs.MultiStepLR(optimizer, [1, 2])]
            return {"optimizer": optimizer, "lr_scheduler": lrs.SequentialLR(optimizer, parts, [3])}

    first, second = Net(), Net()
    saves = CoralCallback(path, save_every_n_epochs=1, include_optimizer=True, durability="fast")
    whole = lab.trainer(saves, max_epochs=6)
    whole.fit(first, *lab.loaders())
    ref = "step:6"  # within the warm-up
    again = lab.trainer(CoralCallback(path, include_optimizer=True, durability="fast"), max_epochs=6)
    again.fit(second, *lab.loaders(), ckpt_path=f"coral://{path}@{ref}" if link else saves.resume_path(ref))
    states = [each.lr_scheduler_configs[0].scheduler.state_dict() for each in (whole, again)]
    assert lab.plain(states[0]) == lab.plain(states[1])


class Other(pl.Callback):
    """Has the module make another optimizer, or scheduler, than it did."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.configure_optimizers = lambda: self.make(pl_module.parameters())


def _cosine(parameters: Any) -> Any:
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    return {"optimizer": optimizer, "lr_scheduler": lrs.CosineAnnealingLR(optimizer, 9)}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), "SGD with .*another kind"),
        (_cosine, "CosineAnnealingLR with .*another kind"),
    ],
    ids=["optimizer", "scheduler"],
)
def test_another_kind_is_told_before_it_trains(
    lab: SimpleNamespace, tmp_path: Path, make: Callable[[Any], Any], says: str
) -> None:
    """Lightning would train on: SGD with the learning rate that AdamW had, and none of its own momentum."""
    saves = CoralCallback(tmp_path / "r", include_optimizer=True, durability="fast")
    lab.trainer(saves, max_epochs=1).fit(lab.Net(), *lab.loaders())
    again = CoralCallback(tmp_path / "r", include_optimizer=True, durability="fast")
    module = lab.Net()
    with pytest.raises(WeightsMismatch, match=says) as caught:
        lab.trainer(again, Other(make)).fit(module, *lab.loaders(), ckpt_path=f"coral://{tmp_path / 'r'}@main")
    assert "strict" not in str(caught.value)
    assert not module.seen


def test_the_kind_is_told_without_the_optimizers_state(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of one which is spread over the ranks (ZeroRedundancyOptimizer) has to be brought together first."""
    mine = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    state, other = mine.state_dict(), torch.optim.SGD(mine.param_groups[0]["params"], lr=1.0).state_dict()
    monkeypatch.setattr(mine, "state_dict", lambda: pytest.fail("it was asked for"))
    trainer = SimpleNamespace(optimizers=[mine], lr_scheduler_configs=[], callbacks=[])
    check_kinds(trainer, {"optimizer_states": [state]})
    with pytest.raises(WeightsMismatch):
        check_kinds(trainer, {"optimizer_states": [other]})
