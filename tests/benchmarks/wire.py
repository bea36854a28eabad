"""Bytes on the wire, as the servers count them, of pushes and of downloads; and how fast a whole clone is.

Pushes go to a folder, to an S3 server (moto, a process of its own behind a proxy that counts bodies) and to a Hub on
loopback; downloads come from that Hub. What is asked is of what coral itself has to move. The plain files that a push
to the Hub keeps there for `from_pretrained` are counted apart. Beside it stands what moves where files are copied
whole, as by rsync to another machine or `aws s3 sync` of files that have changed, and by huggingface_hub's
snapshot_download.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cases
import histories
import huggingface_hub
import s3fs
import series
from harness import Bench, Figure, in_turn, timed
from huggingface_hub import constants
from safetensors.torch import save as save_safetensors
from tests.remotes.breaking import breaking
from tests.remotes.servers import free_port, serving

from coral import Repository, WeightTensor
from coral.integrations.huggingface import CoralHubClient
from coral.remotes import open_remote

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "coral-hf" / "tests" / "huggingface"))

from loopback_hub import Hub

__all__ = ["run"]

BENCH = "wire"
MORE = 8
"""Checkpoints that are pushed one by one after the first."""
MODEL = "me/model"
ASKED_PUSH, ASKED_AGAIN = 1.05, 4096
ASKED_BF16, ASKED_FROZEN, ASKED_SIDECAR = 0.15, 0.12, 0.11
ASKED_CLONE = 1.7
FROZEN = next(case for case in cases.CASES if case.mode == "frozen")

Counted = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Place:
    """A remote: its URL, the bytes of bodies both ways so far, and those of them that are no part of the repository."""

    url: str
    bytes: Counted
    beside: Counted = lambda: 0


def run(bench: Bench) -> None:
    """Measure pushes, downloads, and clones."""
    with ExitStack() as stack:
        hub = stack.enter_context(_hub())
        s3 = stack.enter_context(_s3(bench))
        measure_pushes(bench, [_folder(bench), s3, _place_of(hub)])
        measure_downloads(bench, hub)
    measure_clone(bench)


# Pushes


def measure_pushes(bench: Bench, places: list[Place]) -> None:
    """Push a run's first checkpoint, then one by one those that follow, then the same again."""
    case = cases.BF16
    checkpoints = [case.read(case.folder(bench), k) for k in range(1, MORE + 2)]
    whole = sum(len(save_safetensors(tensors)) for tensors in checkpoints[1:])
    grown = _grown(bench, checkpoints)
    path = bench.folder(BENCH) / "pushed"
    repo = _repository(path)
    for number, place in enumerate(places):
        repo.add_remote(f"remote{number}", place.url)
    sent = [0] * len(places)
    beside = [0] * len(places)
    for k, tensors in enumerate(checkpoints):
        repo.commit(cases.weights(tensors), f"checkpoint {k + 1}")
        for number, place in enumerate(places):
            before, apart = place.bytes(), place.beside()
            repo.push(f"remote{number}")
            if k:
                sent[number] += place.bytes() - before
                beside[number] += place.beside() - apart
    bench.report.note(BENCH, f"{case.name}, {MORE} checkpoints after the first: {whole / 1e6:.1f} MB as files")
    newest = sum(tensor.nbytes for tensor in checkpoints[-1].values())
    bench.report.note(
        BENCH,
        f"the repacked repository grows by {grown / 1e6:.2f} MB; {newest / 1e6:.1f} MB of it stay whole, the newest",
    )
    for number, place in enumerate(places):
        kind = place.url.partition("://")[0] if "://" in place.url else "a folder"
        value = (sent[number] - beside[number]) / grown
        name = f"{MORE} more checkpoints to {kind} / what a repacked repository grows by"
        note = f"({(sent[number] - beside[number]) / whole:.3f} of the files, which whole copies send)"
        bench.report.figure(Figure(BENCH, name, value, ASKED_PUSH, note=note))
        if beside[number]:
            bench.report.note(BENCH, f"{kind}: plain files beside that {beside[number] / 1e6:.1f} MB")
        before = place.bytes()
        repo.push(f"remote{number}")
        name = f"the same again to {kind}"
        bench.report.figure(Figure(BENCH, name, place.bytes() - before, ASKED_AGAIN, "B"))
    shutil.rmtree(path)


