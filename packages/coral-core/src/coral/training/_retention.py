"""Which of the saved checkpoints stay: scores, ranks and budgets."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import get_args

from coral.training._config import CheckpointConfig
from coral.training._events import Cause
from coral.training._policy_state import Best, Kept

_INTERRUPTS = frozenset(get_args(Cause))  # "requested" is also the reason of a save asked for by hand


def cost(config: CheckpointConfig, score: float) -> float:
    """The score with its sign turned so that lower is better."""
    return score if config.minimize_metric else -score


def beats(config: CheckpointConfig, score: float, mark: float | None, threshold: float) -> bool:
    """Whether `score` is strictly better than `mark`, by more than `threshold`; anything is better than no mark."""
    return mark is None or cost(config, mark) - cost(config, score) > threshold


def best_among(config: CheckpointConfig, checkpoints: Iterable[Kept]) -> Best | None:
    """The best of those that were judged to be the best when they came."""
    once_best = (kept for kept in checkpoints if "best" in kept.reasons)
    return next((Best(kept.step, score) for score, kept in _ranked(config, once_best)), None)


def has_budget(config: CheckpointConfig) -> bool:
    """Whether anything is ever pruned, so that checkpoints have to be tracked at all."""
    return config.keep_last_n_checkpoints is not None or config.keep_best_n_checkpoints is not None


def is_permanent(config: CheckpointConfig, epoch: int | None) -> bool:
    """Whether a checkpoint at the end of that complete epoch is never pruned."""
    every = config.keep_checkpoint_every_n_epochs or 0
    return every > 0 and epoch is not None and (epoch + 1) % every == 0


def standing(reasons: Set[str]) -> int:
    """What a checkpoint is to the budget of the last: 0 of an exception alone, 1 of any interrupt alone, 2 sound."""
    return 0 if reasons == {"exception"} else 1 if reasons <= _INTERRUPTS else 2


def retain(
    config: CheckpointConfig, kept: tuple[Kept, ...], protected: Set[int]
) -> tuple[tuple[Kept, ...], tuple[int, ...]]:
    """Split the tracked checkpoints (lowest step first) into those to track on and the steps to prune.

    The newest stays whatever the budgets say. What was saved for an exception alone takes no place among the last, and
    the newest that no interrupt alone has made stays, too: a run that fails again and again, or is stopped within an
    update, does not push out what it could go back to.

    A permanent checkpoint that no budget counts any more is in neither: later ones can only push it further down, so
    there is nothing left to decide about it.
    """
    regular = [entry for entry in kept if standing(entry.reasons) > 0]
    sound = [entry for entry in kept if standing(entry.reasons) > 1]
    last = (*regular[-(config.keep_last_n_checkpoints or 1) :], *sound[-1:], *kept[-1:])
    best = [entry for _, entry in _ranked(config, kept)][: config.keep_best_n_checkpoints or 0]
    wanted = {entry.step for entry in (*last, *best)} | protected
    return (
        tuple(entry for entry in kept if entry.step in wanted),
        tuple(entry.step for entry in kept if entry.step not in wanted and not is_permanent(config, entry.epoch)),
    )


def _ranked(config: CheckpointConfig, checkpoints: Iterable[Kept]) -> list[tuple[float, Kept]]:
    """The scored ones, each after its score; best first, and of equals the earlier one."""
    scored = [(kept.score, kept) for kept in checkpoints if kept.score is not None]
    return sorted(scored, key=lambda entry: (cost(config, entry[0]), entry[1].step))
