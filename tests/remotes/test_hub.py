"""Every request of a push, a pull, an upload and a download broken on its way to a Hub, in every way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from tests.remotes.breaking import Breaking, breaking

from coral import CoralError, Repository, WeightTensor

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("coral.integrations.huggingface")

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "coral-hf" / "tests" / "huggingface"))

from loopback_hub import Hub, Model, online, reach  # noqa: E402

from coral.integrations.huggingface import CoralHubClient  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

KINDS = ("500", "cut", "429", "lost", "twice", "late", "truncated", "503", "wrong", "delayed")


def one_in(many: int) -> pytest.MarkDecorator:
    """By day each kind of fault breaks one request in so many, the kinds taking turns; at night every one."""
    return pytest.mark.parametrize("every", [many, pytest.param(1, marks=pytest.mark.nightly)])


Fault = Callable[[int], str | None]


@dataclass
class Broken:
    """A Hub, and what is between it and everybody."""

    hub: Hub
    between: Breaking

    def faults(self, act: Callable[[], object], every: int) -> Iterator[tuple[str, Fault]]:
        """Each kind of fault at each request of an act, once and from then on."""
        self.between.begin()
        act()
        count = self.between.requests
        assert count >= 3
        for turn, kind in enumerate(KINDS):
            for at in range(turn % every, count, every):
                yield f"{kind} at {at}", lambda number, at=at, kind=kind: kind if number == at else None
            for at in range((turn + every // 2) % every, count, every):
                yield f"{kind} from {at}", lambda number, at=at, kind=kind: kind if number >= at else None

    def put_back(self, commits: list[tuple[str, dict[str, bytes]]], large: dict[str, bytes]) -> None:
        self.between.begin()
        self.hub.models["me/model"] = Model(list(commits))
        self.hub.large = dict(large)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    hub = Hub()
    online(monkeypatch)
    with breaking(hub.url) as (url, between):
        reach(monkeypatch, url)
        hub.add("me/model", {"README.md": b"# Mine\n"})
        yield Broken(hub, between)
        huggingface_hub.close_session()
    hub.stop()


def weights(step: int) -> dict[str, np.ndarray]:
    """2.4 MB, of which most bits stay."""
    rng = np.random.default_rng(7)
    layers = {f"layer.{i}": rng.standard_normal((300, 500)).astype(np.float32) for i in range(4)}
    return {name: layer + np.float32(1e-6 * step) for name, layer in layers.items()}


def bits(found: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in found.items()}


def shown(hub: Hub) -> dict[str, bytes]:
    return bits(safetensors.numpy.load(hub.files("me/model")["model.safetensors"]))


@one_in(23)
def test_push_and_pull(broken: Broken, tmp_path: Path, every: int) -> None:
    """The branch is old or new, with the weights that everybody sees; the same again sends what is missing."""
    hub, between = broken.hub, broken.between
    repo = Repository(tmp_path / "ours", init=True, durability="fast")
    old = repo.commit(weights(1), "one")
    repo.push("hf://me/model")
    Repository.clone("hf://me/model", tmp_path / "before", durability="fast")
    before = list(hub.models["me/model"].commits), dict(hub.large)
    new = repo.commit(weights(2) | {"more": np.arange(500_000, dtype=np.int32)}, "two")
    repo.tag("paper", old)
    step_of = {old: bits(weights(1)), new: bits({name: w.data for name, w in repo.load(new).items()})}
    faults = broken.faults(lambda: repo.push("hf://me/model"), every)
    cases, whole = 0, 0
    for name, fault in faults:
        whole = whole or between.sent
        cases += 1
        broken.put_back(*before)
        between.begin(fault)
        failed = False
        try:
            repo.push("hf://me/model")
        except CoralError:
            failed = True
        between.begin()
        found = Repository.clone("hf://me/model", tmp_path / "clone", durability="fast")
        assert found.fsck().problems == [], name
        tip = found.resolve("main")
        assert tip in ({old, new} if failed else {new}), name
        assert shown(hub) == step_of[tip], name
        shutil.rmtree(found.path)
        kept = sum(map(len, hub.large.values())) - sum(map(len, before[1].values()))
        between.begin()
        repo.push("hf://me/model")
        if tip == old:
            assert between.sent <= whole - kept + 10_000, (
                f"{name}: {between.sent} sent again, {kept} of {whole} had come"
            )
        else:
            assert between.sent < 10_000, name
        assert shown(hub) == step_of[new], name

        found = Repository(shutil.copytree(tmp_path / "before", tmp_path / "pulled"), durability="fast")
        between.begin(fault)
        try:
            found.pull()
        except CoralError:
            failed = True
        assert found.resolve("main") in ({old, new} if failed else {new}), name
        assert found.fsck().problems == [], name
        between.begin()
        found.pull()
        assert found.tags() == {"paper": old}, name
        assert bits({n: w.data for n, w in found.load(new).items()}) == step_of[new], name
        assert found.fsck().problems == [], name
        shutil.rmtree(found.path)
    assert cases > 200 / every


@one_in(13)
def test_upload(broken: Broken, tmp_path: Path, every: int) -> None:
    """The repository is as it was, or has all of the new model: never a part of it."""
    hub, between = broken.hub, broken.between
    client = CoralHubClient(tmp_path / "cache")
    client.upload_model(weights(1), "me/base")
    client.upload_model(weights(2), "me/model")
    before = list(hub.models["me/model"].commits), dict(hub.large)
    models = {"old": bits(weights(2)), "new": bits(weights(3) | {"more": np.arange(500_000, dtype=np.int32)})}
    given = {
        name: WeightTensor(array) for name, array in (weights(3) | {"more": np.arange(500_000, dtype=np.int32)}).items()
    }

    def upload() -> str:
        return client.upload_model(given, "me/model", base_model="me/base")

    cases, whole = 0, 0
    for name, fault in broken.faults(upload, every):
        whole = whole or between.sent
        cases += 1
        broken.put_back(*before)
        between.begin(fault)
        failed = False
        try:
            upload()
        except CoralError:
            failed = True
        between.begin()
        assert set(hub.files("me/model")) >= {"coral.json", "model.safetensors", "README.md"}, name
        found = shown(hub)
        assert found in ((models["old"], models["new"]) if failed else (models["new"],)), name
        other = CoralHubClient(tmp_path / "other")
        assert bits({n: w.data for n, w in other.download_model("me/model").items()}) == found, name
        shutil.rmtree(tmp_path / "other")
        kept = sum(map(len, hub.large.values())) - sum(map(len, before[1].values()))
        between.begin()
        upload()
        assert between.sent <= whole - kept + 10_000, f"{name}: {between.sent} sent again, {kept} of {whole} had come"
        assert shown(hub) == models["new"], name
        assert client._cache.repo.fsck().problems == [], name
    assert cases > 100 / every


@one_in(4)
def test_download(broken: Broken, tmp_path: Path, every: int) -> None:
    """What comes is what was uploaded, or an error and nothing of it; the same again succeeds."""
    between = broken.between
    client = CoralHubClient(tmp_path / "cache")
    client.upload_model(weights(1), "me/base")
    tuned = weights(2) | {"more": np.arange(500_000, dtype=np.int32)}
    client.upload_model(tuned, "me/model", base_model="me/base")
    CoralHubClient(tmp_path / "before").download_model("me/base")

    def download(folder: Path) -> dict[str, bytes]:
        found = CoralHubClient(folder).download_model("me/model")
        return bits({name: weight.data for name, weight in found.items()})

    def counted() -> None:
        assert download(Path(shutil.copytree(tmp_path / "before", tmp_path / "counted"))) == bits(tuned)

    cases = 0
    for name, fault in broken.faults(counted, every):
        cases += 1
        folder = Path(shutil.copytree(tmp_path / "before", tmp_path / "after"))
        between.begin(fault)
        try:
            assert download(folder) == bits(tuned), name
        except CoralError:
            assert Repository(folder).branches().keys() == {"models/me--base"}, name
        assert Repository(folder).fsck().problems == [], name
        assert not list((folder / "incoming").iterdir()), name
        between.begin()
        assert download(folder) == bits(tuned), name
        shutil.rmtree(folder)
    assert cases > 40 / every
