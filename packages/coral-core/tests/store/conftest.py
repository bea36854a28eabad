"""Helpers for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from coral._digest import BLOCK, fold, sha256
from coral.errors import CorruptObject
from coral.filesystem import FileSystem
from coral.remotes._filesystem import MemoryFile
from coral.store._pack import Directory, path_of
from coral.store._pack_writer import PackWriter
from coral.weights import WeightTensor


@pytest.fixture(scope="session")
def memory_file() -> type[MemoryFile]:
    return MemoryFile


@pytest.fixture(scope="session")
def write_pack() -> Callable[..., Directory]:
    """Writes a pack of some tensors and (kind, bytes) objects."""

    def write(
        fs: FileSystem, tensors: Iterable[Any] = (), objects: Iterable[tuple[str, bytes]] = (), *, flags: int = 0
    ) -> Directory:
        file = fs.create("tmp/pack")
        writer = PackWriter(file, durable=not flags)
        for data in tensors:
            tensor = data if isinstance(data, WeightTensor) else WeightTensor(data)
            flat = tensor.bytes()
            blocks = [flat[at : at + BLOCK] for at in range(0, flat.size, BLOCK)]
            digests, sums = b"".join(map(sha256, blocks)), list(map(fold, blocks))
            writer.add_tensor(tensor.id, tensor.dtype, tensor.shape, flat, digests, sums)
        for kind, payload in objects:
            writer.add_object(kind, payload)
        directory = writer.finish()
        file.close()
        fs.replace("tmp/pack", path_of(directory.name))
        return directory

    return write


@pytest.fixture
def read_all() -> Callable[..., Mapping[str, bytes]]:
    """Reads everything in a pack by way of its directory, checked."""
    from coral.store._chain import Chain, Stored, read_tensors
    from coral.store._pack import directory_of, read_object

    def read(file: Any, name: str) -> Mapping[str, bytes]:
        found = {}
        directory = directory_of(file, name)
        for entry in directory.entries():
            if entry.kind == "tensor":
                chain = Chain([Stored(directory, file, entry)])
                (data,) = read_tensors([chain])
                if data is None:
                    raise CorruptObject("a block fails its check")
                found[entry.id] = data.tobytes()
                chain.verify()
            else:
                found[entry.id] = read_object(file, entry)
        return found

    return read
