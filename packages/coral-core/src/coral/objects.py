"""Trees, states and commits: what they hold, their bytes, their ids.

Each is JSON, stored once under an id that is the SHA-256 of its bytes (`coral._digest.object_id`). Only what a commit
says of itself is here; what came later stands in notes (`coral.store.Note`), which `Commit.annotated` merges in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from coral import _json
from coral.errors import CoralError, CorruptObject, NewerFormat, UnsafeInput, UnsupportedValue
from coral.state import StateValue, flatten, plain
from coral.weights import MAX_BYTES, WeightTensor, check_name, check_shape

__all__ = ["Commit", "Note", "State", "TensorEntry", "Tree"]

_ID = re.compile("[0-9a-f]{64}")
_FLOAT_BITS = 1023
_ENTRY_FIELDS = {"dtype", "id", "shape"}


def is_id(text: object) -> bool:
    """Whether it is a whole id: 64 lower-case hex digits."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def is_time(value: object) -> bool:
    """Whether it is a point in time, in seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


class TensorEntry(NamedTuple):
    """What a tree says of a tensor: enough to know it without reading it."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    id: str


Tree = Mapping[str, TensorEntry]
"""Tensors by name."""


def encode_tree(tree: Tree) -> bytes:
    """The bytes of a tree object."""
    return _json.dumps({"tensors": _tensors_to_json(tree)})


def decode_tree(data: bytes, what: str) -> dict[str, TensorEntry]:
    """A tree from untrusted bytes."""
    return _tensors_from_json(_fields(_json.loads(data, what), {"tensors": dict}, what)["tensors"], what)


@dataclass(frozen=True, slots=True)
class State:
    """Training state: tagged JSON (`coral.state`) and the tensors that it names."""

    value: Any
    tensors: Tree

    def encode(self) -> bytes:
        """The bytes of a state object. The order of keys is kept: an optimizer's dicts have one."""
        return _json.dumps({"tensors": _tensors_to_json(self.tensors), "value": self.value}, sort=False)

    @classmethod
    def decode(cls, data: bytes, what: str) -> State:
        """A state from untrusted bytes."""
        fields = _fields(_json.loads(data, what), {"tensors": dict, "value": object}, what)
        return cls(fields["value"], _tensors_from_json(fields["tensors"], what))


def _tensors_to_json(tree: Tree) -> dict[str, Any]:
    return {name: {"dtype": e.dtype, "id": e.id, "shape": list(e.shape)} for name, e in tree.items()}


def _tensors_from_json(found: Mapping[str, Any], what: str) -> dict[str, TensorEntry]:
    tree = {}
    for name, entry in found.items():
        if not isinstance(entry, dict) or entry.keys() != _ENTRY_FIELDS or not is_id(entry["id"]):
            if isinstance(entry, dict) and "pieces" in entry:
                raise NewerFormat(f"{what}: tensor {name[:60]!r} is stored in pieces; a newer coral reads it")
            raise CorruptObject(f"{what}: tensor {name[:60]!r} has not a dtype, a shape and an id", tensor=name)
        try:
            check_name(name)
            shape, nbytes = check_shape(entry["shape"], entry["dtype"])
        except UnsafeInput as error:
            raise CorruptObject(f"{what}: {error}", tensor=name) from error
        tree[name] = TensorEntry(entry["dtype"], shape, nbytes, entry["id"])
    return tree


