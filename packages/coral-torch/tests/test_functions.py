"""Models to repositories and back, in one call each."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from coral import Repository
from coral.errors import (
    ConfigError,
    CorruptObject,
    NotARepository,
    UnknownRef,
    UnknownRemote,
    UnsupportedValue,
    WeightsMismatch,
)
from coral.integrations.pytorch import (
    PyTorchIntegration,
    create_model_from_weights,
    load_from_remote,
    load_from_repo,
    load_model_from_coral,
    save_model,
    save_model_to_coral,
)


class Net(nn.Module):
    """An embedding that is tied to the head, and a norm with buffers."""

    def __init__(self, width=3):
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embed.weight


def net(value):
    """A Net with the value everywhere."""
    model = Net()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def values(model):
    return {tensor.unique().item() for tensor in model.state_dict().values()}


def other_repository(tmp_path):
    return Repository(tmp_path / "other", init=True, durability="fast")


# Saving


def test_a_model_is_saved_as_a_commit_with_its_message_metadata_and_metrics(repo):
    commit = save_model_to_coral(net(2), repo, "two", metadata={"by": "hand"}, metrics={"loss": 0.5})
    found = repo.show()
    assert (found.id, found.message, found.metadata, found.metrics) == (commit, "two", {"by": "hand"}, {"loss": 0.5})
    assert repo.load().keys() == Net().state_dict().keys()
    assert np.array_equal(repo.load()["embed.weight"].data, np.full((5, 3), 2, np.float32))
    assert repo.tree()["embed.weight"].id == repo.tree()["head.weight"].id


def test_a_model_is_saved_on_a_branch(repo):
    save_model_to_coral(net(1), repo, "one")
    commit = save_model_to_coral(net(2), repo, "two", branch="exp")
    assert repo.branches()["exp"] == commit != repo.branches()["main"]


def test_extra_state_that_is_no_tensor_is_left_out_with_a_warning(repo):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            raise AssertionError

    with pytest.warns(UserWarning, match="left out: _extra_state"):
        save_model_to_coral(Extra(1, 1), repo, "x")


def test_what_was_saved_is_told(tmp_path):
    told = save_model(net(1), tmp_path / "new", "one", branch="exp")
    repo = Repository(tmp_path / "new")
    assert told == {"commit_hash": repo.resolve("exp"), "weights_saved": 7, "branch": "exp"}
    assert save_model(net(2), repo, "two")["branch"] == "main"


def test_a_repository_is_not_made_where_that_is_not_wanted(tmp_path):
    with pytest.raises(NotARepository):
        save_model(net(1), tmp_path / "new", "one", init=False)


def test_a_push_that_fails_is_told_and_the_commit_is_made(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "coral"):
        told = save_model(net(1), tmp_path / "new", "one", push_to="origin")
    assert Repository(tmp_path / "new").resolve() == told["commit_hash"]
    assert "no remote 'origin'" in told["push_stats"]["error"]
    assert "was not pushed to 'origin'" in caplog.text


def test_what_is_pushed_can_be_loaded_by_somebody_else(repo, tmp_path):
    save_model_to_coral(net(1), repo, "one")
    repo.add_remote("origin", tmp_path / "there")
    repo.push()
    theirs = Repository.clone(tmp_path / "there", tmp_path / "theirs")
    told = save_model(net(2), repo, "two", push_to="origin")
    assert told["push_stats"]["commits"] == 1
    assert told["push_stats"]["bytes_sent"] > 0
    model = Net()
    load_from_remote(model, theirs, pull_first=False)
    assert values(model) == {1}
    load_from_remote(model, theirs)
    assert values(model) == {2}
    assert theirs.resolve() == told["commit_hash"]
    save_model(net(3), repo, "three", push_to=str(tmp_path / "there"))
    load_from_remote(model, theirs, "origin", commit_ref="origin/main")
    assert values(model) == {3}
    assert theirs.resolve() == told["commit_hash"]  # a commit was asked for, not a branch


# Loading


def test_a_model_is_loaded_from_head_or_a_ref(repo):
    save_model_to_coral(net(1), repo, "one")
    save_model_to_coral(net(2), repo, "two")
    model = Net()
    assert load_model_from_coral(model, repo) is True
    assert values(model) == {2}
    assert load_model_from_coral(model, repo, "HEAD~1") is True
    assert values(model) == {1}
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("ref", [None, "HEAD", "main", "best", "last"])
def test_where_there_is_no_commit_yet_nothing_is_loaded(repo, ref):
    model = net(4)
    assert load_model_from_coral(model, repo, ref) is False
    assert values(model) == {4}


def test_a_ref_that_means_nothing_is_an_error(repo):
    with pytest.raises(UnknownRef, match="experimnet"):
        load_model_from_coral(Net(), repo, "experimnet")
    save_model_to_coral(net(1), repo, "one")
    with pytest.raises(UnknownRef, match="HEAD~3"):
        load_model_from_coral(Net(), repo, "HEAD~3")


def test_a_model_of_another_shape_is_refused_and_stays_as_it_was(repo):
    save_model_to_coral(net(1), repo, "one")
    model = Net(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for load in (load_model_from_coral, load_from_repo):
        with pytest.raises(WeightsMismatch) as caught:
            load(model, repo)
        assert caught.value.mismatched["embed.weight"] == ("float32 (5, 4)", "float32 (5, 3)")
        assert len(caught.value.mismatched) == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("load", [load_model_from_coral, load_from_repo])
def test_names_devices_and_strictness_are_those_of_load_into_model(repo, load):
    repo.commit({"old.weight": np.ones((2, 2), np.float32), "x": np.ones(1)}, "one")
    model = nn.Linear(2, 2, bias=False, device="meta")
    load(model, repo, key_map={"weight": "weight"}, prefix="old", device="cpu")
    assert model.weight.tolist() == [[1, 1], [1, 1]]
    model = nn.Linear(2, 2)
    load(model, repo, strict=False, key_map=[("^old.", "")])
    assert model.weight.tolist() == [[1, 1], [1, 1]]


def test_a_branch_is_loaded_though_a_tag_has_its_name(repo):
    save_model_to_coral(net(1), repo, "one")
    repo.tag("exp", "main")
    save_model_to_coral(net(2), repo, "two", branch="exp")
    model = Net()
    assert load_from_repo(model, repo.path, branch="exp")["matched"] == 7
    assert values(model) == {2}
    with pytest.raises(ConfigError, match="not both"):
        load_from_repo(model, repo, "HEAD", "exp")


def test_a_model_on_the_meta_device_keeps_what_was_read(repo):
    save_model_to_coral(net(3), repo, "three")
    with torch.device("meta"):
        model = Net()
    assert load_from_repo(model, repo)["loaded"] == list(model.state_dict())
    assert values(model) == {3}
    assert model.head.weight is model.embed.weight


def test_nothing_is_loaded_from_a_commit_that_is_damaged(repo):
    big = np.arange(1 << 16, dtype=np.float32)
    repo.commit({"a": big, "b": big + 1}, "one")
    (pack,) = [path for path in repo.path.rglob("*") if path.is_file() and path.stat().st_size > big.nbytes]
    pack.chmod(0o644)
    with pack.open("r+b") as file:
        file.seek(pack.read_bytes().index((big + 1).tobytes()) + 100)
        file.write(b"\xff")
    model = nn.ParameterDict({"a": torch.zeros(big.size), "b": torch.zeros(big.size)})
    with pytest.raises(CorruptObject, match="'b'"):
        load_from_repo(model, repo)
    assert not model["a"].any()


def test_a_folder_stands_for_a_remote(repo, tmp_path):
    other = other_repository(tmp_path)
    save_model_to_coral(net(1), other, "one")
    save_model_to_coral(net(2), other, "two", branch="exp")
    other.checkout("exp")
    save_model_to_coral(net(3), repo, "three")
    model = Net()
    load_from_remote(model, repo.path, str(other.path))
    assert values(model) == {1}  # of the branch that HEAD is on here
    load_from_remote(model, repo, str(other.path), branch="exp")
    assert values(model) == {2}
    load_from_remote(model, repo, str(other.path), commit_ref=other.resolve("main"))
    assert values(model) == {1}
    load_from_remote(model, repo, str(other.path), pull_first=False)
    assert values(model) == {3}
    assert list(repo.branches()) == ["main"]


def test_a_remote_that_is_not_there_is_an_error_that_says_what_can_be_done(repo, tmp_path):
    save_model_to_coral(net(1), repo, "one")
    with pytest.raises(UnknownRemote, match=r"no remote 'origin'.*add_remote"):
        load_from_remote(Net(), repo.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotARepository):
        load_from_remote(Net(), repo.path, str(tmp_path / "empty"))
    with pytest.raises(UnknownRef):
        load_from_remote(Net(), repo.path, str(other_repository(tmp_path).path))


# Making


def test_a_model_is_made_and_loaded(repo):
    weights = PyTorchIntegration.model_to_weights(net(2))
    model = create_model_from_weights(Net, weights, device="cpu", width=3)
    assert type(model) is Net
    assert values(model) == {2}
    with pytest.raises(WeightsMismatch, match=r"embed\.weight"):
        create_model_from_weights(Net, weights, width=4)


def test_the_class_may_have_arguments_of_any_name():
    class Scaled(nn.Linear):
        def __init__(self, weights, model_class):
            super().__init__(weights, model_class)

    weights = PyTorchIntegration.model_to_weights(nn.Linear(2, 3))
    assert create_model_from_weights(Scaled, weights, weights=2, model_class=3).weight.shape == (3, 2)


def test_what_is_no_tensor_is_refused_by_name():
    with pytest.raises(UnsupportedValue, match="weight is a list"):
        create_model_from_weights(nn.Linear, {"weight": [1.0], "bias": torch.ones(1)}, in_features=1, out_features=1)
