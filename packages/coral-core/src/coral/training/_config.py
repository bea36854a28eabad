"""When to save, what to keep, and what goes into a checkpoint: the options of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Literal, get_args

from coral.errors import ConfigError

Durability = Literal["full", "batch", "fast"]

_PLACEHOLDERS = ("experiment", "step", "epoch", "reasons", "metrics")


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The options of checkpointing; an option left alone is off, and without a budget everything is kept.

    Triggers: a checkpoint is saved every so many steps (optimizer updates), complete epochs or seconds (0 or None is
    off), and whenever `save_on_best_metric` is better than ever, by more than `best_threshold`.

    Budgets: the last n and the best n checkpoints are kept, and those of every n-th complete epoch on top; whatever is
    in none of them is pruned. A budget of None asks for nothing, and with neither of the first two nothing is pruned.
    The newest checkpoint and the best one always stay; so does the newest that no interrupt alone has made, and what an
    exception alone has made takes no place among the last.

    Early stopping: after `early_stopping_patience` evaluations in a row without a gain of more than
    `early_stopping_threshold` in the metric of `save_on_best_metric`.

    Space: what is pruned is freed as the run goes on. With `background_repack`, a process of lowest priority stores the
    checkpoints behind the newest as differences, whenever 16 MiB have been saved. With `check_disk`, what a save needs
    is compared with what is free: it warns early, and where a save does not fit it frees what is pruned, and after that
    prunes what the save itself would push out of the budgets; never the newest checkpoint, and never the best.

    By hand: with `save_on_request`, a file named SAVE in the repository's folder asks for a save at the end of the step
    or epoch that is under way, and is removed when that is saved. With `handle_signals`, SIGUSR1 asks for one, too, and
    SIGTERM for one and the end of the training: once, a second one does what it would have done without coral. The
    handlers that were there before come back when the run is closed.

    Elsewhere: with `prune_remote`, what is pruned is pruned where the run is pushed to, too.

    Raises ConfigError for a value, or a pair of values, that cannot be.

    >>> from coral.training import CheckpointConfig
    >>> config = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="val_loss", keep_last_n_checkpoints=5)
    """

    save_every_n_steps: int | None = None
    save_every_n_epochs: int | None = None
    save_every_seconds: float | None = None
    save_on_best_metric: str | None = None
    minimize_metric: bool = True
    best_threshold: float = 0.0
    keep_last_n_checkpoints: int | None = None
    keep_best_n_checkpoints: int | None = None
    keep_checkpoint_every_n_epochs: int | None = None
    save_on_train_end: bool = True
    save_on_interrupt: bool = True
    save_optimizer_state: bool = True
    save_scheduler_state: bool = True
    save_random_state: bool = True
    commit_message_template: str = "{experiment}: step {step} ({reasons})"
    tag_best_checkpoints: bool = True
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    async_save: bool = True
    durability: Durability = "full"
    background_repack: bool = True
    save_on_request: bool = True
    handle_signals: bool = False
    prune_remote: bool = False
    check_disk: bool = True

    def __post_init__(self) -> None:
        for name in ("save_every_n_steps", "save_every_n_epochs", "keep_checkpoint_every_n_epochs"):
            self._check_whole(name, least=0, unset="0 or None for never")
        for name in ("keep_last_n_checkpoints", "keep_best_n_checkpoints"):
            self._check_whole(name, least=1, unset="None for no such budget")
        self._check_whole("early_stopping_patience", least=1, unset="None for no early stopping")
        if self.save_every_seconds is not None:
            self._check_number("save_every_seconds", "a number of seconds, 0 or more, or None for never")
        for name in ("best_threshold", "early_stopping_threshold"):
            self._check_number(name, "a finite number, 0 or more")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, "True or False")
        self._check_metric()
        self._check_template()
        if self.durability not in get_args(Durability):
            raise self._wrong("durability", 'one of "full", "batch" and "fast"')

    def commit_message(
        self,
        *,
        experiment: str,
        step: int,
        epoch: int | None,
        reasons: Iterable[str],
        metrics: Mapping[str, float],
    ) -> str:
        """The message of a checkpoint's commit. `epoch` is text in the template, as it may be unknown: "-"."""
        return self.commit_message_template.format(
            experiment=experiment,
            step=step,
            epoch="-" if epoch is None else str(epoch),
            reasons=", ".join(sorted(reasons)),
            metrics=", ".join(f"{name}={value:.6g}" for name, value in sorted(metrics.items())),
        )

    def _wrong(self, name: str, allowed: str) -> ConfigError:
        return ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")

    def _check_whole(self, name: str, *, least: int, unset: str) -> None:
        value = getattr(self, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise self._wrong(name, f"an int, 1 or more, or {unset}")

    def _check_number(self, name: str, allowed: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise self._wrong(name, allowed)

    def _check_metric(self) -> None:
        metric: object = self.save_on_best_metric
        if metric is not None and (not isinstance(metric, str) or not metric.strip()):
            raise self._wrong("save_on_best_metric", "the name of a metric, or None")
        for name in ("keep_best_n_checkpoints", "early_stopping_patience"):
            if metric is None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but save_on_best_metric is None: "
                    f"name the metric to judge by, or leave {name} at None."
                )

    def _check_template(self) -> None:
        allowed = "a format string of " + ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
        template: object = self.commit_message_template
        if not isinstance(template, str):
            raise self._wrong("commit_message_template", allowed)
        try:
            unknown = {field for _, field, _, _ in Formatter().parse(template) if field is not None} - {*_PLACEHOLDERS}
            if not unknown:
                self.commit_message(experiment="", step=0, epoch=0, reasons=(), metrics={})
        except (ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"commit_message_template is {template!r}: {error}; it must be {allowed}.") from error
        if unknown:
            named = ", ".join(f"{{{name}}}" for name in sorted(unknown))
            raise ConfigError(f"commit_message_template is {template!r}; it must be {allowed}, and not hold {named}.")


_FLAGS = (
    "minimize_metric",
    "save_on_train_end",
    "save_on_interrupt",
    "save_optimizer_state",
    "save_scheduler_state",
    "save_random_state",
    "tag_best_checkpoints",
    "async_save",
    "background_repack",
    "save_on_request",
    "handle_signals",
    "prune_remote",
    "check_disk",
)

DEFAULT_CONFIG = CheckpointConfig(
    save_every_n_epochs=1,
    save_on_best_metric="loss",
    keep_last_n_checkpoints=5,
    keep_best_n_checkpoints=3,
)
"""What holds where no config is given."""
