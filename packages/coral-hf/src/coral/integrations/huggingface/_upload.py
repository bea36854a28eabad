"""What a repository on the Hub is given: safetensors files, coral.json, a delta pack, a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard

from coral import DeltaConfig, WeightTensor
from coral._digest import digests
from coral.integrations.huggingface._deltas import write_delta_pack
from coral.integrations.huggingface._safetensors import Place, write_file
from coral.integrations.huggingface._sidecar import LARGEST, NAME, Claimed, Delta, Sidecar

__all__ = ["INDEX", "PACK", "Base", "Written", "model_card", "write_model"]

PACK = "coral-delta.pack"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Base:
    """A model that another was made from, at one revision."""

    repo_id: str
    revision: str
    weights: Mapping[str, WeightTensor]


@dataclass(slots=True)
class Written:
    """The files that were written, and the tensors in those that hold weights, by SHA-256."""

    files: list[str] = field(default_factory=list)
    tensors: dict[str, list[str]] = field(default_factory=dict)


def write_model(
    folder: Path,
    weights: Mapping[str, WeightTensor],
    base: Base | None,
    config: DeltaConfig,
    *,
    shard_size: int,
    stem: str = "model",
) -> Written:
    """Write all files of a model but its card; a weight file has `shard_size` bytes at most, or one tensor.

    Without coral.json, and the delta pack, where that would be longer than what is read: of more than 250 GB.
    """
    done, hashes, claims = Written(), dict[str, str](), dict[str, Claimed]()
    shards = _shards(weights, shard_size)
    for number, names in enumerate(shards, 1):
        one = len(shards) == 1
        path = f"{stem}.safetensors" if one else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"

        def seen(name: str, tensor: WeightTensor, place: Place, path: str = path) -> None:
            claims[name] = Claimed(path, place, tensor.id, digests(tensor.bytes()))

        write_file(folder / path, ((name, weights[name]) for name in names), seen)
        with (folder / path).open("rb") as file:
            hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        done.tensors[hashes[path]] = names
    done.files += hashes
    if len(shards) > 1:
        of_file = {name: claimed.file for name, claimed in claims.items()}
        total = sum(tensor.nbytes for tensor in weights.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": of_file}, indent=2))
        done.files.append(INDEX)
    delta = None
    if base is not None:
        of_blocks = {name: claimed.digests for name, claimed in claims.items()}
        pack, tensors = write_delta_pack(folder / PACK, weights, of_blocks, base.weights, config)
        if tensors:
            delta = Delta(PACK, pack, base.repo_id, base.revision, tensors)
            done.files.append(PACK)
    sidecar = Sidecar(hashes, claims, delta).to_json()
    if len(sidecar) <= LARGEST:
        (folder / NAME).write_bytes(sidecar)
        done.files.append(NAME)
    elif delta is not None:
        done.files.remove(PACK)
    return done


def _shards(weights: Mapping[str, WeightTensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def model_card(text: str | None, repo_id: str, base_model: str | None) -> str:
    """The model card that is there, or a new one, with the name of the base in what the Hub reads."""
    card = ModelCard(text if text is not None else f"---\n{{}}\n---\n\n# {repo_id.rpartition('/')[2]}\n")
    if base_model is not None:
        card.data["base_model"] = base_model
    return str(card)
