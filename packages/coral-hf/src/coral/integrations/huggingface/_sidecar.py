"""`coral.json`: which tensors a repository's weight files hold, by their coral ids, and where each lies.

    format      1
    files       path -> SHA-256 of each weight file that this is about; where one differs, all of this is void
    tensors     name -> file, begin (its first byte in the file), dtype, shape, id, digests (SHA-256 of each 1 MiB, hex)
    delta       file, pack (its name: 64 hex digits), base_model, base_revision, tensors: id -> id of the base, or null

It is a claim, and saves nothing but bytes: what it leads to is compared with the file's header and SHA-256 before use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coral import _json
from coral._digest import blocks_in, tensor_id
from coral.errors import CoralError, UnsafeInput
from coral.integrations.huggingface._safetensors import Place
from coral.objects import is_id
from coral.weights import check_name, check_shape

__all__ = ["LARGEST", "NAME", "Claimed", "Delta", "Sidecar"]

NAME = "coral.json"
LARGEST = _json.MAX_BYTES
"""Bytes of it at most: it has 64 for each MiB of weights, so that of 250 GB it is."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A tensor as the sidecar describes it."""

    file: str
    place: Place
    id: str
    digests: bytes


@dataclass(frozen=True, slots=True)
class Delta:
    """A pack that holds tensors as differences from those of a base; `tensors` maps an id to that of its base."""

    file: str
    pack: str
    base_model: str
    base_revision: str
    tensors: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What coral.json says."""

    files: Mapping[str, str]
    tensors: Mapping[str, Claimed]
    delta: Delta | None

    def to_json(self) -> bytes:
        """The file."""
        content: dict[str, Any] = {"format": 1, "files": dict(self.files), "tensors": {}}
        for name, claimed in self.tensors.items():
            dtype, shape, begin, _ = claimed.place
            content["tensors"][name] = {
                "file": claimed.file, "begin": begin, "dtype": dtype, "shape": list(shape), "id": claimed.id,
                "digests": claimed.digests.hex(),
            }  # fmt: skip
        if self.delta:
            content["delta"] = {
                "file": self.delta.file, "pack": self.delta.pack, "base_model": self.delta.base_model,
                "base_revision": self.delta.base_revision, "tensors": dict(self.delta.tensors),
            }  # fmt: skip
        return json.dumps(content, indent=1).encode()

    @classmethod
    def of(cls, data: bytes) -> Sidecar:
        """Read the file; UnsafeInput for anything that is not as `to_json` writes it."""
        try:
            content = json.loads(data)
            match content:
                case {"format": 1, "files": dict(files), "tensors": dict(tensors)}:
                    pass
                case _:
                    raise UnsafeInput(f"{NAME} has no format that this version knows")
            if not all(isinstance(digest, str) for digest in files.values()):
                raise UnsafeInput(f"{NAME} gives no hash of a file")
            claims = {check_name(name): _claim(name, entry, files) for name, entry in tensors.items()}
            return cls(files, claims, _delta(content.get("delta")))
        except CoralError:
            raise
        except (ValueError, RecursionError, AttributeError) as error:
            raise UnsafeInput(f"{NAME} cannot be read: {error}") from error


def _claim(name: str, entry: object, files: Mapping[str, str]) -> Claimed:
    match entry:
        case {
            "file": str(file), "begin": int(begin), "dtype": str(dtype), "shape": list(shape), "id": str(id),
            "digests": str(digests),
        } if file in files and begin >= 0:  # fmt: skip
            sizes, nbytes = check_shape(shape, dtype)
            joined = bytes.fromhex(digests)
            if len(joined) == 32 * blocks_in(nbytes) and tensor_id(dtype, sizes, joined) == id:
                return Claimed(file, Place(dtype, sizes, begin, nbytes), id, joined)
    raise UnsafeInput(f"{NAME} says of tensor {name!r} what cannot be")


def _delta(entry: object) -> Delta | None:
    match entry:
        case None:
            return None
        case {
            "file": str(file), "pack": str(pack), "base_model": str(model), "base_revision": str(revision),
            "tensors": dict(tensors),
        }:  # fmt: skip
            if is_id(pack) and all(is_id(id) and (base is None or is_id(base)) for id, base in tensors.items()):
                return Delta(file, pack, model, revision, tensors)
    raise UnsafeInput(f"{NAME} describes its delta pack in a way that cannot be")