@dataclass(frozen=True, slots=True)
class Note:
    """What became known of a commit after it was made: late metrics, reasons, that it was pruned, a later state."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: frozenset[str] = frozenset()
    pruned: bool = False
    state: str | None = None
    training: Mapping[str, StateValue] = field(default_factory=dict)
    time: float = 0.0
    synced: bool = field(default=True, compare=False)  # written durably
    local: bool = False  # of this copy of the repository alone, as that it was made without this commit's tensors

    def encode(self, commit: str) -> bytes:
        """The bytes of a note file on a commit, without their checksum line."""
        fields: dict[str, Any] = {"commit": commit, "time": self.time}
        if self.metrics:
            fields["metrics"] = flatten(dict(self.metrics), None)
        if self.reasons:
            fields["reasons"] = sorted(self.reasons)
        if self.pruned:
            fields["pruned"] = True
        if self.state:
            fields["state"] = self.state
        if self.training:
            fields["training"] = flatten(dict(self.training), None)
        if not self.synced:
            fields["synced"] = False
        if self.local:
            fields["local"] = True
        return _json.dumps(fields)

    @classmethod
    def decode(cls, data: bytes, commit: str, what: str) -> Note:
        """A note on a commit from untrusted bytes; fields that a newer coral added are left alone."""
        fields = _json.loads(data, what)
        match fields:
            case {"commit": str(its), "time": time} if is_time(time) and its == commit:
                state, pruned = fields.get("state"), fields.get("pruned", False)
                if (state is not None and not is_id(state)) or not isinstance(pruned, bool):
                    raise CorruptObject(f"{what}: not a note", path=what)
                metrics = plain(fields.get("metrics", {}), what)
                reasons = frozenset(_words(fields.get("reasons", []), what))
                training = _training(plain(fields.get("training", {}), what), what)
                synced, local = fields.get("synced", True) is not False, fields.get("local", False) is True
                return cls(_metrics(metrics, what), reasons, pruned, state, training, float(time), synced, local)
            case _:
                raise CorruptObject(f"{what}: not a note", path=what)


@dataclass(frozen=True, slots=True)
class Commit:
    """One saved moment: its record, and the ids under which its tensors lie.

    `metrics`, `reasons` and `pruned` include what notes added later. `training` is what the run said of itself
    (`step`, `epoch`, `run`, `experiment`, ...: see docs/format.md). `time` is in seconds since the epoch, `nbytes`
    the size of all its tensors, training state included, as they are in memory.
    """

    id: str
    parents: tuple[str, ...]
    tree: str
    message: str
    time: float
    nbytes: int
    state: str | None = None
    metadata: Mapping[str, StateValue] = field(default_factory=dict)
    training: Mapping[str, StateValue] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    pruned: bool = False

    @property
    def step(self) -> int | None:
        """Optimizer updates completed, or None where it was not made by a training run."""
        return _int_or_none(self.training.get("step"))

    @property
    def epoch(self) -> int | None:
        """The 0-based epoch it was made in."""
        return _int_or_none(self.training.get("epoch"))

    @property
    def run(self) -> str | None:
        """The id of the run that made it."""
        return _str_or_none(self.training.get("run"))

    @property
    def experiment(self) -> str | None:
        """The experiment that its run belongs to."""
        return _str_or_none(self.training.get("experiment"))

    @property
    def previous(self) -> str | None:
        """The checkpoint that this one's training went on from: the run's one before, or what the run resumed."""
        return _str_or_none(self.training.get("previous"))

    @property
    def resumed_from(self) -> str | None:
        """The commit that its run went on from."""
        return _str_or_none(self.training.get("resumed_from"))

    @property
    def exact(self) -> bool:
        """Whether going on from here repeats the run that was not interrupted, to the bit."""
        return bool(self.training.get("exact", True))

    def annotated(self, notes: Iterable[Note]) -> Commit:
        """The commit with its notes merged in; the order of notes is by their time, and later metrics win."""
        found = sorted(notes, key=lambda note: note.time)
        if not found:
            return self
        metrics, reasons, state = dict(self.metrics), set(self.reasons), self.state
        training = dict(self.training)
        for note in found:
            metrics.update(note.metrics)
            reasons |= note.reasons
            state = note.state or state
            training.update(note.training)
        return replace(
            self,
            metrics=MappingProxyType(metrics),
            reasons=tuple(sorted(reasons)),
            pruned=any(note.pruned for note in found),
            state=state,
            training=MappingProxyType(training),
        )


def encode_commit(
    *,
    parents: Sequence[str],
    tree: str,
    state: str | None,
    message: str,
    time: float,
    nbytes: int,
    metadata: Mapping[str, StateValue],
    training: Mapping[str, StateValue],
    metrics: Mapping[str, float],
    reasons: Iterable[str],
) -> bytes:
    """The bytes of a commit object."""
    return _json.dumps(
        {
            "message": message,
            "metadata": flatten(dict(metadata), None),
            "metrics": flatten(dict(metrics), None),
            "nbytes": nbytes,
            "parents": list(parents),
            "reasons": sorted(reasons),
            "state": state,
            "time": time,
            "training": flatten(dict(training), None),
            "tree": tree,
        }
    )


_COMMIT_FIELDS: dict[str, Any] = {
    "message": str,
    "metadata": dict,
    "metrics": dict,
    "nbytes": int,
    "parents": list,
    "reasons": list,
    "state": (str, type(None)),
    "time": (int, float),
    "training": dict,
    "tree": str,
}


def decode_commit(data: bytes, id: str) -> Commit:
    """A commit from untrusted bytes."""
    what = f"commit {id[:12]}"
    found = _fields(_json.loads(data, what), _COMMIT_FIELDS, what)
    parents = found["parents"]
    if not 0 <= found["nbytes"] <= MAX_BYTES:
        raise CorruptObject(f"{what}: nbytes is no size", commits=[id])
    if not is_time(found["time"]):
        raise CorruptObject(f"{what}: its time is not a time", commits=[id])
    if (
        not is_id(found["tree"])
        or not all(map(is_id, parents))
        or not (found["state"] is None or is_id(found["state"]))
    ):
        raise CorruptObject(f"{what}: a parent, tree or state is not an id", commits=[id])
    return Commit(
        id=id,
        parents=tuple(parents),
        tree=found["tree"],
        state=found["state"],
        message=found["message"],
        time=float(found["time"]),
        nbytes=found["nbytes"],
        metadata=MappingProxyType(dict(plain(found["metadata"], what))),
        training=MappingProxyType(_training(plain(found["training"], what), what)),
        metrics=MappingProxyType(_metrics(plain(found["metrics"], what), what)),
        reasons=tuple(_words(found["reasons"], what)),
    )


def _fields(found: Any, expected: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise CorruptObject(f"{what}: has not the fields {', '.join(expected)}")
    for name, kind in expected.items():
        if not isinstance(found[name], kind) or (isinstance(found[name], bool) and kind is not object):
            raise CorruptObject(f"{what}: field {name!r} has the wrong type")
    return found


def _metrics(found: Mapping[str, Any], what: str) -> dict[str, float]:
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found.values()):
        raise CorruptObject(f"{what}: a metric is not a number")
    if any(isinstance(v, int) and v.bit_length() > _FLOAT_BITS for v in found.values()):
        raise CorruptObject(f"{what}: a metric is too large for a float")
    return dict(found)


def _training(found: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What a run says of itself: its step and epoch stand in messages, and are numbers that can be shown."""
    if any(isinstance(found.get(name), int) and found[name].bit_length() > 63 for name in ("step", "epoch")):
        raise CorruptObject(f"{what}: its step or epoch is too large")
    return dict(found)


