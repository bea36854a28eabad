"""What a push sends, and in which form.

A pack that holds nothing but what is missing goes as it is. All else goes into new packs: in the form that it is stored
in, where the other side has what that is a difference from; and tensors that are stored whole as differences from what
the other side has already, or is being sent, where that is shorter. As in a repack no difference is from a difference
from another one, and after `group_size` commits what is sent stands alone again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from coral._digest import Bytes
from coral._unreadable import is_unreadable
from coral.delta import Choice, DeltaConfig
from coral.errors import CorruptObject, MissingObject
from coral.maintenance._bases import Bases, Encoding
from coral.maintenance._inventory import Copy, Inventory, settle
from coral.objects import Commit, TensorEntry
from coral.remotes._graph import Parts
from coral.remotes._side import Side
from coral.store import Chain, Copies, Store
from coral.store._pack import RAW, pieces

__all__ = ["Item", "Lost", "Plan", "damaged_copies", "find_lost", "plan_sending", "whole"]

_DEPTH = 2  # differences on one another that the other side is given at most
_FULL = 256 << 20  # bytes after which what is sent goes on in another pack: what a cut may cost


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to send: a copy as it is stored, or a tensor encoded anew, or one that is only here as a difference,
    whole.
    """

    id: str
    copy: Copy
    encoding: Encoding | None = None
    decoded: Chain | None = None

    @property
    def as_stored(self) -> bool:
        """Whether it is sent in the form that it is stored in."""
        return self.encoding is None and self.decoded is None

    @property
    def estimate(self) -> int:
        """About how many bytes that will be."""
        if self.encoding is not None:
            return int(self.encoding.choice.ratio * self.copy.nbytes)
        return self.copy.nbytes if self.decoded is not None else self.copy.size