def _grown(bench: Bench, checkpoints: list[series.Tensors]) -> int:
    """Return what a repacked repository grows by from the first checkpoint to the last."""
    path = bench.folder(BENCH) / "grown"
    sizes = []
    for some in (checkpoints[:1], checkpoints):
        histories.build(path, some)
        with Repository(path) as repo:
            repo.repack()
            repo.gc()
            sizes.append(repo.stats().stored_bytes)
    shutil.rmtree(path)
    return sizes[1] - sizes[0]


def _repository(path: Path) -> Repository:
    shutil.rmtree(path, ignore_errors=True)
    return Repository(path, init=True, durability="fast")


# Downloads


def measure_downloads(bench: Bench, hub: Hub) -> None:
    """Fetch fine-tunes whose base is in the cache, beside snapshot_download."""
    base, tuned = (_rounded(cases.BF16, bench, k) for k in (0, MORE + 1))
    _download(bench, hub, "fine-tune, bf16", base, tuned, ASKED_BF16, delta=True)
    base, tuned = (_weights(series.read(FROZEN.folder(bench), k, ("model",))) for k in (0, MORE + 1))
    _download(bench, hub, "fine-tune, frozen backbone, fp32", base, tuned, ASKED_FROZEN, delta=True)
    changed = _part_of(base, 0.1)
    mixed = {name: tuned[name] if name in changed else base[name] for name in base}
    mixed = {name: _other(tensor) if name in changed else tensor for name, tensor in mixed.items()}
    share = sum(base[name].nbytes for name in changed) / sum(tensor.nbytes for tensor in base.values())
    _download(bench, hub, f"sidecar alone, {1 - share:.0%} of the bytes equal", base, mixed, ASKED_SIDECAR)
    _shards(bench, hub, base)


def _download(
    bench: Bench,
    hub: Hub,
    what: str,
    base: Mapping[str, WeightTensor],
    model: Mapping[str, WeightTensor],
    asked: float,
    *,
    delta: bool = False,
) -> None:
    folder = _emptied(bench, "download")
    theirs, client = CoralHubClient(folder / "theirs"), CoralHubClient(folder / "ours")
    theirs.upload_model(base, "me/base")
    theirs.upload_model(model, "me/tuned", base_model="me/base" if delta else None)
    client.download_model("me/base")
    size = len(hub.files("me/tuned")["model.safetensors"])
    before = hub.answered
    found = client.download_model("me/tuned")
    value = (hub.answered - before) / size
    for name, tensor in model.items():
        assert found[name].bytes().tobytes() == tensor.bytes().tobytes(), f"{name} is not what was uploaded"
    before = hub.answered
    huggingface_hub.snapshot_download("me/tuned", cache_dir=folder / "peer", allow_patterns="*.safetensors")
    note = f"(snapshot_download of the weights {(hub.answered - before) / size:.3f})"
    bench.report.figure(Figure(BENCH, f"{what} / the file", value, asked, note=note))
    shutil.rmtree(folder)


def _shards(bench: Bench, hub: Hub, base: Mapping[str, WeightTensor]) -> None:
    """Two repositories with the same two shards, that nothing but huggingface_hub has put there."""
    folder = _emptied(bench, "download")
    theirs, client = CoralHubClient(folder / "theirs"), CoralHubClient(folder / "ours")
    half = sum(tensor.nbytes for tensor in base.values()) // 2
    theirs.upload_model(base, "me/one", max_shard_size=half + 1)
    files = {path: data for path, data in hub.files("me/one").items() if path != "coral.json"}
    hub.add("me/one", files)
    hub.add("me/two", files | {"config.json": b"{}"})
    client.download_model("me/one")
    before = hub.sent
    client.download_model("me/two")
    shards = sum(path.endswith(".safetensors") for path in files)
    bench.report.figure(Figure(BENCH, f"{shards} shards that are here, of another model", hub.sent - before, 0, "B"))
    shutil.rmtree(folder)


