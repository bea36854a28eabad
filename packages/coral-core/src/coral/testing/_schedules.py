"""The schedules that every adapter is put through, by name: each for a trap that a real framework has."""

from __future__ import annotations

import math
from typing import Any

from coral.testing._schedule import Crash, Evaluations, Schedule
from coral.training import CheckpointConfig


def _config(**options: Any) -> CheckpointConfig:
    # nothing that depends on the machine: its disk and its free time are not what is compared
    return CheckpointConfig(**{"durability": "fast", "background_repack": False, "check_disk": False, **options})


def _best(**options: Any) -> CheckpointConfig:
    return _config(save_on_best_metric="eval_loss", **options)


def _loss(*scores: float, **when: Any) -> Evaluations:
    return Evaluations({"eval_loss": scores}, **when)


SCHEDULES: dict[str, Schedule] = {
    "every second step, the last two kept": Schedule(
        batches=4, config=_config(save_every_n_steps=2, keep_last_n_checkpoints=2)
    ),
    "every epoch": Schedule(epochs=3, config=_config(save_every_n_epochs=1, save_on_train_end=False)),
    "accumulation": Schedule(batches=6, accumulate=2, config=_config(save_every_n_steps=2, save_every_n_epochs=1)),
    "evaluation before the end of each epoch": Schedule(
        epochs=5,
        batches=2,
        evaluations=_loss(3, 1, 2, 0.5, 4, every_n_epochs=1),
        config=_best(save_every_n_epochs=1, keep_last_n_checkpoints=1, keep_best_n_checkpoints=2),
    ),
    "evaluation after the end of each epoch": Schedule(
        epochs=5,
        batches=2,
        evaluations=_loss(3, 1, 2, 0.5, 4, every_n_epochs=1, order="after"),
        config=_best(save_every_n_epochs=1, keep_last_n_checkpoints=1, keep_best_n_checkpoints=2),
    ),
    "evaluation every second epoch": Schedule(
        epochs=6,
        batches=2,
        evaluations=_loss(2, 1, 3, every_n_epochs=2),
        config=_best(save_every_n_epochs=1, keep_last_n_checkpoints=2, keep_checkpoint_every_n_epochs=3),
    ),
    "evaluation by step": Schedule(
        batches=6,
        evaluations=_loss(5, 4, 6, 3, every_n_steps=3),
        config=_best(save_every_n_steps=4, keep_last_n_checkpoints=2),
    ),
    "evaluation by step, with accumulation": Schedule(
        batches=8,
        accumulate=2,
        evaluations=_loss(1, 2, 0, 3, every_n_steps=2),
        config=_best(save_every_n_steps=3),
    ),
    "more is better, by a threshold": Schedule(
        epochs=4,
        evaluations=Evaluations({"eval_accuracy": (0.5, 0.55, 0.7, 0.65)}, every_n_epochs=1),
        config=_config(
            save_on_best_metric="eval_accuracy",
            minimize_metric=False,
            best_threshold=0.1,
            save_on_train_end=False,
        ),
    ),
    "two evaluation sets": Schedule(
        epochs=3,
        evaluations=Evaluations({"eval_a_loss": (1, 2, 3), "eval_b_loss": (3, 2, 4)}, every_n_epochs=1),
        config=_config(save_on_best_metric="eval_b_loss"),
    ),
    "a score that is not a number": Schedule(
        epochs=4,
        evaluations=_loss(math.nan, 2, math.nan, 1, every_n_epochs=1),
        config=_best(save_every_n_epochs=2, keep_best_n_checkpoints=1, keep_last_n_checkpoints=1),
    ),
    "max_steps within an epoch": Schedule(
        batches=4,
        max_steps=6,
        evaluations=_loss(2, 1, 3, every_n_steps=2),
        config=_best(save_every_n_epochs=1),
    ),
    "early stopping at an epoch": Schedule(
        epochs=6,
        batches=2,
        evaluations=_loss(2, 1, 3, 3, 0, every_n_epochs=1),
        config=_best(early_stopping_patience=2),
    ),
    "early stopping within an epoch": Schedule(
        batches=9,
        evaluations=_loss(1, 2, 3, 0, every_n_steps=2),
        config=_best(early_stopping_patience=2, save_every_n_epochs=1),
    ),
    "the best is loaded at the end": Schedule(
        epochs=3, evaluations=_loss(2, 1, 3, every_n_epochs=1), load_best=True, config=_best()
    ),
    "evaluations outside of training": Schedule(
        epochs=2, evaluations=_loss(2, 3, every_n_epochs=1), outside=True, config=_best(save_every_n_epochs=1)
    ),
    "a crash": Schedule(batches=4, crash=Crash(5), config=_config(save_every_n_steps=3)),
    "a crash at a step that is saved": Schedule(batches=4, crash=Crash(6), config=_config(save_every_n_steps=3)),
    "a crash inside an update": Schedule(batches=4, crash=Crash(5, mid_step=True), config=_config()),
    "a crash that is not to be saved": Schedule(
        batches=4, crash=Crash(5), config=_config(save_every_n_steps=2, save_on_interrupt=False)
    ),
    "resumed at the end of an epoch": Schedule(
        epochs=4,
        evaluations=_loss(3, 1, 2, 0, every_n_epochs=1),
        crash=Crash(8),
        resume="last",
        config=_best(save_every_n_epochs=1, save_on_interrupt=False, keep_last_n_checkpoints=2),
    ),
    "resumed within an epoch": Schedule(
        batches=5, crash=Crash(7), resume="last", config=_config(save_every_n_steps=3, keep_last_n_checkpoints=2)
    ),
    "resumed within an epoch, with accumulation": Schedule(
        batches=8,
        accumulate=2,
        crash=Crash(5, mid_step=True),
        resume="step:3",
        config=_config(save_every_n_steps=3, save_every_n_epochs=1),
    ),
    "resumed from the best": Schedule(
        epochs=4,
        evaluations=_loss(2, 1, 3, 0.5, every_n_epochs=1),
        crash=Crash(10),
        resume="best",
        config=_best(save_every_n_epochs=1, keep_last_n_checkpoints=1, keep_best_n_checkpoints=1),
    ),
}
