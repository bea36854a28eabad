"""Delta packs: coral packs that hold a model's tensors as differences from those of its base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import numpy as np

from coral import DeltaConfig, WeightTensor
from coral._digest import BLOCK, Bytes, fold, pool
from coral.delta import BLOCK_ELEMENTS, Choice, Codec, carrier, choose, similarity, spans
from coral.errors import CorruptObject, MissingExtra
from coral.filesystem import LocalFileSystem, ReadFile
from coral.store import Operation, Store, Stored
from coral.store._chain import encoded, verify_tensors
from coral.store._pack import RAW, Directory, Entry, directory_of
from coral.store._pack_writer import PackWriter

__all__ = ["admit", "chosen", "write_delta_pack"]


def write_delta_pack(
    path: Path,
    weights: Mapping[str, WeightTensor],
    digests: Mapping[str, bytes],
    base: Mapping[str, WeightTensor],
    config: DeltaConfig,
) -> tuple[str, dict[str, str | None]]:
    """Write what becomes shorter of `weights`, whose blocks have these SHA-256, and is not in `base`, as a pack.

    Returns its name and, for each tensor in it, the id of the one that it is a difference from. The dict is empty
    where nothing becomes shorter.
    """
    there = {tensor.id for tensor in base.values()}
    written: dict[str, str | None] = {}
    file = LocalFileSystem(path.parent).create(path.name)
    try:
        writer = PackWriter(file, durable=False)
        for name, tensor in weights.items():
            if tensor.id in there or tensor.id in written or tensor.nbytes < config.min_size:
                continue
            other = _base_of(name, tensor, base, config)
            codec = chosen(tensor, other, config).codec
            if codec.code != RAW:
                of = other if codec.needs_base else None
                _write(writer, tensor, digests[name], of, codec)
                written[tensor.id] = of.id if of else None
        directory = writer.finish()
    finally:
        file.close()
    return directory.name, written


def _base_of(
    name: str, tensor: WeightTensor, base: Mapping[str, WeightTensor], config: DeltaConfig
) -> WeightTensor | None:
    named = base.get(name)
    if named is not None and (named.dtype, named.shape) == (tensor.dtype, tensor.shape):
        return named
    best, found = config.similarity_threshold, None
    for other in base.values():
        if (other.dtype, other.shape) == (tensor.dtype, tensor.shape):
            alike = similarity(tensor.data, other.data, tensor.dtype)
            if alike >= best:
                best, found = alike, other
    return found


def chosen(tensor: WeightTensor, other: WeightTensor | None, config: DeltaConfig) -> Choice:
    """How a tensor is best encoded as a difference from another one, or alone, and about how short that makes it."""
    bits = carrier(tensor.dtype)
    mine, theirs = tensor.bytes().view(bits), None if other is None else other.bytes().view(bits)
    return choose([(mine[at], None if theirs is None else theirs[at]) for at in spans(mine.size)], config)


def _write(writer: PackWriter, tensor: WeightTensor, digests: bytes, other: WeightTensor | None, codec: Codec) -> None:
    bits, raw = carrier(tensor.dtype), tensor.bytes()
    mine, theirs = raw.view(bits), None if other is None else other.bytes().view(bits)

    def block(at: int) -> tuple[bytes, int]:
        part = slice(at, at + BLOCK_ELEMENTS)
        return codec.encode(mine[part], None if theirs is None else theirs[part]), fold(mine[part].view(np.uint8))

    base, shape = other.id if other else None, tensor.shape
    entry = Entry(tensor.id, "tensor", codec.code, codec.params, base, tensor.dtype, shape, 0, 0, raw.size, digests, [])
    writer.add_stored(entry, encoded(pool().map(block, range(0, mine.size, BLOCK_ELEMENTS))))


def admit(store: Store, operation: Operation, path: Path, name: str, wanted: Set[str]) -> set[str]:
    """Take the `wanted` tensors of a delta pack into the store; returns those that were in it.

    Each is decoded and compared with its SHA-256 before anybody else can see it. Raises CorruptObject where one, or
    the pack, is not what it says.
    """
    file = LocalFileSystem(path.parent).open(path.name)
    try:
        entries = [e for e in directory_of(file, name).entries() if e.kind == "tensor" and e.id in wanted]
        if not entries:
            return set()

        def fill(writer: PackWriter) -> None:
            for entry in entries:
                writer.add_stored(entry, _stored(file, entry))

        with store.copies() as copies:

            def check(directory: Directory, written: ReadFile) -> None:
                chains = [copies.chain(Stored(directory, written, entry)) for entry in directory.entries()]
                for _, problem in verify_tensors(chains):
                    if problem is not None:
                        raise problem

            store.write_pack(fill, operation, durable=True, check=check)
    except MissingExtra:
        raise
    except EOFError as error:
        raise CorruptObject(f"the delta pack ends too early: {error}") from error
    finally:
        file.close()
    return {entry.id for entry in entries}


def _stored(file: ReadFile, entry: Entry) -> Iterator[Bytes]:
    for at, end in itertools.pairwise([*range(0, entry.size, BLOCK), entry.size]):
        piece = np.empty(end - at, np.uint8)
        file.read_into(piece, entry.offset + at)
        yield piece
