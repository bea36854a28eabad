"""How a commit is made safe: announce, write, verify, move the ref.

1. an intent names the parent: garbage collection keeps what the commit may build on
2. the pack, with all that is new and the commit itself, is durable before it has its name
3. every copy that is reused is still there, else it is written from memory
4. the ref moves, by compare-and-swap; where another writer was first, only the commit object is written anew
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from coral._unreadable import is_unreadable
from coral.errors import CommitPruned, Conflict, CoralError
from coral.objects import Commit, Note, State, TensorEntry, decode_tree, encode_commit, encode_tree
from coral.state import StateValue, flatten
from coral.store import _refs
from coral.store._chain import Chain, Stored
from coral.store._copies import Copies
from coral.store._intents import Operation, intent
from coral.store._pack import path_of
from coral.store._pack_writer import PackWriter
from coral.store._partial import COMMITTED
from coral.store._saving import Saved, save_tensors
from coral.store._store import Store
from coral.weights import WeightTensor

_log = logging.getLogger("coral")

_TRIES = 1000
_MAX_OPEN = 128  # packs that are open at a time


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be committed; its parent and its ids are found on the way."""

    weights: Mapping[str, WeightTensor]
    message: str
    state: StateValue = None
    metadata: Mapping[str, StateValue] = field(default_factory=dict)
    training: Mapping[str, StateValue] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def commit(store: Store, folder: str, draft: Draft, start: Callable[[], str | None]) -> str:
    """Commit to the branch in `folder`, which begins where `start` says if it is new; returns the commit's id."""
    tip = _refs.read(store.fs, folder, lenient=True)
    parent_id = tip.value if tip and tip.value else start()
    state_tensors: dict[str, WeightTensor] = {}
    state_json = None if draft.state is None else flatten(draft.state, state_tensors)
    tensors = {f"weights/{n}": t for n, t in draft.weights.items()} | {
        f"state/{n}": t for n, t in state_tensors.items()
    }
    with ExitStack() as stack:
        operation = stack.enter_context(intent(store.fs, "commit", [parent_id] if parent_id else []))
        copies = stack.enter_context(store.copies())
        parent = _earlier(store, copies, parent_id, tensors)

        def record(tree: str, state: str | None) -> bytes:
            return encode_commit(
                parents=[parent_id] if parent_id else [],
                tree=tree,
                state=state,
                message=draft.message,
                time=store.fs.now(),
                nbytes=sum(tensor.nbytes for tensor in tensors.values()),
                metadata=draft.metadata,
                training=draft.training,
                metrics=draft.metrics,
                reasons=draft.reasons,
            )

        def fill(writer: PackWriter) -> tuple[dict[str, Saved], str, str | None, str]:
            saved = save_tensors(tensors, writer, parent, _finder(store, copies))
            tree = writer.add_object("tree", encode_tree(_part(saved, "weights/")))
            state = None
            if draft.state is not None:
                state = writer.add_object("state", State(state_json, _part(saved, "state/")).encode())
            return saved, tree, state, writer.add_object("commit", record(tree, state))

        (saved, tree, state, id), _ = store.write_pack(fill, operation)
        reused = {name: done for name, done in saved.items() if done.reused}
        foreign = _foreign(reused, parent)
        if foreign:
            operation.needs(foreign)
        _verify(store, operation, reused, tensors)
        for attempt in range(_TRIES):
            why = COMMITTED + draft.message.partition("\n")[0][:200]
            if parent_id and not (tip and tip.value and tip.synced):
                store.ensure_history_synced()
            try:
                store.move_ref(folder, id, after=tip, why=why)
                break
            except Conflict:
                if attempt + 1 == _TRIES:
                    raise
                time.sleep(random.random() * min(0.1, 0.001 * 2**attempt))
                tip = _refs.read(store.fs, folder, lenient=True)
                parent_id = tip.value if tip and tip.value else start()
                id, _ = store.write_pack(lambda writer: writer.add_object("commit", record(tree, state)), operation)
    store.acknowledge()
    with suppress(OSError, CoralError):  # the commit is made: the index is only derived from it
        store.index.cover()
    return id


def merged(
    store: Store, operation: Operation, ours: str, theirs: str, message: str, winner: Literal["ours", "theirs"]
) -> str:
    """Write a commit that follows two others, and has the weights and the state of one of them; returns its id.

    The caller moves a branch to it while the operation holds it.
    """
    operation.needs([ours, theirs])
    kept = store.read_commit(ours if winner == "ours" else theirs)
    if kept.pruned:
        raise CommitPruned(f"{kept.id[:12]} was pruned: a merge cannot go on with its weights", ref=kept.id)
    data = encode_commit(
        parents=[ours, theirs],
        tree=kept.tree,
        state=kept.state,
        message=message,
        time=store.fs.now(),
        nbytes=kept.nbytes,
        metadata={},
        training={},
        metrics={},
        reasons=(),
    )
    return store.write_pack(lambda writer: writer.add_object("commit", data), operation)[0]