def _weights(tensors: series.Tensors) -> dict[str, WeightTensor]:
    return dict(cases.weights(tensors))


def _rounded(case: cases.Case, bench: Bench, k: int) -> dict[str, WeightTensor]:
    return _weights(series.rounded(series.read(case.folder(bench), k, ("model",))))


def _part_of(weights: Mapping[str, WeightTensor], share: float) -> set[str]:
    """Return names of tensors that make up about so much of all bytes, and no more."""
    left = share * sum(tensor.nbytes for tensor in weights.values())
    chosen = set()
    for name, tensor in sorted(weights.items(), key=lambda item: -item[1].nbytes):
        if tensor.nbytes <= left:
            chosen.add(name)
            left -= tensor.nbytes
    return chosen


def _other(tensor: WeightTensor) -> WeightTensor:
    return WeightTensor(tensor.data + tensor.data.dtype.type(1))


# A whole clone


def measure_clone(bench: Bench) -> None:
    """Time a clone from a folder, every byte of which is hashed, beside a copy that is synced."""
    case, files = cases.BF16, _emptied(bench, "clone")
    histories.build(files / "there", (case.read(case.folder(bench), k) for k in range(1, MORE + 2)))
    with Repository(files / "there") as repo:
        size = repo.stats().stored_bytes

    def clone() -> Mapping[str, float]:
        with timed() as watch:
            Repository.clone(files / "there", files / "clone").close()
        shutil.rmtree(files / "clone")
        return {"clone": watch.seconds}

    def copy() -> Mapping[str, float]:
        with timed() as watch:
            shutil.copytree(files / "there", files / "copy")
            _sync(files / "copy")
        shutil.rmtree(files / "copy")
        return {"copytree + fsync": watch.seconds}

    bench.report.note(BENCH, f"{size / 1e6:.0f} MB, stored whole")
    bench.report.time(BENCH, in_turn([clone, copy], bench.rounds))
    bench.report.ratio(BENCH, "clone", "copytree + fsync", ASKED_CLONE)
    shutil.rmtree(files)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


# Where things go


def _emptied(bench: Bench, name: str) -> Path:
    folder = bench.folder(BENCH) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _folder(bench: Bench) -> Place:
    """A folder, of which the bytes are those that are in it: it was empty, and nothing is ever read back."""
    path = _emptied(bench, "folder")
    return Place(str(path), partial(histories.disk, path))


@contextmanager
def _s3(bench: Bench) -> Iterator[Place]:
    """A server that was started for this."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port) as server, breaking(server) as (url, between):
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield Place("s3://bucket/weights", lambda: between.sent + between.answered)


@contextmanager
def _hub() -> Iterator[Hub]:
    """A Hub that huggingface_hub takes for the real one."""
    hub, template = Hub(), constants.HUGGINGFACE_CO_URL_TEMPLATE
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    constants.ENDPOINT = hub.url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.url + template[template.index("/{repo_id}") :]
    huggingface_hub.utils.disable_progress_bars()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        hub.stop()


def _place_of(hub: Hub) -> Place:
    """A repository on it. What is no part of coral's own is counted as its large files are: once for each content."""
    hub.add(MODEL, {"README.md": b"# A model\n"})
    url = f"hf://{MODEL}"
    open_remote(url)  # it is installed

    def beside() -> int:
        found = {data for _, files in hub.models[MODEL].commits for path, data in files.items() if "/" not in path}
        return sum(len(data) * (1 if len(data) > 1 << 20 else 4 / 3) for data in found)

    return Place(url, lambda: hub.received + hub.answered, lambda: int(beside()))
