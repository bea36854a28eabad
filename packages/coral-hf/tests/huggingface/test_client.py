"""Downloads and uploads: what they bring, and how many bytes that takes as the server counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from loopback_hub import Hub

from coral import Repository, WeightTensor
from coral.integrations.huggingface import CoralHubClient

# of huggingface_hub's own uploads
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

Model = dict[str, WeightTensor]
Another = Callable[[str], CoralHubClient]


def same(a: Mapping[str, WeightTensor], b: Mapping[str, WeightTensor]) -> bool:
    return sorted(a) == sorted(b) and all(
        (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
        and a[name].bytes().tobytes() == b[name].bytes().tobytes()
        for name in a
    )


def tuned(model: Model, *names: str, by: float = 1e-5) -> Model:
    """The model with some tensors a little different, in all of their elements."""
    rng = np.random.default_rng(1)
    return model | {
        name: WeightTensor(model[name].data + rng.standard_normal(model[name].shape, np.float32) * np.float32(by))
        for name in names
    }


def plain(model: Model) -> bytes:
    return safetensors.numpy.save({name: tensor.data for name, tensor in model.items()})


def size(hub: Hub, repo_id: str) -> int:
    return sum(len(data) for path, data in hub.files(repo_id).items() if path.endswith(".safetensors"))


def test_what_others_uploaded_is_downloaded_whole_and_bit_for_bit(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model), "config.json": b"{}"})
    assert same(client.download_model("a/b"), model)
    stats = client.last_download_stats
    assert (stats.total_weights, stats.downloaded_full, stats.downloaded_delta) == (10, 10, 0)
    assert stats.bytes_downloaded == hub.sent == size(hub, "a/b")
    assert (stats.bytes_saved, stats.savings_percent) == (0, 0.0)


def test_a_second_download_fetches_nothing(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    client.download_model("a/b")
    hub.sent = 0
    assert same(client.download_model("a/b"), model)
    assert (hub.sent, client.last_download_stats.bytes_downloaded) == (0, 0)
    assert client.last_download_stats.savings_percent == 100.0


def test_an_equal_file_of_another_repository_is_not_fetched(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    hub.add("c/d", {"model.safetensors": plain(model)})
    client.download_model("a/b")
    hub.sent = 0
    assert same(client.download_model("c/d"), model)
    assert hub.sent == 0


def test_what_is_uploaded_opens_anywhere_and_comes_back(hub: Hub, client: Any, another: Another, model: Model) -> None:
    assert client.upload_model(model, "me/base") == f"{hub.url}/me/base"
    opened = safetensors.numpy.load(hub.files("me/base")["model.safetensors"])
    assert same({name: WeightTensor(data) for name, data in opened.items()}, model)
    assert same(another("two").download_model("me/base"), model)
    hub.sent = 0
    assert same(client.download_model("me/base"), model)  # it was here
    assert hub.sent == 0


def test_equal_tensors_are_not_fetched_again(hub: Hub, client: Any, another: Another, model: Model) -> None:
    client.upload_model(model, "me/base")
    client.upload_model(changed := tuned(model, "layer.3", by=1.0), "me/tuned")
    other = another("two")
    other.download_model("me/base")
    hub.sent = 0
    assert same(other.download_model("me/tuned"), changed)
    stats = other.last_download_stats
    assert (stats.total_weights, stats.downloaded_full, stats.downloaded_delta) == (10, 1, 0)
    assert stats.bytes_downloaded == hub.sent < 0.11 * size(hub, "me/tuned")
    assert stats.bytes_saved == size(hub, "me/tuned") - hub.sent


def test_a_delta_pack_serves_who_has_its_base(hub: Hub, client: Any, another: Another, model: Model) -> None:
    half = {name: WeightTensor(as_bfloat16(tensor.data), "bfloat16") for name, tensor in model.items()}
    after = {name: WeightTensor(as_bfloat16(t.data), "bfloat16") for name, t in tuned(model, *model).items()}
    client.upload_model(half, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    assert client.get_model_info("me/tuned").base_model == "me/base"
    other = another("two")
    other.download_model("me/base")
    hub.sent = 0
    assert same(other.download_model("me/tuned"), after)
    stats = other.last_download_stats
    assert (stats.downloaded_full, stats.downloaded_delta) == (0, 10)
    assert stats.bytes_downloaded == hub.sent < 0.15 * size(hub, "me/tuned")
    space = Repository(Path(other._cache.repo.path)).stats()
    assert space.stored_bytes < 1.2 * size(hub, "me/base")  # the two share what they have in common
    assert Repository(other._cache.repo.path).fsck().ok


def test_a_base_that_is_named_is_fetched_for_its_delta_pack(
    hub: Hub, client: Any, another: Another, model: Model
) -> None:
    client.upload_model(model, "me/base")
    client.upload_model(after := tuned(model, *model), "me/tuned", base_model="me/base")
    unasked, asked = another("two"), another("three")
    hub.sent = 0
    assert same(unasked.download_model("me/tuned"), after)
    assert unasked.last_download_stats.downloaded_full == 10
    assert unasked.last_download_stats.bytes_downloaded == hub.sent
    hub.sent = 0
    assert same(asked.download_model("me/tuned", base_model="me/base"), after)
    assert asked.last_download_stats.downloaded_delta == 10
    assert asked.last_download_stats.bytes_downloaded == hub.sent
    assert same(asked.download_model("me/base"), model)


def as_bfloat16(data: np.ndarray) -> np.ndarray:
    return (data.view(np.uint32) >> 16).astype(np.uint16)


def test_shards_are_written_and_read(hub: Hub, client: Any, another: Another, model: Model) -> None:
    client.upload_model(model, "me/large", max_shard_size=1_000_000)
    files = client.get_model_info("me/large").weight_files
    assert files == tuple(f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6))
    assert same(another("two").download_model("me/large"), model)
    client.upload_model(model, "me/large")  # and what it was split into is gone
    assert [path for path in hub.files("me/large") if "safetensors" in path] == ["model.safetensors"]


def test_the_card_that_is_there_stays(hub: Hub, client: Any, model: Model) -> None:
    client.upload_model(model, "me/base")
    hub.add("me/tuned", {"README.md": b"---\nlicense: mit\n---\n\n# Mine\n", "config.json": b"{}"})
    client.upload_model(model, "me/tuned", base_model="me/base")
    card = hub.files("me/tuned")["README.md"].decode()
    assert "license: mit" in card
    assert "base_model: me/base" in card
    assert "# Mine" in card
    assert hub.files("me/tuned")["config.json"] == b"{}"


def test_without_a_network_the_cache_serves(
    hub: Hub, client: Any, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    revision = hub.add("a/b", {"model.safetensors": plain(model)})
    client.download_model("a/b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(client.download_model("a/b"), model)
    assert same(client.download_model("a/b", revision="main"), model)
    assert same(client.download_model("a/b", revision=revision), model)
    assert "from the cache" in caplog.text


def test_without_a_network_a_name_is_the_revision_that_it_was_last(
    hub: Hub, client: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else the revision was downloaded as before."""
    other = tuned(model, "layer.0", by=1.0)
    first = hub.add("a/b", {"model.safetensors": plain(model)})
    hub.models["a/b"].tags["v1"] = first

    def offline(revision: str | None) -> Mapping[str, WeightTensor]:
        with monkeypatch.context() as patched:
            patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            found: Mapping[str, WeightTensor] = client.download_model("a/b", revision=revision)
        return found

    client.download_model("a/b", revision="v1")
    hub.sent = 0
    client.download_model("a/b")  # the same revision
    assert same(offline(None), model)
    assert same(offline("v1"), model)
    second = hub.add("a/b", {"model.safetensors": plain(other)})
    assert same(client.download_model("a/b", revision=second), other)
    assert same(offline("main"), model)  # nobody here knows that it has moved
    hub.sent = 0
    client.download_model("a/b")
    assert hub.sent == 0
    assert same(offline("main"), other)
    hub.models["a/b"].commits.reverse()  # it is moved back
    assert same(client.download_model("a/b", revision="main"), model)
    assert same(offline("main"), model)
    assert same(offline(second), other)


def test_what_is_here_is_recorded_once_for_a_name(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    for _ in range(3):
        client.download_model("a/b")
    assert len(list(client._cache.repo.log("models/a--b"))) == 1


def test_models_are_compared(hub: Hub, client: Any, model: Model) -> None:
    other = tuned(tuned(model, "layer.0"), "layer.1", by=1.0) | {"head": WeightTensor(np.ones(3, np.float32))}
    del other["layer.2"]
    hub.add("a/b", {"model.safetensors": plain(model)})
    hub.add("c/d", {"model.safetensors": plain(other)})
    found = client.compare_models("a/b", "c/d")
    counted = [found[f"{kind}_weights"] for kind in ("identical", "similar", "different", "common")]
    assert counted == [7, 1, 1, 9]
    assert (found["total_weights_a"], found["total_weights_b"]) == (10, 10)
    assert (found["only_in_a"], found["only_in_b"]) == (["layer.2"], ["head"])
    assert found["weight_similarities"]["layer.0"] > 0.99 > found["weight_similarities"]["layer.1"]
    assert 77 < found["potential_savings_percent"] < 89
