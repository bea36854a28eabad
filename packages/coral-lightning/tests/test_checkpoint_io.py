"""Commits where a trainer wants checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from coral import Repository
from coral.errors import ConfigError, NotARepository, UnknownRef
from coral.integrations.lightning import CoralCallback, CoralCheckpointIO
from coral.integrations.lightning._links import parse
from coral.integrations.pytorch._files import load_file

coral = partial(CoralCallback, durability="fast", background_repack=False)


def batches(n: int) -> DataLoader[Any]:
    return DataLoader([0.0] * n)  # type: ignore[arg-type]


def test_a_link_is_a_folder_and_a_ref(path: Path) -> None:
    path.mkdir()
    at = path.with_name("a@b")
    at.mkdir()
    assert parse("coral://weights") == (Path("weights"), "HEAD")
    assert parse("coral://weights@main") == (Path("weights"), "main")
    assert parse("coral://./weights@experiment/a@best~2") == (Path("weights"), "experiment/a@best~2")
    assert parse(f"coral://{path}@step:5") == (path, "step:5")
    assert parse(f"coral://{at}") == (at, "HEAD")
    assert parse(f"coral://{at}@main") == (at, "main")
    for wrong in ("coral://", "coral://@main", "coral://weights@"):
        with pytest.raises(ConfigError, match="write coral://path@ref"):
            parse(wrong)


def test_the_plugin_reads_commits_without_a_callback(lab: SimpleNamespace, path: Path) -> None:
    trainer = lab.trainer(coral(path, save_every_n_epochs=1, include_optimizer=True))
    trainer.fit(lab.Scored(), batches(3), batches(1))
    module, plain = lab.Scored(), lab.trainer(plugins=[CoralCheckpointIO()])
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        plain.fit(module, batches(3), batches(1), ckpt_path=f"coral://{path}@step:6")
    assert (plain.global_step, module.weight.item()) == (9, 9.0)


def test_weights_alone_can_be_validated_but_not_gone_on_from(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path, save_on_best="val_loss")
    trainer, module = lab.trainer(callback), lab.Scored()
    trainer.fit(module, batches(3), batches(1))
    trainer.validate(module, batches(1), ckpt_path=f"coral://{path}@step:3", verbose=False)
    assert module.weight.item() == 3.0
    with pytest.raises(ConfigError, match="holds weights alone"):
        lab.trainer(coral(path)).fit(module, batches(3), batches(1), ckpt_path=f"coral://{path}@step:3")
    with pytest.raises(ConfigError, match="holds weights alone"):
        callback.resume_path()


def test_a_link_to_nothing_says_so(lab: SimpleNamespace, path: Path) -> None:
    fit = partial(lab.trainer(coral(path)).fit, lab.Scored(), batches(3), batches(1))
    with pytest.raises(NotARepository):
        fit(ckpt_path=f"coral://{path}-else@main")
    with pytest.raises(UnknownRef):
        fit(ckpt_path=f"coral://{path}@main")


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_going_on_from_another_branch_than_the_one_that_is_saved_to_is_warned_of(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(epochs: int, branch: str | None = None, ref: str | None = None) -> str:
        caplog.clear()
        saves = coral(path, save_every_n_epochs=1, include_optimizer=True, branch=branch)
        link = f"coral://{path}@{ref}" if ref else None
        lab.trainer(saves, max_epochs=epochs).fit(lab.Scored(), batches(3), batches(1), ckpt_path=link)
        return caplog.text

    fit(1)
    for branch, ref in (("fork", "last"), ("fork", "fork"), ("fork", "fork@step:6"), (None, "last")):
        assert "no checkpoint of its own" not in fit(2, branch, ref), ref
    fit(3, "other")
    fork, other = Repository(path).resolve("fork"), Repository(path).resolve("other")
    for branch, ref, newest in (("other", "last", 9), ("other", fork, 9), (None, other, 6)):
        said = f"on the branch {branch or 'main'} that it saves to; the newest there is of step {newest}"
        assert said in fit(3, branch, ref), ref


def test_two_callbacks_on_branches_of_their_own_go_on_together(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        lab.trainer(coral(path), coral(path, save_on_best="val_loss"))
    for epochs, link in ((1, None), (2, f"coral://{path}@whole"), (3, f"coral://{path}@whole")):
        whole = coral(path, branch="whole", include_optimizer=True)
        scores = coral(path, branch="scores", save_on_best="val_loss")
        lab.trainer(whole, scores, max_epochs=epochs).fit(lab.Scored(), batches(3), batches(1), ckpt_path=link)
    assert "no checkpoint of its own" not in caplog.text
    assert [commit.step for commit in Repository(path).log("whole")] == [9, 6, 3]


def test_a_module_is_loaded_from_the_file_of_a_commit(lab: SimpleNamespace, path: Path) -> None:
    callback = coral(path, save_every_n_epochs=1, include_optimizer=True)
    lab.trainer(callback).fit(lab.Scored(), batches(3), batches(1))
    assert lab.Scored.load_from_checkpoint(callback.resume_path("step:6")).weight.item() == 6.0


def test_the_trainer_saves_commits(lab: SimpleNamespace, path: Path) -> None:
    """save_checkpoint is the public way to the whole of it; what random generators were is not in there."""
    trainer = lab.trainer(plugins=[CoralCheckpointIO()])
    trainer.fit(lab.Scored(), batches(3), batches(1))
    trainer.save_checkpoint(f"coral://{path}@by-hand")
    commit = Repository(path).show("by-hand")
    assert (commit.step, commit.exact) == (9, False)
    more = lab.trainer(plugins=[CoralCheckpointIO()], max_epochs=4)
    module = lab.Scored()
    more.fit(module, batches(3), batches(1), ckpt_path=f"coral://{path}@by-hand")
    assert (more.global_step, module.weight.item()) == (12, 12.0)
    more.save_checkpoint(f"coral://{path}@by-hand")
    more.strategy.remove_checkpoint(f"coral://{path}@by-hand~1")
    assert [commit.pruned for commit in Repository(path).log("by-hand")] == [False, True]


def test_other_paths_are_those_of_the_plugin_that_was_there(lab: SimpleNamespace, path: Path, tmp_path: Path) -> None:
    trainer = lab.trainer(coral(path))
    trainer.fit(lab.Scored(), batches(3), batches(1))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert torch.load(tmp_path / "own.ckpt", weights_only=True)["global_step"] == 9
    trainer.strategy.remove_checkpoint(tmp_path / "own.ckpt")
    assert not (tmp_path / "own.ckpt").exists()


def test_a_file_to_resume_from_holds_plain_values_alone(lab: SimpleNamespace, path: Path, tmp_path: Path) -> None:
    callback = coral(path, include_optimizer=True)
    lab.trainer(callback).fit(lab.Net(), *lab.loaders())
    file = callback.resume_path(path=tmp_path / "folder" / "mine.ckpt")
    assert file == str(tmp_path / "folder" / "mine.ckpt")
    assert {"state_dict", "optimizer_states", "loops", "coral"} <= set(load_file(file))


def test_a_file_without_a_path_lies_beside_the_repository_until_the_program_ends(
    lab: SimpleNamespace, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *end: ends.append(end))
    lab.trainer(coral(path, include_optimizer=True)).fit(lab.Scored(), batches(3), batches(1))
    beside = Path(coral(path).resume_path("last"))
    assert beside.exists()
    assert beside.parent.parent == path.parent
    ((remove, *how),) = [end for end in ends if str(beside.parent) in end]
    remove(*how)
    assert not beside.parent.exists()


def test_what_is_no_plain_data_is_left_out_and_said(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(lab.Scored):  # type: ignore[misc, name-defined]
        def __init__(self, kind: Any = object, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    lab.trainer(coral(path, save_every_n_epochs=1, include_optimizer=True)).fit(Odd(), batches(3), batches(1))
    assert caplog.text.count("hyper_parameters.kind is no plain data") == 1
    commit = Repository(path).show()
    assert commit.exact, "nothing that a run goes on by"
    assert Repository(path).load_state()["lightning"]["hyper_parameters"] == {"width": 3}


def test_a_callback_whose_state_is_left_out_makes_it_approximate(lab: SimpleNamespace, path: Path) -> None:
    class Odd(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"object": object()}

    trainer = lab.trainer(Odd(), coral(path, include_optimizer=True))
    trainer.fit(lab.Scored(), batches(3), batches(1))
    commit = Repository(path).show()
    assert commit.training["why"] == f"what is not saved: callbacks.{Odd.__qualname__}"


def test_what_a_trainer_goes_on_by_has_to_be_plain_data(
    lab: SimpleNamespace, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "object": object()}

    class Module(lab.Scored):  # type: ignore[misc, name-defined]
        def configure_optimizers(self) -> Any:
            return Odd(self.parameters(), lr=1.0)

    trainer = lab.trainer(coral(path, include_optimizer=True))
    trainer.fit(Module(), batches(3), batches(1))
    assert trainer.global_step == 9, "the run is not broken"
    assert "optimizer_states.0.object is a builtins.object" in caplog.text
    assert Repository(path).branches() == {}
