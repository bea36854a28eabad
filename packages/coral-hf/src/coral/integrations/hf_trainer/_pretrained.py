"""What goes along with the weights, so that `from_pretrained` opens them: configs, and the tokenizer's files."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from coral import WeightTensor
from coral.errors import UnsafeInput, UnsupportedValue

__all__ = ["config_writer", "implied_names", "packed", "tokenizer_writer", "unpack"]

_log = logging.getLogger("coral")

Writer = Callable[[str], Any]
"""Writes files to a folder."""


def config_writer(model: nn.Module) -> Writer | None:
    """What writes config.json, as `save_pretrained` of the model would, and generation_config.json."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        return None
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__]  # by these `from_pretrained` finds the class, and the dtype
    config.dtype = str(model.dtype).removeprefix("torch.")
    generation = getattr(model, "generation_config", None)

    def write(folder: str) -> None:
        config.save_pretrained(folder)
        if generation is not None:
            generation.save_pretrained(folder)

    return write


def tokenizer_writer(processing: object) -> Writer | None:
    """What writes the files of a tokenizer, or of another processor; None where there is none."""
    found: Writer | None = getattr(processing, "save_pretrained", None)
    return found


def packed(writers: Mapping[str, Writer | None]) -> dict[str, WeightTensor]:
    """The files that the writers write, as tensors of bytes: a repository holds equal ones once, whatever their size.

    A writer that fails is warned of, by its name, and the others' files are kept.
    """
    files: dict[str, WeightTensor] = {}
    for what, write in writers.items():
        with TemporaryDirectory() as folder:
            try:
                if write is not None:
                    write(folder)
            except Exception as error:  # noqa: BLE001 - checkpoints without these files are checkpoints all the same
                _log.warning("checkpoints have no files of the %s: %s", what, error)
                continue
            paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            files |= {
                path.relative_to(folder).as_posix(): WeightTensor(np.frombuffer(path.read_bytes(), np.uint8))
                for path in paths
            }
    return files


def unpack(files: Mapping[str, WeightTensor], folder: Path) -> None:
    """Write packed files to a folder. UnsafeInput for a name that leads out of it."""
    for name, content in files.items():
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or {"..", "."} & {*parts} or "\\" in name or ":" in name:
            raise UnsafeInput(f"a checkpoint holds a file named {name!r}, which leads out of the folder it is for")
        if not isinstance(content, WeightTensor):
            raise UnsupportedValue(f"the file {name!r} of the checkpoint is a {type(content).__name__}", path=name)
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.data.tobytes())


def implied_names(model: nn.Module, tied: list[list[str]]) -> list[str]:
    """The names of tied weights that the model ties by itself when it is loaded, so that a file need not have them."""
    implied = getattr(model, "all_tied_weights_keys", None) or {}
    return sorted(name for _, *others in tied for name in {_, *others} & {*implied})