def annotate(store: Store, commit: Commit, note: Note, state: StateValue) -> None:
    """Add a note to a commit; a later training state, if one is given, is stored for it to name."""
    if state is None:
        store.add_note(commit.id, note)
        return
    value = state
    tensors: dict[str, WeightTensor] = {}
    json = flatten(value, tensors)
    prefixed = {f"state/{name}": tensor for name, tensor in tensors.items()}
    with ExitStack() as stack:
        operation = stack.enter_context(intent(store.fs, "state", [commit.id]))
        copies = stack.enter_context(store.copies())
        parent = _earlier(store, copies, commit.id, prefixed)

        def fill(writer: PackWriter) -> tuple[dict[str, Saved], str]:
            saved = save_tensors(prefixed, writer, parent, _finder(store, copies))
            return saved, writer.add_object("state", State(json, _part(saved, "state/")).encode())

        (saved, id), _ = store.write_pack(fill, operation)
        reused = {name: done for name, done in saved.items() if done.reused}
        if foreign := _foreign(reused, parent):
            operation.needs(foreign)
        _verify(store, operation, reused, prefixed)
        store.add_note(commit.id, replace(note, state=id))


def _finder(store: Store, copies: Copies) -> Callable[[str], Chain | None] | None:
    """Finds a copy by its id, as long as not too many packs are open; None where there is nothing to find."""

    def find(id: str) -> Chain | None:
        stored = copies.known(id) if len(copies) < _MAX_OPEN else None
        try:
            return copies.chain(stored) if stored else None
        except CoralError:  # a difference whose base is gone
            return None

    return find if store.index.any() else None


def _foreign(reused: Mapping[str, Saved], parent: Mapping[str, Stored]) -> set[str]:
    """Ids of copies that are reused and are not the parent's, so that the parent's intent does not cover them."""
    return {
        done.entry.id for name, done in reused.items() if name not in parent or parent[name].entry.id != done.entry.id
    }


def _part(saved: Mapping[str, Saved], prefix: str) -> dict[str, TensorEntry]:
    return {name[len(prefix) :]: done.entry for name, done in saved.items() if name.startswith(prefix)}


def _earlier(store: Store, copies: Copies, id: str | None, tensors: Mapping[str, WeightTensor]) -> dict[str, Stored]:
    """Those of the parent's tensors that are stored whole, by name; those that cannot be read are written again."""
    if id is None:
        return {}
    try:
        commit = store.read_commit(id)
        tree = decode_tree(store.read_object("tree", commit.tree), "the parent's tree")
        entries = {f"weights/{name}": entry for name, entry in tree.items()}
        if commit.state and any(name.startswith("state/") for name in tensors):
            state = State.decode(store.read_object("state", commit.state), "the parent's state")
            entries |= {f"state/{name}": entry for name, entry in state.tensors.items()}
    except (CoralError, OSError) as error:
        if not isinstance(error, CoralError) and not is_unreadable(error):
            raise
        _log.warning("the parent %s cannot be read (%s): storing everything whole", id[:12], error)
        return {}
    found = {}
    for name, tensor in tensors.items():
        entry = entries.get(name)
        if entry and (entry.dtype, entry.shape) == (tensor.dtype, tensor.shape):
            stored = copies.known(entry.id)
            if stored and stored.whole and stored.entry.nbytes == tensor.nbytes:
                found[name] = stored
            if len(copies) >= _MAX_OPEN:  # what lies in yet other packs is written anew, and so brought together
                break
    return found


def _verify(
    store: Store, operation: Operation, reused: Mapping[str, Saved], tensors: Mapping[str, WeightTensor]
) -> None:
    """Make sure that every reused copy is where others will look for it; write from memory what is not."""
    packs = {link.pack.name: link.pack for done in reused.values() if done.reused for link in done.reused.links}
    gone = set()
    for name in packs:
        try:
            store.fs.stat(path_of(name))
        except FileNotFoundError:
            store.index.forget(name)
            gone.add(name)
    gone |= store.ensure_synced(pack for name, pack in packs.items() if name not in gone)
    lost = {
        name: done
        for name, done in reused.items()
        if done.reused and any(link.pack.name in gone for link in done.reused.links)
    }
    if lost:

        def fill(writer: PackWriter) -> None:
            for name, done in lost.items():
                done.write(writer, tensors[name].bytes())

        store.write_pack(fill, operation)
