"""The newest weights of a pushed branch as plain files, which every `from_pretrained` opens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from coral import DeltaConfig, WeightTensor
from coral.errors import UnsupportedValue
from coral.integrations.huggingface._models import weight_files
from coral.integrations.huggingface._repository import HubRepository, Operation
from coral.integrations.huggingface._sidecar import NAME
from coral.integrations.huggingface._upload import INDEX, PACK, write_model
from coral.remotes import Newest

__all__ = ["Shown"]

_log = logging.getLogger("coral")

_SHARD = 5_000_000_000  # bytes of a weight file at most
_HELD = 16 << 20  # bytes up to which a file is held until it is committed; the Hub keeps all longer ones as large
_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Shown:
    """The files of a model, whose bytes are on the Hub and wait for a commit."""

    adds: tuple[CommitOperationAdd, ...]

    @classmethod
    def of(cls, newest: Newest, hub: HubRepository) -> Shown | None:
        """Upload weights, coral.json, and what else the commit has for `from_pretrained`: config.json, a tokenizer.

        None, with a warning, where there is a dtype that the format has no name for. What is written first is in
        the folder for temporary files (TMPDIR).
        """
        found: Any = newest.state()
        state: Mapping[str, Any] = found if isinstance(found, dict) else {}
        held, injected = newest.weights(), state.get("injected")
        if injected is None:
            weights = {name: held[name] for name in held if name not in {*state.get("implied", ())}}
        else:  # of an adapter in a model of transformers, as PEFT names them
            weights = {name: held[inside] for name, inside in injected.items()}
        adapts = "adapter" in state or injected is not None
        stem, limit = ("adapter_model", 1 << 62) if adapts else ("model", _SHARD)  # of PEFT: one file
        with TemporaryDirectory(prefix="coral-") as name:
            folder = Path(name)
            try:
                written = write_model(folder, weights, None, DeltaConfig(), shard_size=limit, stem=stem)
            except UnsupportedValue as error:
                _log.warning("%s: the weights of %s are not shown: %s", hub.id, newest.commit.id[:12], error)
                return None
            adds = [_add(path, folder) for path in written.files]
            for add in adds:
                hub.upload(add)
        return cls((*adds, *_others(state.get("files", {}), written.files)))

    def operations(self, there: Iterable[str]) -> Iterator[Operation]:
        """What a commit is to do, `there` being the files that are not in folders: what is stale goes."""
        yield from self.adds
        files = {*there}
        stale = {*weight_files(files), INDEX, PACK, NAME, _ADAPTER} & files
        for path in sorted(stale - {add.path_in_repo for add in self.adds}):
            yield CommitOperationDelete(path)


def _add(path: str, folder: Path) -> CommitOperationAdd:
    file = folder / path
    return CommitOperationAdd(path, file.read_bytes() if file.stat().st_size <= _HELD else file)


def _others(files: Mapping[str, Any], taken: Iterable[str]) -> Iterator[CommitOperationAdd]:
    for path, content in files.items():
        parts = PurePosixPath(path).parts
        if path in taken or not isinstance(content, WeightTensor):
            continue
        if not parts or parts[0] in ("coral", "/") or any(part.startswith(".") for part in parts) or "\\" in path:
            _log.warning("a checkpoint holds a file named %r, which is not put on the Hub", path)
            continue
        yield CommitOperationAdd(path, content.data.tobytes())
