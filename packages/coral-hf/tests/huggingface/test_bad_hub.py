"""What the Hub, and what is on it, does wrong: one clear error, nothing let in, and no token anywhere."""

from __future__ import annotations

import errno
import json
import os
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from loopback_hub import Hub

from coral import Repository, WeightTensor
from coral._digest import tensor_id
from coral.errors import (
    ConfigError,
    CoralError,
    CorruptObject,
    DiskFull,
    EmptyCommit,
    RemoteDenied,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
    UnsafeInput,
    UnsupportedValue,
)
from coral.integrations.huggingface import CoralHubClient, _client, _transfer, _upload
from coral.store import _pack

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

Model = dict[str, WeightTensor]
TOKEN = "hf_" + "Secret" * 6


def plain(model: Model) -> bytes:
    return safetensors.numpy.save({name: tensor.data for name, tensor in model.items()})


def equal(a: Any, b: Model) -> bool:
    return sorted(a) == sorted(b) and all(np.array_equal(a[name].data, b[name].data) for name in b)


def empty(client: CoralHubClient) -> bool:
    return Repository(client._cache.repo.path).branches() == {} and not list(client._cache.incoming.iterdir())


@pytest.mark.parametrize(
    ("prepare", "kind", "words"),
    [
        (lambda hub: setattr(hub.models["a/b"], "gated", True), RemoteDenied, "gated"),
        (lambda hub: hub.models.clear(), RemoteNotFound, "no repository a/b"),
        (lambda hub: setattr(hub, "api_status", 429), RemoteUnreachable, "limits the rate"),
        (lambda hub: setattr(hub, "api_status", 503), RemoteUnreachable, "status 503"),
        (lambda hub: setattr(hub, "api_status", 403), RemoteDenied, "403"),
        (lambda hub: setattr(hub, "fault", lambda path: 429), RemoteUnreachable, "limits the rate"),
        (lambda hub: setattr(hub, "fault", lambda path: 500), RemoteUnreachable, "status 500"),
        (lambda hub: hub.stop(), RemoteUnreachable, "cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_one_clear_error(
    hub: Hub, tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture, prepare: Any, kind: Any, words: str
) -> None:
    client = CoralHubClient(tmp_path / "cache", TOKEN, endpoint=hub.url)
    hub.add("a/b", {"model.safetensors": plain(model)})
    prepare(hub)
    with pytest.raises(kind, match=words) as raised:
        client.download_model("a/b")
    assert raised.value.__cause__ is None  # a traceback would show it
    assert raised.value.__suppress_context__
    assert raised.value.remote == "hf://a/b"
    assert "\n" not in str(raised.value)
    said = [*traceback.format_exception(raised.value), repr(client), caplog.text]
    assert not any(TOKEN in text for text in said)
    assert empty(client)


def test_a_revision_that_is_not_there_is_named(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    with pytest.raises(RemoteNotFound, match="revision"):
        client.download_model("a/b", revision="v7")


def test_an_id_that_cannot_be_one_is_refused(client: Any) -> None:
    with pytest.raises(UnsafeInput):
        client.download_model("../../etc")


def test_the_token_goes_to_the_hub_and_into_no_file(hub: Hub, tmp_path: Path, model: Model) -> None:
    client = CoralHubClient(tmp_path / "cache", TOKEN, endpoint=hub.url)
    client.upload_model(model, "me/secret", private=True)
    assert hub.models["me/secret"].private
    client.download_model("me/secret")
    assert hub.tokens == {f"Bearer {TOKEN}"} or hub.tokens == {
        f"Bearer {TOKEN}",
        None,
    }  # uploads have links of their own
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_what_surrounds_a_token_is_no_part_of_it(hub: Hub, tmp_path: Path, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    CoralHubClient(tmp_path / "cache", f" {TOKEN}\r\n", endpoint=hub.url).download_model("a/b")
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "token", [f"{TOKEN}\n{TOKEN}", f"my {TOKEN}", f"{TOKEN}\u200b", f"\ufeff{TOKEN}", f"\0{TOKEN}"]
)
def test_what_cannot_be_a_token_is_refused_and_not_repeated(token: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token") as raised:
        CoralHubClient(tmp_path / "cache", token)
    assert not any(TOKEN in text for text in traceback.format_exception(raised.value))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("token", [TOKEN + "\n", TOKEN + "\u200b"])
def test_a_token_that_cannot_be_sent_is_in_no_traceback(hub: Hub, client: Any, token: str) -> None:
    """One that huggingface_hub would send, from wherever it has it."""
    client._api.token = token
    with pytest.raises(RemoteError) as raised:
        client.download_model("a/b")
    assert not any(TOKEN in text for text in traceback.format_exception(raised.value))


def test_a_private_repository_is_not_there_without_a_token(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    hub.models["a/b"].private = True
    with pytest.raises(RemoteNotFound, match="private"):
        client.download_model("a/b")


def test_pickled_weights_are_refused(hub: Hub, client: Any) -> None:
    hub.add("a/b", {"pytorch_model.bin": b"cos\nsystem", "config.json": b"{}"})
    with pytest.raises(UnsupportedValue, match=r"pytorch_model\.bin alone"):
        client.download_model("a/b")
    assert hub.sent == 0


def test_a_repository_without_weights_says_so(hub: Hub, client: Any) -> None:
    hub.add("a/b", {"config.json": b"{}"})
    with pytest.raises(UnsupportedValue, match="no weights"):
        client.download_model("a/b")


def test_a_missing_shard_is_named(hub: Hub, client: Any, model: Model) -> None:
    hub.add("a/b", {"model-00001-of-00002.safetensors": plain(model)})
    with pytest.raises(UnsafeInput, match="1 of the 2 files"):
        client.download_model("a/b")


def test_a_tensor_in_two_shards_is_refused(hub: Hub, client: Any, model: Model) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": plain(model) + b"" for i in (1, 2)}
    hub.add("a/b", shards)
    with pytest.raises(UnsafeInput, match="in another file"):
        client.download_model("a/b")
    assert empty(client)


def header(entries: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"123",
        header(one(), length=1 << 60),
        header(one(), length=500),
        header(b"[1, 2]"),
        header(b"{\xff"),
        header(b"[" * 100_000),
        header(b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "x": {}}'),
        header({"x": 3}),
        header(one(shape=[3])),
        header(one(shape=[-2])),
        header(one(shape=[2.0])),
        header(one(shape=[1 << 62, 1 << 62])),
        header(one(data_offsets=[-4, 4])),
        header(one(data_offsets=[8, 16])),
        header(one(data_offsets=[0, 80], shape=[20])),
        header(one(), data=bytes(9)),
        header({**one(), "y": one()["x"]}),
        header({"": one()["x"]}),
        header({"a\0b": one()["x"]}),
    ],
)
def test_a_safetensors_file_that_lies_is_refused(hub: Hub, client: Any, file: bytes) -> None:
    hub.add("a/b", {"model.safetensors": file})
    with pytest.raises(UnsafeInput):
        client.download_model("a/b")
    assert empty(client)


def test_an_unknown_dtype_is_named(hub: Hub, client: Any) -> None:
    hub.add("a/b", {"model.safetensors": header(one(dtype="F6_E2M3"))})
    with pytest.raises(UnsupportedValue, match="F6_E2M3"):
        client.download_model("a/b")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_what_numpy_has_no_type_for_comes_as_it_is(hub: Hub, client: Any, another: Any, dtype: str) -> None:
    carrier = np.uint16 if dtype == "bfloat16" else np.uint8
    bits = np.arange(65_536 if carrier is np.uint16 else 256).astype(carrier)
    model = {"bits": WeightTensor(bits, dtype), "scalar": WeightTensor(bits[:1].reshape(()), dtype)}
    client.upload_model(model, "me/bits")
    hub.add("plain/bits", {"model.safetensors": hub.files("me/bits")["model.safetensors"]})
    for repo_id in ("me/bits", "plain/bits"):
        found = another(repo_id.replace("/", "-")).download_model(repo_id)
        assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
            "bits": (dtype, bits.shape),
            "scalar": (dtype, ()),
        }
        assert equal(found, model)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"x": WeightTensor(np.zeros(3, np.uint32), "complex32")}, "complex32"),
        ({"x": np.ones(3), "__metadata__": np.ones(3)}, "no tensor of the name '__metadata__'"),
    ],
    ids=["dtype", "name"],
)
def test_what_the_format_lacks_is_refused_before_anything_is_sent(
    hub: Hub, client: Any, weights: Any, words: str
) -> None:
    with pytest.raises(UnsupportedValue, match=words):
        client.upload_model(weights, "me/x")
    assert len(hub.models["me/x"].commits) == 1
    assert hub.large == {}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["write_model", "TemporaryDirectory"])
