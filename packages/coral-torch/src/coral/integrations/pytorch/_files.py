"""Files for hosts that want one, in torch's own format: torch.save and torch.load are called here alone."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from coral.errors import storage_errors
from coral.filesystem import LocalFileSystem, Origin

__all__ = ["load_file", "save_file", "temporary"]


def save_file(value: Any, path: str | os.PathLike[str]) -> None:
    """Write nested state of tensors, arrays and plain values as torch.save does."""
    torch.save(value, path)


def load_file(path: str | os.PathLike[str]) -> Any:
    """Read what torch.save wrote, on the CPU; only tensors and plain values are taken: nothing in it can run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def temporary(repository: Path) -> Path:
    """A new folder beside a repository, where there is room, which is removed when the program ends.

    Those of programs on this machine that were killed are removed now: their names say which process they are of.
    """
    with storage_errors(f"making a folder beside {repository}"):
        repository = repository.expanduser().resolve()
        files, prefix = LocalFileSystem(repository.parent), f"{repository.name}.resume-"
        for name in files.list(""):
            if name.startswith(prefix) and _is_of_the_dead(files, name.removeprefix(prefix)):
                shutil.rmtree(repository.parent / name, ignore_errors=True)
        made = tempfile.mkdtemp(prefix=f"{prefix}{_tag(files.origin())}-", dir=repository.parent)
    atexit.register(shutil.rmtree, made, True)
    return Path(made)


def _tag(origin: Origin) -> str:
    host, boot = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (origin.host, origin.boot))
    return f"{host}-{boot}-{origin.pid}"


def _is_of_the_dead(files: LocalFileSystem, name: str) -> bool:
    """Whether the process that a folder is of ran on this machine, and does no more."""
    here = files.origin()
    our_host, our_boot, _ = _tag(here).split("-")
    match name.split("-"):
        case [host, boot, pid, _] if host == our_host and pid.isdecimal():
            return boot != our_boot or not files.alive(here._replace(pid=int(pid)))
    return False
