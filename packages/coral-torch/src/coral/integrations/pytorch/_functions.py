"""Models to repositories and back, in one call each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict, TypeVar

import numpy as np
from torch import Tensor, nn

from coral import Repository, WeightTensor
from coral.errors import ConfigError, UnknownRef
from coral.integrations.pytorch._fitting import LoadReport
from coral.integrations.pytorch._loading import Device, load_into_model, load_weights
from coral.integrations.pytorch._matching import KeyMap
from coral.integrations.pytorch._modules import module_parts
from coral.integrations.pytorch._opening import RepositoryLike, opened
from coral.integrations.pytorch._remotes import pull, push
from coral.integrations.pytorch._state import keep_all, viewed
from coral.state import StateValue

__all__ = [
    "SaveReport",
    "create_model_from_weights",
    "load_from_remote",
    "load_from_repo",
    "load_model_from_coral",
    "save_model",
    "save_model_to_coral",
]

Module = TypeVar("Module", bound=nn.Module)


class SaveReport(TypedDict):
    """What came of saving: the commit's id, how many weights it has, its branch; and of pushing, if that was asked."""

    commit_hash: str
    weights_saved: int
    branch: str
    push_stats: NotRequired[dict[str, Any]]


def save_model_to_coral(
    model: nn.Module,
    repo: Repository,
    message: str,
    *,
    branch: str | None = None,
    metadata: Mapping[str, StateValue] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Commit a model's parameters and persistent buffers, on a branch (by default HEAD's); returns the commit's id.

    Extra state (`get_extra_state`) that is no tensor is left out, with a warning.
    """
    weights = _views(model)
    return repo.commit(weights, message, branch, metadata=metadata, metrics=metrics)


def save_model(
    model: nn.Module,
    path: RepositoryLike,
    message: str,
    branch: str | None = None,
    push_to: str | None = None,
    *,
    init: bool = True,
    metadata: Mapping[str, StateValue] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> SaveReport:
    """Commit a model to the repository in a folder, which is made if there is none, unless `init=False`.

    `push_to` is a remote, a name or a URL, that the branch is pushed to; `push_stats` says what came of it, and holds
    the `error` where it failed: the commit is made all the same.
    """
    repo = opened(path, init=init)
    weights = _views(model)
    branch = repo.head if branch is None else branch
    commit = repo.commit(weights, message, branch, metadata=metadata, metrics=metrics)
    report = SaveReport(commit_hash=commit, weights_saved=len(weights), branch=branch)
    if push_to is not None:
        report["push_stats"] = push(repo, push_to, branch)
    return report


def load_model_from_coral(
    model: nn.Module,
    repo: Repository,
    commit_ref: str | None = None,
    *,
    strict: bool = True,
    key_map: KeyMap | None = None,
    prefix: str = "",
    device: Device | None = None,
) -> bool:
    """Load a model from a commit, by default HEAD's, as `load_into_model` does.

    False, with nothing done, where there is no such commit yet: no HEAD, "best" or "last". Any other ref that means
    nothing raises UnknownRef, and weights that do not fit WeightsMismatch.
    """
    ref = "HEAD" if commit_ref is None else commit_ref
    try:
        commit = repo.resolve(ref)
    except UnknownRef:
        if ref in ("HEAD", "best", "last", repo.head):
            return False
        raise
    load_weights(model, repo.load(commit), strict=strict, key_map=key_map, prefix=prefix, device=device, fill=True)
    return True


def load_from_repo(
    model: nn.Module,
    path_or_repo: RepositoryLike,
    commit_ref: str | None = None,
    branch: str | None = None,
    device: Device | None = None,
    *,
    strict: bool = True,
    key_map: KeyMap | None = None,
    prefix: str = "",
) -> LoadReport:
    """Load a model from a repository: a commit, or the newest of a branch, or HEAD's; and say what was loaded.

    It is `load_into_model` but for a model on the meta device, which keeps the memory that the weights are read into.
    All of them are read before the model is touched: see `stream_load_model` for one at a time.
    """
    ref = _ref(commit_ref, branch)
    weights = opened(path_or_repo).load(ref)
    return load_weights(model, weights, strict=strict, key_map=key_map, prefix=prefix, device=device, fill=True)


def load_from_remote(
    model: nn.Module,
    path: RepositoryLike,
    remote_name: str = "origin",
    pull_first: bool = True,
    commit_ref: str | None = None,
    branch: str | None = None,
    device: Device | None = None,
    *,
    strict: bool = True,
    key_map: KeyMap | None = None,
    prefix: str = "",
) -> LoadReport:
    """Load a model from what another repository has: a commit, or the newest of a branch, by default that of HEAD here.

    `remote_name` is a remote of the repository at `path`, or a URL, that is pulled from: Diverged where the branch has
    commits here that are not there. The folder of another repository is read where it lies: nothing is copied. With
    `pull_first=False` nobody else is asked, and what is here is loaded. The rest is as for `load_from_repo`.
    """
    repo = opened(path)
    branch = branch or (repo.head if commit_ref is None else None)
    source = pull(repo, remote_name, branch) if pull_first else repo
    weights = source.load(_ref(commit_ref, branch))
    return load_weights(model, weights, strict=strict, key_map=key_map, prefix=prefix, device=device, fill=True)


def create_model_from_weights(
    model_class: Callable[..., Module],
    weights: Mapping[str, WeightTensor | np.ndarray[Any, Any] | Tensor],
    /,
    device: Device | None = None,
    **kwargs: Any,
) -> Module:
    """Make a model of a class, with the `kwargs`, load all its weights, and move it to the device.

    WeightsMismatch lists what does not fit exactly.
    """
    model = model_class(**kwargs)
    load_into_model(model, weights, device=device)
    return model


def _views(model: nn.Module) -> dict[str, WeightTensor]:
    """The model's weights in its own memory, where that will do: a commit has read them when it returns."""
    parts = module_parts(model)
    if parts.extra:
        warnings.warn(f"extra state that is no tensor is left out: {', '.join(parts.extra)}", stacklevel=3)
    return keep_all(parts.tensors, viewed)[0]


def _ref(commit_ref: str | None, branch: str | None) -> str:
    if commit_ref is not None and branch is not None:
        raise ConfigError(
            f"give commit_ref ({commit_ref!r}) or branch ({branch!r}), not both; a branch's best is 'branch@best'"
        )
    if branch is not None:
        return f"refs/heads/{branch}"  # and not a tag of the same name
    return "HEAD" if commit_ref is None else commit_ref
