"""Watching an adapter: events are seen and still told, and a save is held back until training has gone on."""

from __future__ import annotations

import threading

import pytest

from coral import Repository
from coral.testing import Leg, Schedule, _watching
from coral.testing._watching import after_the_next_update, commits, events_told
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd


@pytest.fixture
def leg(repo: Repository) -> Leg:
    return Leg(Schedule(), repo)


def test_events_are_seen_and_still_told(repo: Repository) -> None:
    class Source:
        def capture(self, *, copy: bool = True) -> Snapshot:
            raise AssertionError("nothing is to be saved")

        def restore(self, snapshot: Snapshot) -> None:
            pass

    manager = CheckpointManager(repo, CheckpointConfig(save_on_train_end=False), Source())
    with events_told() as told:
        manager.emit(StepEnd(1), StepEnd(2))
    manager.emit(StepEnd(3))
    manager.close()
    assert told == [StepEnd(1), StepEnd(2)]
    assert manager.state.step == 3


def test_a_save_in_the_background_waits_for_the_update_after_it(leg: Leg) -> None:
    wait, seen = after_the_next_update(leg, 2), []

    def commit() -> str:
        seen.append(leg.changing)
        return "id"

    saves = threading.Thread(target=wait, args=(commit,))
    saves.start()
    leg.update(1)
    saves.join(0.05)  # one that does not wait is through by then
    leg.update(2)
    saves.join()
    assert seen == [2]


def test_a_save_in_place_does_not_wait(leg: Leg) -> None:
    assert after_the_next_update(leg, 2)(lambda: "id") == "id"


def test_a_training_that_waits_for_its_save_is_named(leg: Leg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watching, "_PATIENCE", 0.0)
    wait, raised = after_the_next_update(leg, 2), []

    def save() -> None:
        try:
            wait(lambda: "id")
        except TimeoutError as error:
            raised.append(str(error))

    saves = threading.Thread(target=save)
    saves.start()
    saves.join()
    assert raised == ["step 2 is being saved, and its training does not go on meanwhile"]


def test_what_commits_is_put_back(repo: Repository) -> None:
    before = Repository.commit
    with commits(lambda _: "instead"):
        assert repo.commit({}) == "instead"
    assert Repository.commit is before
