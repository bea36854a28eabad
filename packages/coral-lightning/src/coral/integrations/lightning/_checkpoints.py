"""A trainer's whole checkpoint as a commit holds it, and back: the dict that Lightning writes to a .ckpt file."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from coral import Repository, WeightTensor
from coral.errors import UnsupportedValue
from coral.integrations.pytorch._kinds import check_optimizer_kind, check_scheduler_kind
from coral.integrations.pytorch._modules import versions_of
from coral.integrations.pytorch._optimizers import decoded_scheduler, stepped
from coral.integrations.pytorch._state import Keep, decode, encode
from coral.integrations.pytorch._tensors import from_weight, to_weight
from coral.state import flatten, unflatten

__all__ = [
    "OURS",
    "Origin",
    "check_kinds",
    "dump",
    "dump_alone",
    "dump_weights",
    "encoded",
    "origin_of",
    "plain",
    "read",
    "versions",
]

OURS = "coral"
"""The key that a checkpoint read from a repository has beside Lightning's own."""

_VERSION = importlib.metadata.version("pytorch-lightning")
_NEEDED = {"epoch", "global_step", "pytorch-lightning_version", "loops", "optimizer_states", "lr_schedulers"}


def dump(trainer: Any) -> dict[str, Any]:
    """The checkpoint as the trainer would write it now, with what users' hooks add to it; all processes call it.

    Its tensors are the live ones; those of a sharded model are whole, and on rank 0 alone. The public way,
    `save_checkpoint`, waits for all processes and writes a file.
    """
    with _unsharded(trainer.strategy):
        found: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        return found


def dump_weights(trainer: Any) -> dict[str, Any]:
    """The same of the weights alone; all processes call it where the model is sharded.

    Callbacks' hooks count, too, as they do in no `save_weights_only` of Lightning's own: those of one that averages
    weights put the averages in their place, which are what was evaluated.
    """
    with _unsharded(trainer.strategy):
        found: dict[str, Any] = {**_described(trainer), "state_dict": trainer.strategy.lightning_module_state_dict()}
    module = trainer.lightning_module
    for each in trainer.callbacks:
        each.on_save_checkpoint(trainer, module, found)
    module.on_save_checkpoint(found)
    return found


