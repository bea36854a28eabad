"""What is known of a model on the Hub, and what a download of one took."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coral.errors import UnsafeInput, UnsupportedValue
from coral.weights import MAX_BYTES

__all__ = ["DownloadStats", "HubFile", "ModelInfo", "Snapshot", "base_of", "check_weights", "weight_files"]

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model on the Hub at one revision.

    `revision` is the commit that the revision asked for stands for. `total_size_bytes` is that of all files, not only
    of the `weight_files`. `base_model` is what the model card says it was made from, None if it does not.
    """

    repo_id: str
    revision: str
    files: tuple[str, ...]
    base_model: str | None
    total_size_bytes: int
    weight_files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DownloadStats:
    """What a download took: tensors, and bytes of files as they were transferred.

    `downloaded_full` tensors came whole, `downloaded_delta` as differences; the rest were here. `bytes_saved` is what
    was not transferred of the `whole` weight files: what came beside them (`coral.json`) counts as transferred.
    """

    total_weights: int
    downloaded_full: int
    downloaded_delta: int
    bytes_downloaded: int
    bytes_saved: int
    savings_percent: float

    @classmethod
    def of(cls, total: int, full: int, delta: int, *, transferred: int, whole: int) -> DownloadStats:
        """The numbers for a download that would have taken `whole` bytes, and took the `transferred` ones."""
        saved = max(0, whole - transferred)
        return cls(total, full, delta, transferred, saved, 100 * saved / whole if whole else 0.0)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at a revision, and what its bytes are checked by: the SHA-256 of a large one, git's id of the others.

    UnsafeInput for a size that cannot be.
    """

    path: str
    size: int
    sha256: str | None
    blob_id: str | None

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 0 <= self.size <= MAX_BYTES:
            raise UnsafeInput(f"the Hub says of {self.path[:200]!r} that it has {str(self.size)[:40]} bytes")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model, with all that is known of its files."""

    info: ModelInfo
    files: Mapping[str, HubFile]


def base_of(card: Mapping[str, Any], tags: Iterable[str]) -> str | None:
    """The base model that a model card names, or a tag that the Hub made of it; the first of several."""
    named = card.get("base_model")
    if isinstance(named, list):
        named = named[0] if named else None
    if isinstance(named, str) and named:
        return named
    found = [tag.split(":")[-1] for tag in tags if tag.startswith("base_model:")]
    return found[0] if found else None


def weight_files(files: Iterable[str]) -> tuple[str, ...]:
    """The safetensors files that make up a model: one, or the shards of it; () where there are none."""
    found = sorted(path for path in files if path.endswith(".safetensors") and "/" not in path)
    if "model.safetensors" in found:
        return ("model.safetensors",)
    shards: dict[tuple[str, int], list[str]] = {}
    for path in found:
        if parts := _SHARD.fullmatch(path):
            shards.setdefault((parts[1], int(parts[3])), []).append(path)
    if shards:
        return tuple(min(shards.items(), key=lambda item: (item[0][0] != "model", item[0]))[1])
    return tuple(found)


def check_weights(info: ModelInfo) -> None:
    """Raise UnsupportedValue where there is no weight file, UnsafeInput where one is missing."""
    if info.weight_files:
        shard = _SHARD.fullmatch(info.weight_files[0])
        if shard and len(info.weight_files) != int(shard[3]):
            there, count = len(info.weight_files), int(shard[3])
            raise UnsafeInput(
                f"{info.repo_id} is not whole: it has {there} of the {count} files that {shard[1]} is split into."
            )
        return
    files = info.files
    pickled = [path for path in files if path.endswith(_PICKLED)]
    inner = [path for path in files if path.endswith(".safetensors")]
    if inner:
        why = f"its safetensors files are in folders ({inner[0]}), which is not supported: it is no single model"
    elif pickled:
        why = (
            f"it has its weights as {pickled[0]} alone, which is not opened: unpickling runs what is in it. Have them "
            "converted (https://huggingface.co/spaces/safetensors/convert), and pass the revision that has them"
        )
    else:
        why = "it has no weights"
    raise UnsupportedValue(f"{info.repo_id} has no safetensors file: {why}.")