def _words(found: Any, what: str) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise CorruptObject(f"{what}: reasons are not a list of words")
    return sorted(found)


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _str_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def clean_fields(fields: object, what: str) -> dict[str, StateValue]:
    """A mapping with str keys, as a dict; none for None. `what` names it in the error."""
    if fields is None:
        return {}
    if not isinstance(fields, Mapping) or not all(isinstance(key, str) for key in fields):
        raise UnsupportedValue(f"{what} is a mapping with str keys, not {str(fields)[:60]!r}", path=what)
    return dict(fields)


def clean_reasons(reasons: object) -> tuple[str, ...]:
    """Words, sorted."""
    if isinstance(reasons, str) or not isinstance(reasons, Iterable):
        raise UnsupportedValue(f"reasons are a collection of words, not {str(reasons)[:60]!r}", path="reasons")
    return tuple(sorted(check_name(reason, "reason") for reason in reasons))


def clean_metrics(metrics: object) -> dict[str, float]:
    """Metrics as floats; UnsafeInput names one that is not a number (NaN and inf are numbers)."""
    found = {}
    for name, value in clean_fields(metrics, "metrics").items():
        check_name(name, "metric name")
        try:
            if isinstance(value, (str, bytes, bool)):
                raise TypeError
            found[name] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UnsafeInput(f"metric {name!r} is not a number: {str(value)[:60]!r}") from None
    return found


def clean_weights(weights: Mapping[str, Any]) -> dict[str, WeightTensor]:
    """Weights as WeightTensors, their names checked; an error names the tensor."""
    found = {}
    for name, value in weights.items():
        check_name(name)
        try:
            found[name] = value if isinstance(value, WeightTensor) else WeightTensor(value)
        except CoralError as error:
            error.args = (f"tensor {name!r}: {error}",)
            raise
    return found
