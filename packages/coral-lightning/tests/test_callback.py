"""What the callback takes and refuses, and what it does beside saving."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from coral import Repository
from coral.errors import ConfigError, NewerFormat, NotARepository, ReadOnly, UnknownRef, UnsafeInput, WeightsMismatch
from coral.integrations.lightning import CoralCallback
from coral.training import CheckpointConfig

Saved = Callable[..., dict[int | None, tuple[str, ...]]]

coral = partial(CoralCallback, durability="fast", background_repack=False)


def batches(n: int) -> DataLoader[Any]:
    return DataLoader([0.0] * n)  # type: ignore[arg-type]


def fit(lab: SimpleNamespace, *callbacks: Any, module: Any = None, **options: Any) -> Any:
    trainer = lab.trainer(*callbacks, **options)
    trainer.fit(lab.Scored() if module is None else module, batches(3), batches(1))
    return trainer


# Arguments


def test_with_no_argument_only_the_end_is_saved(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    fit(lab, CoralCallback(path))
    assert saved() == {9: ("final",)}


def test_keywords_are_the_config_that_they_stand_for(path: Path) -> None:
    given = CoralCallback(
        path,
        save_every_n_epochs=2,
        save_every_n_steps=3,
        save_on_best="acc",
        mode="max",
        save_on_train_end=False,
        keep_last_n_checkpoints=4,
        save_every_seconds=60.0,
        async_save=False,
        durability="batch",
    )
    assert given.config == CheckpointConfig(
        save_every_n_epochs=2,
        save_every_n_steps=3,
        save_on_best_metric="acc",
        minimize_metric=False,
        save_on_train_end=False,
        keep_last_n_checkpoints=4,
        save_every_seconds=60.0,
        async_save=False,
        durability="batch",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "least"}, 'it must be "min" or "max"'),
        ({"save_every_n_step": 1}, "no argument 'save_every_n_step'. Did you mean 'save_every_n_steps'"),
        ({"save_on_best_metric": "x"}, "Did you mean 'save_on_best'"),
        ({"save_every_n_steps": -1}, "save_every_n_steps is -1"),
        ({"keep_best_n_checkpoints": 2}, "but save_on_best is None"),
        ({"config": CheckpointConfig(), "save_every_n_steps": 1}, "config was given, and save_every_n_steps beside it"),
        ({"config": CheckpointConfig(), "async_save": True}, "config was given, and async_save beside it"),
        ({"config": {}}, "it must be a CheckpointConfig"),
        ({"config": CheckpointConfig(save_optimizer_state=False), "include_optimizer": True}, "all that a trainer"),
        ({"config": CheckpointConfig(save_scheduler_state=False), "include_optimizer": True}, "all that a trainer"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_refused(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CoralCallback(path, **options)
    assert message in str(refused.value)
    assert not path.exists()


@pytest.mark.parametrize("branch", ["../elsewhere", "a b", "", "HEAD", "x.lock", 3])
def test_an_unsafe_branch_is_refused(path: Path, branch: Any) -> None:
    with pytest.raises(UnsafeInput):
        CoralCallback(path, branch=branch)
    assert not path.exists()


def test_a_folder_that_cannot_be_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "weights", tmp_path / "file"):
        with pytest.raises(OSError, match="file"):
            CoralCallback(path)
    with pytest.raises(NotARepository):
        CoralCallback(tmp_path / "nothing", init=False)


def test_a_folder_that_is_not_to_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ReadOnly, match="cannot be made"):
        CoralCallback(tmp_path / "weights")


def test_a_repository_that_is_not_to_be_written_to_is_refused_before_training(
    lab: SimpleNamespace, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repository(path, init=True)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    module = lab.Scored()
    with pytest.raises(ReadOnly, match="cannot be written to"):
        fit(lab, coral(path), module=module)
    assert module.weight.item() == 0


def test_a_repository_of_a_newer_format_is_refused(path: Path) -> None:
    Repository(path, init=True)
    newer = (path / "format").read_bytes().partition(b"\n")[0].replace(b"1", b"99")
    (path / "format").write_bytes(newer + b"\n" + hashlib.sha256(newer).hexdigest().encode() + b"\n")
    with pytest.raises(NewerFormat):
        CoralCallback(path)


def test_a_metric_that_never_comes_is_warned_of_with_those_that_did(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(lab, coral(path, save_on_best="val_acc"))
    (said,) = [record.getMessage() for record in caplog.records if "'val_acc'" in record.getMessage()]
    assert "what came: val_loss" in said


def test_metadata_that_a_trainer_has_not_is_warned_of_once(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(lab, coral(path, save_every_n_steps=1, metadata_keys=["max_epochs", "mood", "callbacks"]))
    assert dict(Repository(path).show().metadata) == {"max_epochs": 3}
    assert caplog.text.count("'mood'") == caplog.text.count("'callbacks'") == 1


# Branches and runs


def test_it_commits_to_its_branch(lab: SimpleNamespace, path: Path, saved: Saved) -> None:
    fit(lab, coral(path, branch="experiment/a"))
    assert saved("experiment/a") == {9: ("final",)}
    assert Repository(path).show("experiment/a").experiment == "experiment/a"


def test_a_trainer_that_goes_on_keeps_to_its_budget(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path, save_every_n_epochs=1, keep_last_n_checkpoints=2)
    trainer = lab.trainer(callback, max_epochs=2)
    module = lab.Scored()
    trainer.fit(module, batches(3), batches(1))
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, batches(3), batches(1))
    log = Repository(path).log()
    assert [(commit.step, commit.pruned) for commit in log] == [(12, False), (9, False), (6, False), (3, True)]


def test_a_new_trainer_begins_a_run_of_its_own(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path, save_every_n_epochs=1)
    for _ in range(2):
        fit(lab, callback, max_epochs=2)
    log = Repository(path).log()
    assert [commit.step for commit in log] == [6, 3, 6, 3]
    assert len({commit.run for commit in log}) == 2


def test_its_state_survives_a_checkpoint_of_the_trainer(lab: SimpleNamespace, path: Path, tmp_path: Path) -> None:
    """A run that goes on from a .ckpt file knows the checkpoints before it, and prunes them."""
    options = {"save_every_n_epochs": 1, "keep_last_n_checkpoints": 2}
    trainer = fit(lab, coral(path, **options), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    before = Repository(path).show()
    again = lab.trainer(coral(path, **options), max_epochs=4)
    again.fit(lab.Scored(), batches(3), batches(1), ckpt_path=tmp_path / "own.ckpt")
    log = Repository(path).log()
    assert [commit.step for commit in log] == [12, 9, 6, 3]
    assert log[0].resumed_from == before.id
    assert log[3].pruned


def test_it_can_be_sent_to_another_process(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path, save_every_n_epochs=1)
    fit(lab, callback)
    copy = pickle.loads(pickle.dumps(callback))
    assert copy.config == callback.config
    assert copy.load_from_coral(lab.Scored())["loaded"] == ["weight"]


# Loading


def test_weights_are_loaded_from_its_branch(lab: SimpleNamespace, path: Path) -> None:
    fit(lab, CoralCallback(path, branch="other"))
    callback = coral(path, branch="mine", save_every_n_epochs=1, save_on_best="val_loss")
    fit(lab, callback, module=lab.Scored(lambda step: abs(step - 6)))
    module = lab.Scored()
    loaded = []
    for ref in (None, "best", "step:3", "other"):
        assert callback.load_from_coral(module, ref)["matched"] == 1
        loaded.append(module.weight.item())
    assert loaded == [9.0, 6.0, 3.0, 9.0]
    with pytest.raises(UnknownRef):
        callback.load_from_coral(module, "step:5")


def test_weights_that_do_not_fit_are_listed(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path)
    fit(lab, callback)
    other = nn.ParameterDict({"weight": torch.zeros(2), "bias": torch.zeros(1)})
    with pytest.raises(WeightsMismatch) as refused:
        callback.load_from_coral(other)
    assert all(part in str(refused.value) for part in ("weight", "(1,)", "(2,)", "missing: bias"))
    assert refused.value.missing == ["bias"]
    assert list(refused.value.mismatched) == ["weight"]
    assert callback.load_from_coral(other, strict=False)["loaded"] == []


def test_extra_state_and_tied_weights_come_back(lab: SimpleNamespace, path: Path) -> None:
    class Tied(lab.Scored):  # type: ignore[misc, name-defined]
        note = "new"

        def __init__(self) -> None:
            super().__init__()
            self.twin = self.weight

        def get_extra_state(self) -> Any:
            return {"note": self.note}

        def set_extra_state(self, state: Any) -> None:
            self.note = state["note"]

    callback, module = coral(path), Tied()
    module.note = "old"
    fit(lab, callback, module=module)
    fresh = Tied()
    callback.load_from_coral(fresh)
    assert (fresh.note, fresh.twin.item()) == ("old", 9.0)
    assert fresh.twin is fresh.weight
    tree = Repository(path).tree()
    assert tree["twin"].id == tree["weight"].id


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "weights"])
def test_what_a_module_leaves_out_of_its_checkpoints_is_not_saved(
    lab: SimpleNamespace, path: Path, complete: bool
) -> None:
    class Frozen(lab.Scored):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(2, 2).requires_grad_(False)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            for name in ("backbone.weight", "backbone.bias"):
                del checkpoint["state_dict"][name]

    fit(lab, coral(path, include_optimizer=complete), module=Frozen())
    assert list(Repository(path).tree()) == ["weight"]


# Pushing


def test_what_is_saved_is_pushed(lab: SimpleNamespace, path: Path, tmp_path: Path) -> None:
    Repository(path, init=True).add_remote("origin", tmp_path / "there")
    fit(lab, coral(path, save_every_n_epochs=1, push_to="origin"))
    assert Repository(tmp_path / "there").branches() == Repository(path).branches()


def test_a_remote_that_is_not_there_is_warned_of_and_pushed_to_later(
    lab: SimpleNamespace, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(lab, coral(path, push_to="origin"))
    assert "not pushed: main to origin" in caplog.text
    Repository(path).add_remote("origin", tmp_path / "there")
    fit(lab, coral(path, push_to="origin"))
    assert len(Repository(tmp_path / "there").log("main")) == 2


def test_a_push_that_fails_ends_nothing(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    Repository(path, init=True).add_remote("origin", tmp_path / "file" / "there")
    fit(lab, coral(path, push_to="origin"))
    assert "not pushed: main to origin" in caplog.text
