"""The keywords of a framework's callback, as the CheckpointConfig that they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypedDict

from coral.errors import ConfigError
from coral.store import Durability
from coral.training import CheckpointConfig

__all__ = ["Options", "config_of"]


class Options(TypedDict, total=False):
    """The fields of CheckpointConfig that are keywords of a callback under their own names."""

    save_every_seconds: float | None
    best_threshold: float
    keep_last_n_checkpoints: int | None
    keep_best_n_checkpoints: int | None
    keep_checkpoint_every_n_epochs: int | None
    save_on_interrupt: bool
    save_optimizer_state: bool
    save_scheduler_state: bool
    save_random_state: bool
    commit_message_template: str
    tag_best_checkpoints: bool
    early_stopping_patience: int | None
    early_stopping_threshold: float
    async_save: bool
    durability: Durability
    background_repack: bool
    save_on_request: bool
    handle_signals: bool
    prune_remote: bool
    check_disk: bool


_RENAMED = {"save_on_best_metric": "save_on_best", "minimize_metric": "mode"}


def config_of(
    owner: str, config: CheckpointConfig | None, named: Mapping[str, tuple[Any, Any]], options: Mapping[str, Any]
) -> CheckpointConfig:
    """The config itself, or the one that the keywords make.

    `named` are the callback's own (`save_every_n_epochs`, `save_every_n_steps`, `save_on_best`, `mode` and
    `save_on_train_end`), each with its value and its default; `options` are the others, `owner` is the callback's name.
    ConfigError for both at once, for a keyword that is none, and for a value that cannot be.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise ConfigError(_unknown(owner, name, [*named, *Options.__annotations__]))
    values = {name: value for name, (value, _) in named.items()}
    if values["mode"] not in ("min", "max"):
        raise ConfigError(f'mode is {values["mode"]!r}; it must be "min" or "max".')
    if config is not None:
        if not isinstance(config, CheckpointConfig):
            raise ConfigError(f"config is a {type(config).__name__}; it must be a CheckpointConfig, or None.")
        if both := [name for name, (value, default) in named.items() if value != default] + list(options):
            raise ConfigError(f"config was given, and {', '.join(both)} beside it: say all of it in one of the two.")
        return config
    try:
        return CheckpointConfig(
            save_every_n_epochs=values["save_every_n_epochs"],
            save_every_n_steps=values["save_every_n_steps"],
            save_on_best_metric=values["save_on_best"],
            minimize_metric=values["mode"] == "min",
            save_on_train_end=values["save_on_train_end"],
            **options,
        )
    except ConfigError as error:  # in the caller's words
        raise ConfigError(str(error).replace("save_on_best_metric", "save_on_best")) from None


def _unknown(owner: str, name: str, known: list[str]) -> str:
    near = _RENAMED.get(name) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
    return f"{owner} has no argument {name!r}." + (f" Did you mean {near!r}?" if near else "")
