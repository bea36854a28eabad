"""The Hub as a remote: `hf://owner/name`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from loopback_hub import Hub
from transformers import GPT2Config, GPT2LMHeadModel, TrainerControl, TrainerState, TrainingArguments

from coral import Repository, WeightTensor
from coral.errors import (
    CommitPruned,
    ConfigError,
    Diverged,
    NotARepository,
    RemoteDenied,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
    UnsafeInput,
)
from coral.integrations.hf_trainer._source import TrainerSource
from coral.integrations.huggingface import CoralHubClient, _showing
from coral.integrations.huggingface._repository import HubRepository
from coral.remotes import open_remote
from coral.testing import RemoteTests
from coral.training import CheckpointConfig

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

TOKEN = "hf_" + "Secret" * 6


class TestHub(RemoteTests):
    @pytest.fixture(autouse=True)
    def _hub(self, reachable: Hub) -> None:
        self.hub = reachable

    def make(self, folder: Path) -> str:
        self.hub.add(f"me/{folder.name}", {"README.md": b"# Mine\n"})
        return f"hf://me/{folder.name}"


@pytest.fixture
def url(reachable: Hub) -> str:
    """A repository on the Hub that has nothing but a README."""
    reachable.add("me/model", {"README.md": b"# Mine\n"})
    return "hf://me/model"


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo", init=True, durability="fast")


def weights(step: int) -> dict[str, np.ndarray]:
    """Weights after some updates, 2.4 MB: most of their bits stay."""
    rng = np.random.default_rng(7)
    layers = {f"layer.{i}": rng.standard_normal((300, 500)).astype(np.float32) for i in range(4)}
    noise = np.random.default_rng(step).standard_normal((300, 500)).astype(np.float32)
    return {name: layer + noise * np.float32(1e-6 * step) for name, layer in layers.items()}


def commit(repo: Repository, *steps: int, branch: str | None = None) -> list[str]:
    return [repo.commit(weights(step), f"step {step}", branch) for step in steps]


def plain(hub: Hub, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    return safetensors.numpy.load(hub.files("me/model")[name])


def under_coral(hub: Hub) -> set[str]:
    """The folders of a repository that are there."""
    return {path.split("/")[1] for path in hub.files("me/model") if path.startswith("coral/")}


def test_a_push_is_one_commit_after_the_one_that_makes_a_repository(reachable: Hub, url: str, repo: Repository) -> None:
    ids = commit(repo, 1, 2, 3)
    repo.annotate(ids[0], metrics={"loss": 0.5})
    repo.push(url)
    history = reachable.models["me/model"].commits
    assert len(history) == 3
    assert set(history[1][1]) == {"README.md", ".gitattributes", "coral/format"}
    assert b"coral/packs/* filter=lfs" in history[1][1][".gitattributes"]
    ids += commit(repo, 4)
    repo.push(url)
    assert len(history) == 4
    assert under_coral(reachable) == {"format", "packs", "notes", "refs"}  # intents never leave the process
    assert reachable.files("me/model")["README.md"] == b"# Mine\n"


def test_a_second_push_asks_little_and_commits_nothing(reachable: Hub, url: str, repo: Repository) -> None:
    repo.add_remote("hub", url)
    commit(repo, 1, 2)
    repo.push("hub")
    before, calls = reachable.received + reachable.answered, len(reachable.calls)
    assert repo.push("hub").up_to_date
    assert len(reachable.models["me/model"].commits) == 3
    assert len(reachable.calls) - calls == 3
    assert reachable.received + reachable.answered - before < 2000


def test_the_newest_weights_are_there_for_everybody(reachable: Hub, url: str, repo: Repository) -> None:
    for step in (1, 2):
        commit(repo, step)
        repo.push(url)
        assert {name: value.tobytes() for name, value in plain(reachable).items()} == {
            name: value.tobytes() for name, value in weights(step).items()
        }
    repo.branch("experiment")
    commit(repo, 3, branch="experiment")
    repo.push(url, "experiment")  # HEAD over there is on main
    assert plain(reachable)["layer.0"].tobytes() == weights(2)["layer.0"].tobytes()


def test_of_a_repository_without_main_the_first_branch_is_shown(reachable: Hub, url: str, repo: Repository) -> None:
    for step in (1, 2):
        commit(repo, step, branch="experiment")
        repo.push(url, "experiment")
        assert plain(reachable)["layer.1"].tobytes() == weights(step)["layer.1"].tobytes()
    commit(repo, 3, branch="another")
    repo.push(url, "another")
    assert plain(reachable)["layer.1"].tobytes() == weights(2)["layer.1"].tobytes()


def test_files_of_weights_that_are_stale_go(
    reachable: Hub, url: str, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_showing, "_SHARD", 1_000_000)
    commit(repo, 1)
    repo.push(url)
    files = reachable.files("me/model")
    assert "model.safetensors.index.json" in files
    assert "model-00001-of-00004.safetensors" in files
    monkeypatch.setattr(_showing, "_SHARD", 5_000_000_000)
    commit(repo, 2)
    repo.push(url)
    assert {path for path in reachable.files("me/model") if path.startswith("model")} == {"model.safetensors"}


def test_what_the_commit_has_for_from_pretrained_goes_along(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path
) -> None:
    """Of tied weights the file has one, and the config says the rest; opened by another process, by name alone."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    parts = {"model": model, "args": TrainingArguments(str(tmp_path), report_to=[]), "state": TrainerState()}
    source = TrainerSource(CheckpointConfig(), {**parts, "control": TrainerControl()})
    snapshot = source.capture()
    repo.commit(snapshot.weights, "trained", state=snapshot.state)
    repo.push(url)
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(reachable.files("me/model"))
    assert "lm_head.weight" not in plain(reachable)
    code = (
        "import torch; from transformers import AutoModelForCausalLM\n"
        "model, info = AutoModelForCausalLM.from_pretrained('me/model', output_loading_info=True)\n"
        "assert not any(info.values()), info\n"
        "print(sum(p.double().sum().item() for p in model.parameters()))"
    )
    environment = {**os.environ, "HF_ENDPOINT": reachable.url, "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("HF_HOME", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == sum(p.double().sum().item() for p in model.parameters())


def test_of_an_adapter_in_a_model_the_adapter_is_shown(reachable: Hub, url: str, repo: Repository) -> None:
    content = WeightTensor(np.frombuffer(b"{}", np.uint8))
    state = {"injected": {"base_model.model.a.lora_A.weight": "a"}, "files": {"adapter_config.json": content}}
    repo.commit({"a": np.ones(2, np.float32), "base": np.zeros(3, np.float32)}, "one", state=state)
    repo.push(url)
    files = {name for name in reachable.files("me/model") if "/" not in name}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files
    assert [*plain(reachable, "adapter_model.safetensors")] == ["base_model.model.a.lora_A.weight"]


def test_a_file_that_leads_elsewhere_is_not_put(reachable: Hub, url: str, repo: Repository) -> None:
    files = {name: WeightTensor(np.frombuffer(b"x", np.uint8)) for name in ("../x", "coral/format", ".gitattributes")}
    repo.commit(weights(1), "one", state={"files": {**files, "vocab.txt": files["../x"]}})
    repo.push(url)
    assert reachable.files("me/model")["vocab.txt"] == b"x"
    assert b"x" not in [data for name, data in reachable.files("me/model").items() if name != "vocab.txt"]
    assert Repository.clone(url, repo.path.parent / "clone", durability="fast").fsck().ok


@pytest.mark.parametrize(("name", "dtype"), [("x", "complex32"), ("__metadata__", "uint32")])
def test_weights_that_the_format_cannot_hold_are_pushed_and_not_shown(
    reachable: Hub, url: str, repo: Repository, caplog: pytest.LogCaptureFixture, name: str, dtype: str
) -> None:
    repo.commit({name: WeightTensor(np.zeros(3, np.uint32), dtype)}, "odd")
    repo.push(url)
    assert "are not shown" in caplog.text
    assert "model.safetensors" not in reachable.files("me/model")
    assert Repository.clone(url, repo.path.parent / "clone", durability="fast").load()[name].dtype == dtype


def test_the_hubs_client_fetches_the_newest_weights_by_their_sidecar(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path
) -> None:
    client = CoralHubClient(tmp_path / "cache", endpoint=reachable.url)
    commit(repo, 1)
    repo.push(url)
    client.download_model("me/model")
    repo.commit(weights(1) | {"layer.2": weights(2)["layer.2"]}, "one more")
    repo.push(url)
    found = client.download_model("me/model")
    assert found["layer.2"].data.tobytes() == weights(2)["layer.2"].tobytes()
    assert client.last_download_stats.downloaded_full == 1


# Others


def test_of_two_who_push_one_wins_and_the_other_after_a_pull(url: str, repo: Repository, tmp_path: Path) -> None:
    first = commit(repo, 1)
    repo.add_remote("origin", url)
    repo.push()
    second = Repository.clone(url, tmp_path / "second", durability="fast")
    theirs, ours = commit(second, 2), commit(repo, 3)
    second.push()
    with pytest.raises(Diverged, match="somebody else has pushed"):
        repo.push()
    repo.pull(merge="ours")
    repo.push()
    second.pull()
    assert {found.id for found in second.log()} >= {*first, *theirs, *ours}
    assert second.fsck().ok
    assert second.load()["layer.0"].data.tobytes() == weights(3)["layer.0"].tobytes()


def test_two_who_push_at_the_same_moment(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second commits between the look of the first and its commit."""
    commit(repo, 1)
    repo.push(url)
    second = Repository.clone(url, tmp_path / "second", durability="fast")
    theirs = commit(second, 2)
    commit(repo, 3)
    before_commit(monkeypatch, second.push)
    with pytest.raises(Diverged):
        repo.push(url)
    assert Repository.clone(url, tmp_path / "third", durability="fast").resolve("main") == theirs[0]
    assert plain(reachable)["layer.0"].tobytes() == weights(2)["layer.0"].tobytes()


def test_two_who_make_a_repository_at_the_same_moment(
    url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first would have put is there already, so huggingface_hub makes no commit, and says that all is well."""
    commit(repo, 1)
    second = Repository(tmp_path / "second", init=True, durability="fast")
    theirs = commit(second, 2)
    before_commit(monkeypatch, lambda: second.push(url))
    with pytest.raises(Diverged):
        repo.push(url)
    assert Repository.clone(url, tmp_path / "third", durability="fast").resolve("main") == theirs[0]


def test_a_pack_that_takes_the_place_of_one_that_is_deleted(reachable: Hub, url: str) -> None:
    name, remote = "packs/" + "ab" * 32 + ".pack", open_remote(url)
    remote.put(name, memoryview(b"torn"))
    remote.flush()
    remote.delete(name)
    assert remote.put(name, memoryview(b"whole")) is True
    remote.flush()
    assert open_remote(url).read(name, 0, 10) == b"whole"


def test_packs_are_uploaded_when_they_are_put_and_shown_when_they_are_committed(reachable: Hub, url: str) -> None:
    name, remote = "packs/" + "ab" * 32 + ".pack", open_remote(url)
    data = bytes(2 << 20)
    remote.put(name, memoryview(data))
    assert list(reachable.large.values()) == [data]
    assert list(open_remote(url).list("packs/")) == []
    remote.flush()
    assert [file.size for file in open_remote(url).list("packs/")] == [len(data)]


def test_what_others_commit_meanwhile_stays(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = commit(repo, 1)
    repo.push(url)
    ids += commit(repo, 2)

    def edit() -> None:
        files = {**reachable.files("me/model"), "README.md": b"# Better\n", "model.safetensors.index.json": b"{}"}
        del files["coral.json"]
        reachable.add("me/model", files)

    before_commit(monkeypatch, edit)
    repo.push(url)
    files = reachable.files("me/model")
    assert files["README.md"] == b"# Better\n"
    assert "coral.json" in files
    assert "model.safetensors.index.json" not in files
    assert Repository.clone(url, tmp_path / "clone", durability="fast").resolve("main") == ids[1]


@pytest.mark.parametrize(
    ("pattern", "size", "left_out"),
    [
        ("*.pack", 3, "coral/packs/"),  # which goes along with the commit
        ("*.pack", 500_000, "coral/packs/"),  # which is uploaded before it
        ("coral/notes/", 3, "coral/notes/"),
        ("*.safetensors", 500_000, "model.safetensors"),
    ],
)
def test_a_gitignore_that_leaves_a_file_out_stops_the_push(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, pattern: str, size: int, left_out: str
) -> None:
    first = commit(repo, 1)
    repo.push(url)
    before = reachable.files("me/model")
    reachable.add("me/model", {**before, ".gitignore": f"# what is made\n\n{pattern}\n".encode()})
    second = repo.commit({"x": np.random.default_rng(1).standard_normal(size)}, "two")
    repo.annotate(second, metrics={"loss": 0.5})
    history = reachable.models["me/model"].commits
    there = len(history)
    with pytest.raises(RemoteError, match=rf"{left_out}\S* cannot be put on me/model: the \.gitignore"):
        repo.push(url)
    assert len(history) == there
    assert Repository.clone(url, tmp_path / "clone", durability="fast").resolve("main") == first[0]
    reachable.add("me/model", before)
    repo.push(url)
    found = Repository.clone(url, tmp_path / "again", durability="fast")
    assert found.resolve("main") == second
    assert found.fsck().ok


def test_nothing_is_built_on_a_pack_that_is_collected_meanwhile(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = commit(repo, 1)
    repo.push(url)
    second = Repository.clone(url, tmp_path / "second", durability="fast")
    ids += commit(repo, 2)

    def prune() -> None:
        commit(second, 5)
        second.prune(ids[0])
        assert second.push(url, prune=True).bytes_freed

    before_commit(monkeypatch, prune)
    with pytest.raises(RemoteError, match="collected garbage"):
        repo.push(url)
    assert Repository.clone(url, tmp_path / "third", durability="fast").fsck().ok
    repo.pull(url, merge="ours")
    repo.push(url)
    found = Repository.clone(url, tmp_path / "fourth", durability="fast")
    assert found.fsck().ok
    assert found.load()["layer.0"].data.tobytes() == weights(2)["layer.0"].tobytes()


def test_what_is_pruned_here_is_pruned_there_when_asked(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = commit(repo, 1, 2, 3)
    repo.push(url)
    repo.prune(ids[1])
    packs = [path for path in reachable.files("me/model") if path.startswith("coral/packs/")]
    assert not repo.push(url).bytes_freed
    before = len(reachable.models["me/model"].commits)
    edits = []

    def edit() -> None:  # while packs are about to be deleted
        edits.append(reachable.add("me/model", {**reachable.files("me/model"), "README.md": b"# Better\n"}))

    before_commit(monkeypatch, edit, at=2)
    assert repo.push(url, prune=True).bytes_freed > 100_000
    assert edits
    assert len(reachable.models["me/model"].commits) == before + 3  # the note, the edit, the collection
    assert packs != [path for path in reachable.files("me/model") if path.startswith("coral/packs/")]
    assert under_coral(reachable) == {"format", "packs", "notes", "refs"}
    found = Repository.clone(url, tmp_path / "clone", durability="fast")
    assert found.fsck().ok
    with pytest.raises(CommitPruned):
        found.load(ids[1])
    for id, step in ((ids[0], 1), (ids[2], 3)):
        assert found.load(id)["layer.3"].data.tobytes() == weights(step)["layer.3"].tobytes()


def test_what_others_need_by_now_is_not_collected(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = commit(repo, 1, 2, 3)
    repo.push(url)
    second = Repository.clone(url, tmp_path / "second", durability="fast")
    repo.prune(ids[1])
    theirs = commit(second, 2)

    def push() -> None:  # of the weights that are about to be deleted nothing is sent, for they are there
        assert second.push(url).bytes_sent < 10_000

    before_commit(monkeypatch, push, at=2)
    repo.push(url, prune=True)
    found = Repository.clone(url, tmp_path / "clone", durability="fast")
    assert found.fsck().ok
    assert found.load(theirs[0])["layer.3"].data.tobytes() == weights(2)["layer.3"].tobytes()


def test_a_packs_bytes_are_not_sent_again_after_a_cut(reachable: Hub, url: str, repo: Repository) -> None:
    commit(repo, 1, 2, 3)
    reachable.refuse = lambda path: 403 if path.endswith("/commit/main") and reachable.large else None
    with pytest.raises(RemoteDenied):
        repo.push(url)
    sent, reachable.received = reachable.received, 0
    assert sent > 2_400_000
    reachable.refuse = lambda path: None
    repo.push(url)
    assert reachable.received < 40_000


# Errors


@pytest.mark.parametrize("text", ["hf://model", "hf://me/model/folder", "hf://me//model"])
def test_a_url_that_names_no_repository_is_refused(reachable: Hub, repo: Repository, text: str) -> None:
    commit(repo, 1)
    with pytest.raises((ConfigError, UnsafeInput), match="hf://"):
        repo.add_remote("hub", text)
    assert not reachable.calls


def test_credentials_in_a_url_are_refused(reachable: Hub, repo: Repository) -> None:
    with pytest.raises(UnsafeInput, match="credentials"):
        repo.add_remote("hub", f"hf://{TOKEN}@me/model")
    assert not reachable.calls


@pytest.mark.parametrize(
    ("prepare", "kind", "words"),
    [
        (lambda hub: hub.models.clear(), RemoteNotFound, "hf repos create"),
        (lambda hub: setattr(hub, "api_status", 401), RemoteDenied, "token"),
        (lambda hub: setattr(hub, "api_status", 429), RemoteUnreachable, "limits the rate"),
        (lambda hub: setattr(hub, "api_status", 500), RemoteUnreachable, "status 500"),
        (lambda hub: hub.stop(), RemoteUnreachable, "cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_one_clear_error(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, prepare: Any, kind: Any, words: str
) -> None:
    commit(repo, 1)
    prepare(reachable)
    for use in (lambda: repo.push(url), lambda: Repository.clone(url, tmp_path / "clone")):
        with pytest.raises(kind, match=words) as raised:
            use()
        assert raised.value.__cause__ is None  # a traceback would show it
        assert raised.value.remote == "hf://me/model"
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "clone").exists()


def test_an_answer_that_cannot_be_read_is_asked_for_again(reachable: Hub, url: str, repo: Repository) -> None:
    commit(repo, 1)
    garbage = [b"{", b"{", b"<html>"]
    reachable.refuse = lambda path: garbage.pop() if "/tree/" in path and garbage else None
    repo.push(url)
    assert not garbage
    reachable.refuse = lambda path: b"{" if "/tree/" in path else None
    commit(repo, 2)
    with pytest.raises(RemoteUnreachable, match="cannot be read"):
        repo.push(url)


def test_what_the_hub_refuses_to_store_is_one_clear_error(reachable: Hub, url: str, repo: Repository) -> None:
    commit(repo, 1)
    full = b'{"objects": [{"oid": "x", "size": 1, "error": {"code": 403, "message": "the quota is used up"}}]}'
    reachable.refuse = lambda path: full if path.endswith("/objects/batch") else None
    with pytest.raises(RemoteError, match="uploading"):
        repo.push(url)


def test_a_repository_without_coral_in_it_is_named(url: str, repo: Repository) -> None:
    with pytest.raises(NotARepository, match="hf://me/model"):
        repo.fetch(url)


def test_the_token_goes_to_the_hub_and_into_no_file(
    reachable: Hub, url: str, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    reachable.models["me/model"].private = True
    repo.add_remote("hub", url)
    commit(repo, 1)
    repo.push("hub")
    Repository.clone(url, tmp_path / "clone", durability="fast")
    assert f"Bearer {TOKEN}" in reachable.tokens
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += reachable.files("me/model").values()
    assert len(written) > 10
    assert not [data for data in written if TOKEN.encode() in data]


def before_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, at: int = 1) -> None:
    """Have somebody act just before the Hub is given a commit, the so-manieth; once."""
    real, left = HubRepository.commit, [at]

    def late(self: HubRepository, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            act()
        return real(self, *arguments, **options)

    monkeypatch.setattr(HubRepository, "commit", late)
