"""Before a copy of something is let go: that the one which is to stand for it is what it should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coral.errors import CoralError
from coral.maintenance._inventory import Copy
from coral.store import Chain, Copies, Store, Stored
from coral.store._chain import verify_tensors
from coral.store._pack import read_object

__all__ = ["unfit"]

_MANY = 256  # copies that are looked at with their packs open


def unfit(store: Store, copies: Mapping[str, Copy]) -> Iterator[tuple[str, Copy]]:
    """Those of some copies, by the id that they stand for, that do not decode to what that says, or not here."""
    waiting = list(copies.items())
    while waiting:
        some, waiting = dict(waiting[:_MANY]), waiting[_MANY:]
        with store.copies() as opened:
            chains: list[Chain] = []
            for id, copy in some.items():
                try:
                    chains += _looked_at(opened, copy)
                except (CoralError, EOFError, OSError):
                    yield id, copy
            for chain, problem in verify_tensors(chains):
                if problem is not None and not _is_whole(opened, chain.links[0]):
                    yield chain.entry.id, some[chain.entry.id]


def _is_whole(opened: Copies, stored: Stored) -> bool:
    """Whether it is read by way of other copies of its bases: then these are what is damaged."""
    try:
        opened.verify(stored)
    except (CoralError, EOFError, OSError):
        return False
    return True


def _looked_at(opened: Copies, copy: Copy) -> list[Chain]:
    """Check an object, or say how to read a tensor."""
    file, pack = opened.open(copy.pack)
    entry = pack.checked(copy.number)
    if entry.kind == "tensor":
        return [opened.chain(Stored(pack, file, entry))]
    read_object(file, entry)
    return []