def _described(trainer: Any) -> dict[str, Any]:
    """What a checkpoint has in any case, for hooks that look at it."""
    return {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": _VERSION,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }


@contextmanager
def _unsharded(strategy: Any) -> Iterator[None]:
    """Have ModelParallelStrategy bring shards together: by default it leaves each where it is, for files of its own."""
    name = "_save_distributed_checkpoint"
    before = getattr(strategy, name, None)
    if before is not None:
        setattr(strategy, name, False)
    try:
        yield
    finally:
        if before is not None:
            setattr(strategy, name, before)


def dump_alone(trainer: Any) -> dict[str, Any]:
    """What one process of several can tell of it by itself: nothing that may have to ask the others."""
    return {
        **_described(trainer),
        "state_dict": trainer.lightning_module.state_dict(),
        "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "lr_schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
    }


def encoded(
    checkpoint: Mapping[str, Any], keep: Keep, *, needed: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint, without its weights, as a commit can hold it; and the paths of what it cannot.

    What Lightning itself resumes by, and what is `needed` besides, has to be held: UnsupportedValue names what is not.
    The rest, hyperparameters, callbacks' states and what users' hooks add, is left out where it is not plain data.
    """
    state: dict[str, Any] = {}
    left: list[str] = []
    for key, value in checkpoint.items():
        if key == "state_dict":
            continue
        if key in _NEEDED or key in needed:
            state[key] = _checked(value, key, keep)
        elif isinstance(value, dict):
            state[key] = {}
            for name, each in value.items():
                _hold(state[key], name, each, f"{key}.{name}", keep, left)
        else:
            _hold(state, key, value, key, keep, left)
    return state, left


def _hold(state: dict[Any, Any], key: Any, value: Any, path: str, keep: Keep, left: list[str]) -> None:
    try:
        state[key] = _checked(value, path, keep)
    except UnsupportedValue:
        left.append(path)


def _checked(value: Any, path: str, keep: Keep) -> Any:
    """The value encoded, where all of it, keys too, can be stored."""
    made = encode(value, path, keep)
    try:
        flatten(made, {})
    except UnsupportedValue as error:
        raise UnsupportedValue(f"{path}: {error}", path=path) from None
    return made


def versions(state_dict: Mapping[str, Any], keep: Keep) -> Any:
    """The versions of the modules that a state_dict was taken from, by which they tell what they have to migrate."""
    return encode(versions_of(getattr(state_dict, "_metadata", {})), "versions", keep)


def _of_versions(state_dict: Mapping[str, Any], saved: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The state_dict as one that says of which versions it is."""
    found: OrderedDict[str, Any] = OrderedDict(state_dict)
    parts = [name.split(".") for name in found]
    paths = {".".join(each[:length]) for each in parts for length in range(len(each))}
    found._metadata = {path: {"version": saved.get(path, 1)} for path in sorted(paths)}  # type: ignore[attr-defined]
    return found


class Origin(NamedTuple):
    """Where a checkpoint was read from, and what each process has for itself: `random`, `generators` and `loaders`."""

    commit: str
    repository: str
    complete: bool
    exact: bool
    why: str
    within_epoch: bool
    ranks: list[Any]

    def of_rank(self, rank: int) -> Mapping[str, Any]:
        """What a process has for itself; the first one's where there were fewer of them."""
        found: Mapping[str, Any] = self.ranks[rank if rank < len(self.ranks) else 0] if self.ranks else {}
        return found


def read(repo: Repository, ref: str) -> dict[str, Any]:
    """A commit as a checkpoint for a trainer, with its Origin packed under `coral`.

    One that was saved without the state of the loop has weights alone: it will do for validate and test.
    """
    commit = repo.show(ref)
    weights = repo.load(commit.id)
    state = repo.load_state(commit.id)
    found: Mapping[str, Any] = state if isinstance(state, dict) else {}
    loop = decode(found.get("lightning", {}))
    if "lr_schedulers" in loop:
        loop["lr_schedulers"] = [decoded_scheduler(each) for each in loop["lr_schedulers"]]
    origin = Origin(
        commit=commit.id,
        repository=str(repo.path.resolve()),
        complete="lightning" in found,
        exact=commit.exact,
        why=str(commit.training.get("why", "")),
        within_epoch=bool(found.get("within_epoch")),
        ranks=list(found.get("ranks", [])),
    )
    base = {
        "epoch": commit.epoch or 0,
        "global_step": commit.step or 0,
        "pytorch-lightning_version": _VERSION,
        "callbacks": {},
    }
    state_dict = {name: from_weight(weights[name]) for name in weights} | decode(found.get("extra", {}))
    if "versions" in found:
        state_dict = _of_versions(state_dict, decode(found["versions"]))
    return {**base, **loop, "state_dict": state_dict, OURS: _pack(origin._asdict())}


def origin_of(checkpoint: Mapping[str, Any]) -> Origin | None:
    """The origin of a checkpoint that `read` made, even if it has been a file since; None for any other."""
    packed = checkpoint.get(OURS)
    return Origin(**_unpack(packed)) if isinstance(packed, dict) else None


def plain(value: Any) -> Any:
    """The value with tensors for arrays and numbers for numpy's: all that torch.load takes without running code."""
    match value:
        case np.generic():
            return value.item()
        case np.ndarray():
            return from_weight(WeightTensor(value)).clone()
        case OrderedDict():  # a state_dict has attributes that count
            made = OrderedDict((key, plain(child)) for key, child in value.items())
            vars(made).update(plain(vars(value)))
            return made
        case Counter():
            return Counter({key: plain(child) for key, child in value.items()})
        case dict():
            return {key: plain(child) for key, child in value.items()}
        case list():
            return [plain(child) for child in value]
        case tuple():
            return tuple(plain(child) for child in value)
        case _:
            return value


def _pack(value: Mapping[str, Any]) -> dict[str, Any]:
    """Nested state as text and tensors: a form that a .ckpt file can hold, too."""
    tensors: dict[str, Any] = {}
    text = json.dumps(flatten(dict(value), tensors))
    return {"json": text, "tensors": {name: from_weight(weight).clone() for name, weight in tensors.items()}}


def _unpack(packed: Mapping[str, Any]) -> Any:
    tensors: Mapping[str, Tensor] = packed["tensors"]
    return unflatten(json.loads(packed["json"]), lambda name: to_weight(tensors[name], name), "a checkpoint's origin")


def check_kinds(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Raise WeightsMismatch if a checkpoint is of other kinds of optimizers or schedulers than the trainer has made.

    Lightning itself loads what comes, and leaves out what it has nothing for. Groups of other sizes are its to refuse,
    once all callbacks have made theirs. The SWALR that StochasticWeightAveraging has put in a scheduler's place is that
    callback's to put there again.
    """
    for optimizer, state in zip(trainer.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
        steps = stepped(optimizer)
        if steps is None:
            continue
        groups = (steps.param_groups, state["param_groups"])
        have, got = ([len(group["params"]) for group in each] for each in groups)
        if have == got:
            check_optimizer_kind(steps, state)
    names = {kind.__name__ for each in trainer.callbacks for kind in type(each).__mro__}  # of either package
    for each, state in zip(trainer.lr_scheduler_configs, checkpoint.get("lr_schedulers", ()), strict=False):
        if not ("anneal_epochs" in state and "StochasticWeightAveraging" in names):
            check_scheduler_kind(each.scheduler, state)