def test_an_upload_for_which_there_is_no_room(
    hub: Hub, client: Any, model: Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_client, name, full)
    with pytest.raises(DiskFull, match="Free some space"):
        client.upload_model(model, "me/base")


def test_a_cache_for_which_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Repository(tmp_path, init=True)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskFull, match="incoming"):
        CoralHubClient(tmp_path)


def test_a_download_for_which_there_is_no_room(
    hub: Hub, client: Any, another: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.upload_model(model, "me/base")
    monkeypatch.setattr(_transfer.Transfer, "ranges", full)
    with pytest.raises(DiskFull, match="Free some space"):
        another("two").download_model("me/base")


@pytest.mark.parametrize(("options", "kind"), [({}, EmptyCommit), ({"max_shard_size": 0}, ConfigError)])
def test_an_upload_that_cannot_be_is_refused_at_once(hub: Hub, client: Any, options: Any, kind: Any) -> None:
    weights = {"x": np.zeros(3, np.float32)} if options else {}
    with pytest.raises(kind):
        client.upload_model(weights, "me/x", **options)
    assert hub.models == {}


def test_stats_before_a_download_are_an_error(client: Any) -> None:
    with pytest.raises(ConfigError, match="download_model first"):
        _ = client.last_download_stats


# Faults on the way


def at_first(fault: int | str, count: int = 1) -> Callable[[str], int | str | None]:
    left = [count]

    def ask(path: str) -> int | str | None:
        left[0] -= 1
        return fault if left[0] >= 0 else None

    return ask


@pytest.mark.parametrize("fault", [500, 429, "cut"])
def test_what_fails_is_asked_for_again(hub: Hub, client: Any, model: Model, fault: Any) -> None:
    hub.add("a/b", {"model.safetensors": plain(model)})
    hub.fault = at_first(fault, 2)
    assert equal(client.download_model("a/b"), model)
    assert (
        client.last_download_stats.bytes_downloaded == hub.sent == len(plain(model))
    )  # what came is not fetched again


def test_a_server_without_ranges_gives_the_whole_file(hub: Hub, client: Any, another: Any, model: Model) -> None:
    client.upload_model(model, "me/base")
    hub.fault = lambda path: "whole"
    other = another("two")
    assert equal(other.download_model("me/base"), model)
    assert other.last_download_stats.downloaded_full == 10


def test_wrong_bytes_are_not_let_in(hub: Hub, client: Any, another: Any, model: Model) -> None:
    client.upload_model(model, "me/base")
    hub.add("a/b", {"model.safetensors": plain(model)})
    other = another("two")
    hub.fault = lambda path: "wrong" if path.endswith(".safetensors") else None
    for repo_id in ("me/base", "a/b"):
        with pytest.raises(CorruptObject, match="Nothing of it is kept"):
            other.download_model(repo_id)
    assert empty(other)
    hub.fault = lambda path: None
    assert equal(other.download_model("a/b"), model)


@pytest.mark.parametrize("what", ["stale", "begin", "id", "garbage", "cut", "names"])
def test_a_sidecar_that_is_wrong_costs_bytes_and_nothing_else(
    hub: Hub, client: Any, another: Any, model: Model, what: str
) -> None:
    client.upload_model(model, "me/base")
    files = hub.files("me/base")
    content, changed = json.loads(files["coral.json"]), model
    match what:
        case "stale":  # somebody pushed other weights with git
            changed = model | {"layer.0": WeightTensor(model["layer.0"].data + np.float32(1))}
            files = {**files, "model.safetensors": plain(changed)}
        case "begin":
            content["tensors"]["layer.3"]["begin"] += 8
        case "id":
            content["tensors"]["layer.3"]["id"] = "0" * 64
        case "names":
            content["tensors"]["layer.3"]["begin"] = 1 << 40
        case "cut":
            del content["tensors"]["layer.3"]["shape"]
    data = b"\xff{" if what == "garbage" else json.dumps(content).encode()
    hub.add("me/base", {**files, "coral.json": data})
    assert equal(another("two").download_model("me/base"), changed)


def said_to_have(client: CoralHubClient, monkeypatch: pytest.MonkeyPatch, path: str, size: Any) -> None:
    """Have the Hub say of a file that it has this size."""
    real = client._api.model_info

    def lie(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        for sibling in found.siblings or ():
            if sibling.rfilename == path:
                sibling.size = size
        return found

    monkeypatch.setattr(client._api, "model_info", lie)


@pytest.mark.parametrize("size", [(16 << 20) + 1, 1 << 62])
def test_a_sidecar_that_is_too_long_is_not_fetched(
    hub: Hub, client: Any, another: Any, model: Model, size: int, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client.upload_model(model, "me/base")
    other = another("two")
    said_to_have(other, monkeypatch, "coral.json", size)
    hub.requests.clear()
    assert equal(other.download_model("me/base"), model)
    assert f"coral.json has {size} bytes" in caplog.text
    assert not any(path.endswith("coral.json") for _, path, _ in hub.requests)


@pytest.mark.parametrize("size", [-5, 1 << 63, 1.5, "5", True])
def test_a_size_that_cannot_be_is_refused(hub: Hub, client: Any, model: Model, monkeypatch: Any, size: Any) -> None:
    hub.add("a/b", {"model.safetensors": plain(model), "coral.json": b"{}"})
    said_to_have(client, monkeypatch, "coral.json", size)
    for use in (client.download_model, client.get_model_info):
        with pytest.raises(UnsafeInput, match=r"coral\.json"):
            use("a/b")
    assert empty(client)


def test_a_sidecar_that_would_not_be_read_is_not_written(
    hub: Hub, client: Any, another: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model of more than 250 GB."""
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(model, "me/tuned")
    monkeypatch.setattr(_upload, "LARGEST", 1000)
    client.upload_model(after, "me/tuned", base_model="me/base")
    assert sorted(hub.files("me/tuned")) == [".gitattributes", "README.md", "model.safetensors"]
    assert equal(another("two").download_model("me/tuned"), after)


def test_a_sidecar_is_about_its_own_files_alone(hub: Hub, client: Any, model: Model) -> None:
    """All that it names is here; but somebody has pushed other weights with git."""
    client.upload_model(model, "me/base")
    changed = model | {"layer.0": WeightTensor(model["layer.0"].data + np.float32(1))}
    hub.add("me/base", {**hub.files("me/base"), "model.safetensors": plain(changed)})
    assert equal(client.download_model("me/base"), changed)


def test_a_sidecar_that_gives_a_tensor_the_id_of_another_one_is_not_believed(
    hub: Hub, client: Any, another: Any, model: Model
) -> None:
    client.upload_model(model, "me/base")
    changed = model | {"layer.3": WeightTensor(model["layer.3"].data + np.float32(1))}
    another("two").upload_model(changed, "me/tuned")
    files = hub.files("me/tuned")
    content = json.loads(files["coral.json"])
    content["tensors"]["layer.3"]["id"] = content["tensors"]["layer.4"]["id"]  # which is here
    hub.add("me/tuned", {**files, "coral.json": json.dumps(content).encode()})
    assert equal(client.download_model("me/tuned"), changed)


def swap(content: Any) -> None:
    tensors = content["tensors"]
    for field in ("id", "digests"):
        tensors["layer.3"][field], tensors["layer.4"][field] = tensors["layer.4"][field], tensors["layer.3"][field]


def same_as_another(content: Any) -> None:
    tensors = content["tensors"]
    tensors["layer.3"] |= {field: tensors["layer.4"][field] for field in ("id", "digests")}


def rename(content: Any) -> None:
    content["tensors"]["another"] = content["tensors"].pop("layer.3")


def add(content: Any) -> None:
    content["tensors"]["another"] = dict(content["tensors"]["layer.3"])


def flatten(content: Any) -> None:
    for claimed in content["tensors"].values():
        blocks = bytes.fromhex(claimed["digests"])
        claimed |= {"shape": [100_000], "id": tensor_id(claimed["dtype"], [100_000], blocks)}


@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize(
    "lie",
    [swap, same_as_another, rename, add, flatten, lambda content: content["tensors"].pop("layer.3")],
    ids=["swap", "same", "rename", "add", "flatten", "omit"],
)
def test_of_what_is_here_a_sidecar_cannot_make_another_model(
    hub: Hub, client: Any, another: Any, model: Model, lie: Callable[[Any], object], with_delta: bool
) -> None:
    """All that it names is in the cache, or came with the delta pack, and is what its id says."""
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    files = hub.files("me/tuned")
    content = json.loads(files["coral.json"])
    lie(content)
    hub.add("me/tuned", {**files, "coral.json": json.dumps(content).encode(), "config.json": b"{}"})
    other = another("two")
    if with_delta:
        other.download_model("me/base")
    else:
        other.upload_model(after | {"more": model["layer.0"]}, "me/more")
    assert equal(other.download_model("me/tuned"), after)
    assert other.last_download_stats.downloaded_full == 10
    assert Repository(other._cache.repo.path).fsck().ok


def test_a_sidecar_cannot_put_other_weights_in_the_place_of_a_known_file(
    hub: Hub, client: Any, another: Any, model: Model
) -> None:
    """A copy of a well-known file, with a sidecar that names tensors of somebody's own for it."""
    evil = {name: WeightTensor(-tensor.data) for name, tensor in model.items()}
    hub.add("known/model", {"model.safetensors": plain(model)})
    another("theirs").upload_model(evil, "evil/own")
    another("their-copy").upload_model(dict(sorted(model.items())), "evil/model")
    own, copy = hub.files("evil/own"), hub.files("evil/model")
    hub.add("known/model", {"model.safetensors": copy["model.safetensors"]})
    content = json.loads(copy["coral.json"])
    for name, claimed in json.loads(own["coral.json"])["tensors"].items():
        content["tensors"][name] |= {field: claimed[field] for field in ("id", "digests")}
    hub.add("evil/model", {**copy, "coral.json": json.dumps(content).encode()})
    client.download_model("evil/own")
    assert equal(client.download_model("evil/model"), model)
    assert equal(client.download_model("known/model"), model)


def test_a_small_file_is_checked_by_its_git_id(hub: Hub, client: Any, model: Model) -> None:
    client.upload_model(model, "me/base")
    hub.fault = lambda path: "wrong" if path == "README.md" else None
    with pytest.raises(CorruptObject, match="git id"):
        client.upload_model(model, "me/base")


@pytest.mark.parametrize("place", [100, -100, 0.5])
def test_a_delta_pack_that_is_wrong_costs_bytes_and_nothing_else(
    hub: Hub, client: Any, another: Any, model: Model, place: float
) -> None:
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    pack = bytearray(hub.files("me/tuned")["coral-delta.pack"])
    pack[int(place * len(pack)) if place == 0.5 else int(place)] ^= 1
    hub.add("me/tuned", {**hub.files("me/tuned"), "coral-delta.pack": bytes(pack)})
    other = another("two")
    other.download_model("me/base")
    assert equal(other.download_model("me/tuned"), after)
    assert other.last_download_stats.downloaded_delta == 0
    assert Repository(other._cache.repo.path).fsck().ok


def test_a_delta_pack_of_a_newer_coral_costs_bytes_and_nothing_else(
    hub: Hub, client: Any, another: Any, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one that has a codec which is not known here."""
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    other = another("two")
    other.download_model("me/base")
    monkeypatch.setattr(_pack, "_CODECS", _pack._CODECS - _pack._WITH_BASE)
    assert equal(other.download_model("me/tuned"), after)
    assert other.last_download_stats.downloaded_full == 10
    assert "is not known to this coral" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda hub: hub.models.pop("me/base"), "no repository me/base"),
        (lambda hub: setattr(hub.models["me/base"], "gated", True), "gated"),
        (lambda hub: hub.models["me/base"].commits.clear() or hub.add("me/base", {"a": b""}), "no such revision"),
        (lambda hub: hub.models["me/base"].commits[-1][1].pop("model.safetensors"), "no weights"),
        (lambda hub: hub.files("me/base").update({"model.safetensors": b"123"}), "no sound safetensors file"),
    ],
    ids=["deleted", "gated", "squashed", "emptied", "unsound"],
)
def test_a_base_that_cannot_be_had_costs_bytes_and_nothing_else(
    hub: Hub,
    client: Any,
    another: Any,
    model: Model,
    caplog: pytest.LogCaptureFixture,
    prepare: Callable[[Hub], object],
    why: str,
) -> None:
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    prepare(hub)
    other = another("two")
    assert equal(other.download_model("me/tuned", base_model="me/base"), after)
    assert other.last_download_stats.downloaded_full == 10
    assert "me/tuned is fetched without its base me/base: " in caplog.text
    assert why in caplog.text


def test_of_a_base_that_is_not_the_models_the_user_is_told(
    hub: Hub, client: Any, another: Any, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    assert equal(another("two").download_model("me/tuned", base_model="me/bsae"), after)
    assert "me/tuned was made from me/base, not from me/bsae" in caplog.text


def test_what_a_stranger_wrote_is_escaped_in_the_log(
    hub: Hub, client: Any, another: Any, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    after = {name: WeightTensor(tensor.data * np.float32(1.0001)) for name, tensor in model.items()}
    client.upload_model(model, "me/base")
    client.upload_model(after, "me/tuned", base_model="me/base")
    content = json.loads(hub.files("me/tuned")["coral.json"])
    content["delta"]["base_model"] = "\x1b[2J\u202e\nroot: all is well" + "x" * 1000
    files = {**hub.files("me/tuned"), "coral.json": json.dumps(content).encode()}
    hub.add("me/tuned", files)
    for number, named in enumerate(("me/base", None)):
        assert equal(another(f"its base {number}").download_model("me/tuned", base_model=named), after)
    renamed = json.dumps(content).replace("model.safetensors", "\\u001b[2J.safetensors").encode()
    hub.add("me/odd", {"\x1b[2J.safetensors": files["model.safetensors"], "coral.json": renamed})
    faults = ["cut"]
    hub.fault = lambda path: (faults.pop() if faults else "whole") if ".safetensors" in path else None
    assert equal(another("its file").download_model("me/odd"), after)
    assert caplog.text.count("\\x1b[2J\\u202e\\nroot: all") == 3
    for what in ("was cut off", "is fetched whole"):
        assert f"\\x1b[2J.safetensors of me/odd {what}" in caplog.text
    said = [record.getMessage() for record in caplog.records if record.name == "coral"]
    assert all(text.isprintable() and len(text) < 500 for text in said)


@pytest.mark.parametrize("pattern", ["*.safetensors", "coral.json", "README.md"])
def test_a_gitignore_that_leaves_a_file_out_stops_the_upload(hub: Hub, client: Any, model: Model, pattern: str) -> None:
    hub.add("me/model", {".gitignore": pattern.encode()})
    with pytest.raises(RemoteError, match=r"cannot be put on me/model: the \.gitignore"):
        client.upload_model(model, "me/model")
    assert len(hub.models["me/model"].commits) == 1
    assert empty(client)


def test_of_two_uploads_at_once_one_is_told(hub: Hub, client: Any, model: Model, monkeypatch: Any) -> None:
    client.upload_model(model, "me/base")
    real = client._api.create_commit

    def late(*arguments: Any, **options: Any) -> Any:
        hub.add("me/base", {**hub.files("me/base"), "config.json": b"{}"})
        return real(*arguments, **options)

    monkeypatch.setattr(client._api, "create_commit", late)
    with pytest.raises(RemoteError, match="412"):
        client.upload_model({"x": np.ones(3, np.float32)}, "me/base")
    assert hub.files("me/base")["config.json"] == b"{}"
    assert "layer.0" in safetensors.numpy.load(hub.files("me/base")["model.safetensors"])


def test_every_error_is_corals(hub: Hub, client: Any, model: Model) -> None:
    hub.api_status = 418
    with pytest.raises(CoralError, match="418"):
        client.get_model_info("a/b")