@dataclass(slots=True)
class Plan:
    """What to send: packs as they are, by name with their size, and items for new packs, each of them one list."""

    packs: dict[str, int] = field(default_factory=dict)
    made: list[list[Item]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """About how many bytes that will be."""
        return sum(self.packs.values()) + sum(item.estimate for items in self.made for item in items)


class _WireBases(Bases):
    """Chooses among tensors that the other side has, none of which is a difference there."""

    __slots__ = ()

    def usable(self, tensor: TensorEntry, source: Chain) -> Chain | None:
        chain = next(self._readable(tensor), None)
        return None if chain is None or any(link.entry.id == source.entry.id for link in chain.links) else chain


@dataclass(slots=True)
class _Anchor:
    """The newest tensor of a name that the other side has whole, or nearly so, and how many commits ago that was."""

    entry: TensorEntry
    distance: int


class Planner:
    """Decides commit by commit, the oldest first, as each may be a difference from those before it."""

    def __init__(self, ours: Store, copies: Copies, inventory: Inventory, theirs: Mapping[str, Copy]) -> None:
        self._ours = ours
        self._copies = copies
        self._inventory = inventory
        self._config = DeltaConfig()
        self._depth: dict[str, int] = {}  # of what the other side has, or is about to have
        self._theirs = theirs
        self._anchors: dict[str, _Anchor] = {}
        self._known: dict[str, dict[str, Choice]] = {"weights": {}, "state": {}}
        self.items: list[Item] = []

    def depth(self, id: str) -> int | None:
        """How many differences lie between a tensor there and one that stands alone; None where it is not there."""
        if id not in self._depth and id in self._theirs:
            base = self._theirs[id].base
            self._depth[id] = 0 if base is None else (self.depth(base) or 0) + 1
        return self._depth.get(id)

    def pass_by(self, parts: Parts) -> None:
        """A commit that is there already: what comes after it may be a difference from it."""
        self._move(parts)

    def send(self, parts: Parts, commit: str | None, lost: set[str]) -> None:
        """Decide on what is missing of a commit, and take it out of `lost`."""
        for name, entry in parts.tensors():
            if entry.id in lost:
                lost.discard(entry.id)
                self._tensor(name, entry)
        for id in [*parts.objects(), *([commit] if commit else [])]:
            if id in lost:
                lost.discard(id)
                self.items.append(Item(id, self._copy_of(id)))
        self._move(parts)

    def object(self, id: str) -> None:
        """Send a commit's record, or the like, alone."""
        self.items.append(Item(id, self._copy_of(id)))

    def _move(self, parts: Parts) -> None:
        for anchor in self._anchors.values():
            anchor.distance += 1
        for name, entry in parts.tensors():
            if self.depth(entry.id) == 0:
                known = self._anchors.get(name)
                if known is None or known.entry.id != entry.id:
                    self._known[name.partition("/")[0]].pop(name, None)
                self._anchors[name] = _Anchor(entry, 0)

    def _tensor(self, name: str, entry: TensorEntry) -> None:
        stored = self._usable(entry.id)
        if stored is not None and (stored.codec != RAW or entry.nbytes < self._config.min_size):
            self._take(Item(entry.id, stored), stored.base)
            return
        encoding = self._encoding(name, entry)
        if encoding is not None and encoding.choice.codec.code != RAW:
            size = entry.nbytes if stored is None else stored.size
            if stored is None or encoding.choice.ratio * entry.nbytes < 0.98 * size:
                base = encoding.base.entry.id if encoding.base else None
                self._take(Item(entry.id, stored or self._copy_of(entry.id), encoding), base)
                return
        if stored is not None:
            self._take(Item(entry.id, stored), stored.base)
            return
        chain = next(self._copies.chains(entry.id), None)
        if chain is None:
            raise _missing(entry.id)
        self._take(Item(entry.id, self._copy_of(entry.id), decoded=chain), None)

    def _take(self, item: Item, base: str | None) -> None:
        self._depth[item.id] = 0 if base is None else (self.depth(base) or 0) + 1
        self.items.append(item)

    def _usable(self, id: str) -> Copy | None:
        """The shortest copy here that the other side can make use of."""
        for copy in sorted(self._inventory.copies.get(id, ()), key=lambda copy: copy.size):
            if copy.base is None:
                return copy
            depth = self.depth(copy.base)
            if depth is not None and depth < _DEPTH:
                return copy
        return None

    def _encoding(self, name: str, entry: TensorEntry) -> Encoding | None:
        part, anchor = name.partition("/")[0], self._anchors.get(name)
        if entry.nbytes < self._config.min_size:
            return None
        keyframe = anchor is None or anchor.distance + 1 >= self._config.group_size
        candidates = {other: a.entry for other, a in self._anchors.items() if other.startswith(part)}
        bases = _WireBases(
            self._copies, self._config, candidates, frozenset(), keyframe, False, {} if keyframe else self._known[part]
        )
        return bases.encoding(name, entry)

    def _copy_of(self, id: str) -> Copy:
        settled, _ = settle(self._inventory, [id], frozenset())
        if id not in settled:
            raise _missing(id)
        return settled[id]


def _missing(id: str) -> MissingObject:
    return MissingObject(f"{id[:12]} is in no pack here that can be read: it cannot be sent. Run fsck.")


def split(items: Iterable[Item], inventory: Inventory) -> Plan:
    """Which packs to send as they are, and what goes into which new one."""
    plan, items = Plan(), list(items)
    by_pack: dict[str, set[str]] = {}
    for item in items:
        if item.as_stored:
            by_pack.setdefault(item.copy.pack, set()).add(item.id)
    for pack, ids in by_pack.items():
        size = inventory.size(pack)
        if size <= _FULL and all(id in ids for id, _ in inventory.held(pack)):
            plan.packs[pack] = size
    batch: list[Item] = []
    size = 0
    for item in items:
        if not (item.as_stored and item.copy.pack in plan.packs):
            batch.append(item)
            size += item.estimate
            if size >= _FULL:
                plan.made.append(batch)
                batch, size = [], 0
    if batch:
        plan.made.append(batch)
    return plan


def whole(chain: Chain) -> Iterator[Bytes]:
    """The bytes of a tensor that is stored as a difference."""
    for start, end in chain.units():
        piece = np.empty(end - start, np.uint8)
        chain.read(start, piece)
        yield piece


def plan_sending(
    ours: Store,
    copies: Copies,
    theirs: Mapping[str, Copy],
    *,
    before: Iterable[Parts],
    commits: Iterable[tuple[str | None, Parts | None]],
    lost: set[str],
    damaged: Iterable[tuple[str, Copy]] = (),
) -> Plan:
    """Plan what to send of `lost`: the parts of some commits, parents first, with the commits where they are missing.

    `before` are the parts of commits that the other side has, in order. A commit without parts is sent as a record.
    `damaged` are copies here that are passed by.
    """
    inventory = Inventory(ours)
    inventory.refresh()
    for id, copy in damaged:
        copies.pass_by(copy.pack, copy.number)
        if copy in inventory.copies.get(id, ()):
            inventory.refuse(id, copy)
    planner = Planner(ours, copies, inventory, theirs)
    try:
        for there in before:
            planner.pass_by(there)
        for commit, parts in commits:
            if parts is not None:
                planner.send(parts, commit, lost)
            elif commit in lost:
                lost.discard(commit)
                planner.object(commit)
    except EOFError as error:
        raise CorruptObject(f"what is to be sent cannot be read: {error}. Run fsck.") from error
    return split(planner.items, inventory)


@dataclass(frozen=True, slots=True)
class Lost:
    """What the other side should have, and has lost."""

    ids: frozenset[str] = frozenset()  # that are here
    commits: Mapping[str, Parts | None] = field(default_factory=dict)  # that lead to these
    unmended: tuple[str, ...] = ()  # commits of which something is not here either


def find_lost(
    ours: Store,
    side: Side,
    commits: Iterable[tuple[Commit, Parts | None]],
    pruned: Callable[[Iterable[str]], set[str]],
) -> Lost:
    """What some commits lead to that the other side has not; `pruned` says which of them it need only have records of.

    A commit that is not whole here comes without parts: its record alone can be sent.
    """
    parts: dict[str, Parts | None] = {}
    lost: dict[str, set[str]] = {}
    for commit, its in commits:
        ids = (
            [commit.tree, commit.state] if its is None else [*its.objects(), *(entry.id for _, entry in its.tensors())]
        )
        if gone := side.settled([commit.id, *filter(None, ids)])[1]:
            lost[commit.id], parts[commit.id] = set(gone), its
    for id in pruned(lost):
        lost[id] &= {id}
    here = Inventory(ours)
    here.refresh()
    away = set(settle(here, set[str]().union(*lost.values()), frozenset())[1])
    found = {id: gone & {id} if parts[id] is None else gone - away for id, gone in lost.items()}
    return Lost(
        frozenset[str]().union(*found.values()),
        {id: parts[id] for id, some in found.items() if some},
        tuple(id for id, gone in lost.items() if gone - found[id]),
    )


def damaged_copies(ours: Store, ids: Iterable[str]) -> set[tuple[str, Copy]]:
    """The copies of some objects, and of their bases, that are not what was stored, where another one is whole.

    All that has several copies is read for it.
    """
    inventory = Inventory(ours)
    inventory.refresh()
    found: set[tuple[str, Copy]] = set()
    seen: set[str] = set()
    waiting = list(ids)
    with ours.copies() as copies:
        while waiting:
            id = waiting.pop()
            if id in seen:
                continue
            seen.add(id)
            held = inventory.copies.get(id, [])
            waiting += [copy.base for copy in held if copy.base]
            bad = [copy for copy in held if _is_damaged(copies, copy)] if len(held) > 1 else []
            if len(bad) < len(held):
                found |= {(id, copy) for copy in bad}
    return found


def _is_damaged(copies: Copies, copy: Copy) -> bool:
    try:
        file, pack = copies.open(copy.pack)
        for _ in pieces(file, pack.checked(copy.number)):
            pass
    except MissingObject:  # it is gone meanwhile
        return False
    except (CorruptObject, EOFError):
        return True
    except OSError as error:
        if not is_unreadable(error):
            raise
        return True
    return False
