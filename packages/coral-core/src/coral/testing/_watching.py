"""Watching an adapter from below: what it tells its manager, and what the manager writes when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from coral import Repository
from coral.testing._leg import Leg
from coral.training import CheckpointManager, Event

_PATIENCE = 60.0  # seconds in which an adapter that copies what it captures has gone on with its training


@contextmanager
def events_told() -> Iterator[list[Event]]:
    """Every event that a manager is told within the `with`."""
    told: list[Event] = []
    emit = CheckpointManager.emit

    def listening(self: CheckpointManager, *events: Event) -> None:
        told.extend(events)
        emit(self, *events)

    with patch.object(CheckpointManager, "emit", listening):
        yield told


@contextmanager
def commits(instead: Callable[..., str]) -> Iterator[None]:
    """Within the `with`, `instead(commit)` is called for every commit, with what commits it and with its arguments."""
    commit = Repository.commit

    def called(self: Repository, *args: Any, **options: Any) -> str:
        return instead(lambda: commit(self, *args, **options))

    with patch.object(Repository, "commit", called):
        yield


def after_the_next_update(leg: Leg, step: int) -> Callable[..., str]:
    """Has a save in the background wait until the training is changing the weights of `step`."""
    trains = threading.current_thread()

    def wait(commit: Callable[[], str]) -> str:
        if threading.current_thread() is not trains:  # a save in place holds the training up, and needs no copy
            with leg.changed:
                if not leg.changed.wait_for(lambda: leg.changing >= step, _PATIENCE):
                    raise TimeoutError(f"step {step} is being saved, and its training does not go on meanwhile")
        return commit()

    return wait
