"""What cannot be is said at the earliest moment, clearly."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coral import Repository
from coral.errors import (
    CommitPruned,
    ConfigError,
    NewerFormat,
    NotARepository,
    ReadOnly,
    StorageError,
    UnknownRef,
    UnsafeInput,
    WeightsMismatch,
)
from coral.integrations.hf_trainer import CoralTrainerCallback
from coral.integrations.hf_trainer._pretrained import unpack
from coral.training import CheckpointConfig


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"save_every_epochs": 1}, "no argument 'save_every_epochs'. Did you mean 'save_every_n_epochs'"),
        ({"save_on_best_metric": "loss"}, "Did you mean 'save_on_best'"),
        ({"minimize_metric": True}, "Did you mean 'mode'"),
        ({"metadata_keys": ["epoch"]}, "CoralTrainerCallback has no argument 'metadata_keys'"),
        ({"mode": "lowest"}, 'mode is \'lowest\'; it must be "min" or "max"'),
        ({"config": {"save_every_n_steps": 2}}, "config is a dict"),
        ({"config": CheckpointConfig(), "save_every_n_steps": 2}, "save_every_n_steps beside it"),
        ({"config": CheckpointConfig(), "mode": "max", "async_save": False}, "mode, async_save beside it"),
        ({"save_every_n_steps": -1}, "save_every_n_steps is -1"),
        ({"keep_best_n_checkpoints": 2}, "but save_on_best is None"),
        ({"early_stopping_patience": 2}, "but save_on_best is None"),
        ({"durability": "most"}, "durability is 'most'"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        CoralTrainerCallback(tmp_path / "repo", **arguments)
    assert said in str(raised.value)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("branch", ["../up", "a b", "", "HEAD", "x.lock", 3])
def test_a_branch_name_that_is_unsafe(branch: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsafeInput):
        CoralTrainerCallback(tmp_path / "repo", branch=branch)
    assert not (tmp_path / "repo").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotARepository, match="a file is in the way"):
        CoralTrainerCallback(tmp_path / "file" / "repo")
    with pytest.raises(StorageError, match="/proc/repo"):
        CoralTrainerCallback("/proc/repo")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Repository(tmp_path / "repo", init=True)
    if os.getuid():
        (tmp_path / "repo").chmod(0o500)
    else:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ReadOnly, match="cannot be written to"):
        CoralTrainerCallback(tmp_path / "repo")


def test_no_repository_where_none_is_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(NotARepository):
        CoralTrainerCallback(tmp_path, init=False)


def test_a_repository_of_a_newer_format(tmp_path: Path) -> None:
    Repository(tmp_path / "repo", init=True)
    content = (tmp_path / "repo" / "format").read_bytes()
    newer = content.partition(b"\n")[0].replace(b"1", b"99")
    (tmp_path / "repo" / "format").write_bytes(newer + b"\n" + hashlib.sha256(newer).hexdigest().encode() + b"\n")
    with pytest.raises(NewerFormat):
        CoralTrainerCallback(tmp_path / "repo")


def test_weights_that_do_not_fit_are_listed_with_every_name_and_shape(training: Any, repo: Repository) -> None:
    callback = CoralTrainerCallback(repo)
    training.trainer(callback).train()
    other = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 9)), "tail": nn.Linear(2, 2)})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(WeightsMismatch) as raised:
        callback.load_from_coral(other)
    said = str(raised.value)
    for part in ("(9, 4)", "(8, 4)", "(9,)", "(8,)", "missing: tail.weight", "missing: tail.bias"):
        assert part in said
    assert "unexpected: head.weight" in said
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    report = callback.load_from_coral(other, strict=False)
    assert report["matched"] == 0
    assert sorted(report["mismatched"]) == ["body.0.bias", "body.0.weight"]


def test_refs_that_mean_nothing(training: Any, repo: Repository, tmp_path: Path) -> None:
    callback = CoralTrainerCallback(repo, branch="empty")
    with pytest.raises(UnknownRef):
        callback.load_from_coral(nn.Linear(1, 1))
    training.trainer(CoralTrainerCallback(repo, include_optimizer=True, save_every_n_steps=6)).train()
    with pytest.raises(UnknownRef):
        CoralTrainerCallback(repo).resume_path("step:7")
    repo.prune("step:6")
    with pytest.raises(CommitPruned):
        CoralTrainerCallback(repo).resume_path("step:6", tmp_path / "resume")
    assert not (tmp_path / "resume").exists()


def test_a_folder_that_is_there_is_not_written_over(training: Any, repo: Repository, tmp_path: Path) -> None:
    callback = CoralTrainerCallback(repo, include_optimizer=True)
    training.trainer(callback).train()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(StorageError, match="not empty"):
        callback.resume_path(folder=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "new").mkdir()
    callback.resume_path(folder=tmp_path / "new")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", "a\\b", "C:evil"])
def test_a_file_that_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeInput, match="leads out"):
        unpack({name: None}, tmp_path / "folder")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []
