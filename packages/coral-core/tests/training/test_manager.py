"""The manager: what the policy asks for becomes commits, notes, tags and prunes; and a run can be gone on from."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from coral import Repository, WeightTensor
from coral.errors import CommitPruned, DiskFull, SaveFailedError
from coral.training import (
    Buffers,
    CheckpointConfig,
    CheckpointManager,
    EpochEnd,
    Evaluated,
    Interrupted,
    Snapshot,
    StepEnd,
    TrainBegin,
    TrainEnd,
    TrainingState,
)


class Counter:
    """A source whose one weight is the step; it counts what is asked of it."""

    def __init__(self) -> None:
        self.weight = np.zeros(4, np.float32)
        self.state = {"lr": 1.0}
        self.buffers = Buffers()
        self.captures = 0

    def capture(self, *, copy: bool = True) -> Snapshot:
        self.captures += copy
        flat = {"w": self.weight.view(np.uint8)}
        data = self.buffers.copy_all(flat)["w"].view(np.float32) if copy else self.weight
        return Snapshot({"w": WeightTensor(data)}, dict(self.state), metadata={"by": "counter"})

    def restore(self, snapshot: Snapshot) -> None:
        self.weight[:] = snapshot.weights["w"].data
        self.state = dict(snapshot.state or {})


@pytest.fixture
def repo(tmp_path):
    return Repository(tmp_path / "repo", init=True)


@pytest.fixture
def source():
    return Counter()


def config(**options):
    return CheckpointConfig(**{"durability": "fast", **options})


def train(manager, source, start, end, *, epoch_steps=None, scores=None):
    for step in range(start + 1, end + 1):
        source.weight[:] = step
        manager.emit(StepEnd(step))
        if epoch_steps and step % epoch_steps == 0:
            metrics = {"loss": scores[step // epoch_steps - 1]} if scores else {}
            manager.emit(EpochEnd(step, step // epoch_steps - 1, metrics=metrics))


def steps(repo, branch="main", *, pruned=None):
    return [c.step for c in reversed(repo.log(branch)) if pruned is None or c.pruned == pruned]


def weight(repo, ref):
    return float(repo.load(ref)["w"].data[0])


@pytest.mark.parametrize("async_save", [True, False])
def test_saves_by_step_hold_the_weights_of_their_step(repo, source, async_save):
    with CheckpointManager(repo, config(save_every_n_steps=3, async_save=async_save), source) as manager:
        train(manager, source, 0, 10)
    assert steps(repo) == [3, 6, 9, 10]
    assert [weight(repo, c.id) for c in repo.log()] == [10, 9, 6, 3]
    assert [c.reasons for c in repo.log()] == [("final",), ("step",), ("step",), ("step",)]
    assert repo.log()[0].metadata == {"by": "counter"}


def test_trap_checkpoints_were_views_of_live_parameters(repo, source):
    """The copy is taken before emit returns: what training does next must not show in the commit."""
    with CheckpointManager(repo, config(save_every_n_steps=1), source) as manager:
        for step in range(1, 12):
            source.weight[:] = step
            manager.emit(StepEnd(step))
            source.weight[:] = -1
    assert [weight(repo, f"step:{n}") for n in range(1, 12)] == list(range(1, 12))


def test_without_a_config_every_epoch_is_saved_and_the_best_and_last_are_kept(repo, source):
    scores = [9, 1, 2, 8, 3, 7, 7, 7, 7, 7]
    with CheckpointManager(repo, None, source) as manager:
        train(manager, source, 0, 20, epoch_steps=2, scores=scores)
    assert steps(repo) == list(range(2, 21, 2))
    assert steps(repo, pruned=False) == [4, 6, 10, 12, 14, 16, 18, 20]
    assert repo.resolve("best") == repo.resolve("step:4")


def test_pruned_commits_keep_their_record_and_refuse_to_load(repo, source):
    with CheckpointManager(repo, config(save_every_n_steps=1, keep_last_n_checkpoints=2), source) as manager:
        train(manager, source, 0, 5)
    assert steps(repo, pruned=False) == [4, 5]
    with pytest.raises(CommitPruned, match="step 2"):
        repo.load("step:2")
    assert repo.show("step:2").reasons == ("step",)


def test_tagged_by_hand_and_other_branches_are_never_pruned_but_the_runs_own_tag_does_not_hold(repo, source):
    options = config(save_every_n_steps=1, keep_last_n_checkpoints=1, save_on_best_metric="loss")
    with CheckpointManager(repo, options, source, experiment="my-experiment") as manager:
        train(manager, source, 0, 1)
        manager.emit(Evaluated(1, {"loss": 5.0}))
        train(manager, source, 1, 2)
        manager.wait()
        repo.tag("mine", "step:2")
        train(manager, source, 2, 3)
        manager.wait()
        repo.branch("side", "step:3")
        train(manager, source, 3, 6)
        manager.emit(Evaluated(6, {"loss": 1.0}))
        train(manager, source, 6, 8)
    assert steps(repo, pruned=False) == [2, 3, 6, 8]
    assert repo.tags()["best/my-experiment"] == repo.resolve("best") == repo.resolve("step:6")


def test_tag_best_checkpoints_off_makes_no_tag(repo, source):
    options = config(save_on_best_metric="loss", tag_best_checkpoints=False)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 1)
        manager.emit(Evaluated(1, {"loss": 5.0}))
    assert repo.tags() == {}
    assert repo.show("best").step == 1


def test_late_metrics_and_reasons_are_notes_on_the_same_commit(repo, source):
    with CheckpointManager(repo, config(save_every_n_steps=1, save_on_best_metric="loss"), source) as manager:
        train(manager, source, 0, 1)
        manager.emit(Evaluated(1, {"loss": 0.5}))
    (commit,) = repo.log()
    assert commit.metrics == {"loss": 0.5}
    assert set(commit.reasons) == {"step", "best", "final"}
    assert len(repo.notes()) >= 1


def test_an_epochs_end_replaces_the_state_of_a_save_made_at_the_same_step(repo, source):
    """The step's own save holds the scheduler as it was before the epoch's end moved it on."""
    options = config(save_every_n_steps=2, save_every_n_epochs=1)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 2)
        source.state = {"lr": 0.5}
        manager.emit(EpochEnd(2, 0))
    assert steps(repo) == [2]
    assert repo.load_state() == {"lr": 0.5}
    found = TrainingState.of(repo.show())
    assert found is not None
    assert (found.epoch, found.epoch_complete) == (0, True)
    assert repo.fsck().ok


def test_branch_is_created_from_head_and_committed_to(repo, source):
    repo.commit({"w": np.zeros(1)}, "base")
    with CheckpointManager(repo, config(save_every_n_steps=1), source, branch="exp/1") as manager:
        train(manager, source, 0, 2)
    assert repo.head == "main"
    assert len(repo.log("main")) == 1
    assert [c.step for c in repo.log("exp/1")] == [2, 1, None]


def test_resume_goes_on_as_a_run_of_its_own_and_keeps_to_the_budgets(repo, source):
    options = config(save_every_n_steps=1, keep_last_n_checkpoints=3, save_on_best_metric="loss")
    with CheckpointManager(repo, options, source, experiment="x") as manager:
        train(manager, source, 0, 4)
        manager.emit(Evaluated(4, {"loss": 1.0}))
        first = manager.run
    other = Counter()
    with CheckpointManager(repo, options, other, experiment="x") as manager:
        commit = manager.restore()
        assert commit is not None
        assert commit.step == other.weight[0] == 4
        assert manager.run != first
        train(manager, other, 4, 8)
        manager.emit(Evaluated(8, {"loss": 2.0}))
    assert steps(repo, pruned=False) == [4, 6, 7, 8]  # 4 is the best, and what was resumed from
    newest = repo.show()
    assert newest.resumed_from == commit.id
    assert repo.show("best").step == 4
    assert repo.show("step:2").pruned
    assert [c.step for c in repo.chain()] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_going_back_to_an_earlier_checkpoint_starts_a_chain_from_there(repo, source):
    options = config(save_every_n_steps=1)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 5)
    with CheckpointManager(repo, options, source) as manager:
        assert manager.restore("step:2").step == 2
        assert source.weight[0] == 2
        train(manager, source, 2, 4)
    assert steps(repo) == [1, 2, 3, 4, 5, 3, 4]
    assert [c.step for c in repo.chain()] == [4, 3, 2, 1]
    assert repo.resolve("step:3") == repo.resolve("HEAD~1")


def test_a_second_run_of_an_experiment_has_budgets_of_its_own(repo, source):
    options = config(save_every_n_steps=1, keep_last_n_checkpoints=1)
    for _ in range(2):
        with CheckpointManager(repo, options, source) as manager:
            train(manager, source, 0, 3)
    assert steps(repo, pruned=False) == [3, 3]
    assert len({c.run for c in repo.log()}) == 2


def test_restore_without_a_commit_is_none_and_best_without_a_best_is_the_last(repo, source, caplog):
    with CheckpointManager(repo, config(save_every_n_steps=1), source) as manager:
        assert manager.restore() is None
        train(manager, source, 0, 2)
        with caplog.at_level(logging.WARNING, "coral"):
            commit = manager.restore(best=True)
    assert commit.step == 2
    assert "no checkpoint is marked as the best" in caplog.text


def test_what_was_resumed_from_is_held_against_the_pruning_of_another_run(repo, source):
    options = config(save_every_n_steps=1, keep_last_n_checkpoints=1)
    first = CheckpointManager(repo, options, source)
    train(first, source, 0, 2)
    first.wait()
    second = CheckpointManager(repo, options, Counter(), branch="main")
    second.restore("step:2")
    train(first, source, 2, 4)
    first.close()
    assert steps(repo, pruned=False) == [2, 4]
    second.close()


def test_a_missing_metric_is_warned_of_once_with_the_names_that_came(repo, source, caplog):
    with (
        caplog.at_level(logging.WARNING, "coral"),
        CheckpointManager(repo, config(save_every_n_epochs=1, save_on_best_metric="val_loss"), source) as manager,
    ):
        train(manager, source, 0, 4, epoch_steps=2, scores=[1.0, 2.0])
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "'val_loss'" in caplog.text
    assert "loss" in caplog.text.split("what came:")[1]


class Failing:
    """A commit that fails as often as it is told to."""

    def __init__(self, repo, monkeypatch, times):
        self.left, real = times, Repository.commit

        def commit(this, *args, **options):
            if self.left:
                self.left -= 1
                raise DiskFull("no space left (pretended)")
            return real(this, *args, **options)

        monkeypatch.setattr(Repository, "commit", commit)


@pytest.mark.parametrize("async_save", [True, False])
def test_a_save_that_fails_is_raised_by_name_once_and_the_run_goes_on(repo, source, monkeypatch, async_save):
    options = config(save_every_n_steps=2, keep_last_n_checkpoints=1, async_save=async_save)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 3)
        manager.wait()
        Failing(repo, monkeypatch, 1)

        def go_on():
            train(manager, source, 3, 4)
            manager.wait()

        with pytest.raises(SaveFailedError, match=r"step 4.*no space left") as raised:
            go_on()
        assert isinstance(raised.value.__cause__, DiskFull)
        assert raised.value.step == 4
        assert steps(repo, pruned=False) == [2]  # a failed save prunes nothing
        train(manager, source, 4, 6)
    assert steps(repo) == [2, 6]


def test_an_exception_in_the_loop_saves_and_is_raised_unchanged(repo, source):
    error = RuntimeError("the loop's own")

    def run():
        with CheckpointManager(repo, config(save_every_n_steps=100), source) as manager:
            train(manager, source, 0, 3)
            raise error

    with pytest.raises(RuntimeError) as raised:
        run()
    assert raised.value is error
    assert repo.show().step == 3
    assert repo.show().reasons == ("exception",)


def test_a_save_that_fails_while_an_exception_passes_does_not_take_its_place(repo, source, monkeypatch, caplog):
    Failing(repo, monkeypatch, 99)
    error = RuntimeError("the loop's own")

    def run():
        with CheckpointManager(repo, config(save_every_n_steps=100), source) as manager:
            train(manager, source, 0, 3)
            raise error

    with pytest.raises(RuntimeError) as raised:
        run()
    assert raised.value is error
    assert "no space left" in caplog.text


def test_an_interrupt_inside_a_step_is_not_exact_and_never_best(repo, source):
    options = config(save_on_best_metric="loss")
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 2)
        manager.emit(Interrupted(2, "exception", mid_step=True))
    commit = repo.show()
    assert (commit.exact, commit.reasons) == (False, ("exception",))
    assert "optimizer.step()" in commit.training["why"]


@pytest.mark.parametrize(("option", "saved"), [("save_on_interrupt", []), ("save_on_train_end", [])])
def test_saving_at_the_end_can_be_turned_off(repo, source, option, saved):
    manager = CheckpointManager(repo, config(**{option: False}), source)
    train(manager, source, 0, 2)
    if option == "save_on_interrupt":
        manager.emit(Interrupted(2, "preempted"))
    manager.close()
    assert steps(repo) == saved


def test_the_message_template_is_filled_in(repo, source):
    template = "{experiment} s{step} e{epoch} {reasons} {metrics}"
    options = config(save_every_n_epochs=1, commit_message_template=template)
    with CheckpointManager(repo, options, source, experiment="exp") as manager:
        train(manager, source, 0, 2, epoch_steps=2, scores=[0.25])
    assert repo.show().message == "exp s2 e0 epoch loss=0.25"


@pytest.mark.parametrize("durability", ["full", "batch", "fast"])
def test_durability_is_that_of_the_config(repo, source, durability, monkeypatch):
    from coral.filesystem import LocalFileSystem

    synced = []
    real = LocalFileSystem.fsync_dir
    monkeypatch.setattr(LocalFileSystem, "fsync_dir", lambda fs, path: (synced.append(path), real(fs, path))[1])
    manager = CheckpointManager(repo, CheckpointConfig(save_every_n_steps=1, durability=durability), source)
    train(manager, source, 0, 2)
    manager.wait()
    assert bool(synced) == (durability == "full")
    manager.close()
    assert bool(synced) == (durability != "fast")


def test_one_save_is_in_flight_and_emit_does_not_wait_for_it(repo, source, monkeypatch):
    gate, real = threading.Event(), Repository.commit

    def commit(this, *args, **options):
        assert gate.wait(10)
        return real(this, *args, **options)

    monkeypatch.setattr(Repository, "commit", commit)
    manager = CheckpointManager(repo, config(save_every_n_steps=2), source)
    train(manager, source, 0, 3)  # would hang here if emit waited
    assert source.captures == 1
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    train(manager, source, 3, 4)  # the second save waits for the first: its memory is reused
    assert gate.is_set()
    manager.close()
    assert steps(repo) == [2, 4]


def test_short_of_memory_it_saves_in_place_and_says_so(repo, source, monkeypatch, caplog):
    monkeypatch.setattr("coral.training._capture.short_of_memory", lambda nbytes: True)
    copies = []
    real = Counter.capture
    monkeypatch.setattr(Counter, "capture", lambda self, *, copy=True: (copies.append(copy), real(self, copy=copy))[1])
    with CheckpointManager(repo, config(save_every_n_steps=1), source) as manager:
        train(manager, source, 0, 1)
    assert copies == [False]
    assert "memory is short" in caplog.text


def test_the_last_save_of_a_run_is_no_copy(repo, source, monkeypatch):
    copies = []
    real = Counter.capture
    monkeypatch.setattr(Counter, "capture", lambda self, *, copy=True: (copies.append(copy), real(self, copy=copy))[1])
    with CheckpointManager(repo, config(save_every_n_steps=2), source) as manager:
        train(manager, source, 0, 2)
        assert copies == [False, True], "the first is measured before it is copied"
        train(manager, source, 2, 3)
    assert copies == [False, True, False]
    with CheckpointManager(repo, config(save_every_n_steps=2), source) as manager:
        manager.emit(StepEnd(4), TrainEnd(4))
        assert steps(repo) == [2, 3, 4], "it is written when emit returns"
        assert repo.show().reasons == ("final", "step")
    assert copies == [False, True, False, False]


def test_time_trigger_uses_the_managers_clock_where_the_event_has_none(repo, source, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with CheckpointManager(repo, config(save_every_seconds=10, save_on_train_end=False), source) as manager:
        for step in range(1, 8):
            now[0] += 4
            source.weight[:] = step
            manager.emit(StepEnd(step))
    assert steps(repo) == [4, 7]


def test_early_stopping_says_why(repo, source):
    options = config(save_on_best_metric="loss", early_stopping_patience=2)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 6, epoch_steps=2, scores=[1.0, 2.0, 3.0])
    assert manager.stop_reason is not None
    assert "loss" in manager.stop_reason


def test_training_can_begin_at_a_step_of_its_own(repo, source):
    with CheckpointManager(repo, config(save_every_n_steps=10), source) as manager:
        manager.emit(TrainBegin(95))
        train(manager, source, 95, 101)
    assert steps(repo) == [100, 101]


def test_at_interpreter_exit_a_pending_save_is_finished(tmp_path):
    """Also where neither close() nor wait() was called, and the threads that hash are gone already."""
    code = f"""
import numpy as np
from coral import Repository, WeightTensor
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd
class Source:
    def capture(self, *, copy=True):
        return Snapshot({{"w": WeightTensor(np.full(3_000_000, 7, np.float32))}})
    def restore(self, snapshot): ...
repo = Repository({str(tmp_path / "repo")!r}, init=True)
manager = CheckpointManager(repo, CheckpointConfig(save_every_n_steps=1), Source())
manager.emit(StepEnd(1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    repo = Repository(tmp_path / "repo")
    assert [c.step for c in repo.log()] == [1]
    assert repo.load()["w"].data.min() == 7


# What a review found, each of which went wrong once


class Slow:
    """Commits wait at a gate; a wait on them can be interrupted as Ctrl-C would."""

    def __init__(self, monkeypatch):
        self.gate, real = threading.Event(), Repository.commit

        def commit(this, *args, **options):
            assert self.gate.wait(10)
            return real(this, *args, **options)

        monkeypatch.setattr(Repository, "commit", commit)

    def interrupt_the_next_wait(self, monkeypatch):
        from concurrent.futures import Future

        real = Future.exception

        def exception(future, timeout=None):
            if not future.done():
                monkeypatch.setattr(Future, "exception", real)
                raise KeyboardInterrupt
            return real(future, timeout)

        monkeypatch.setattr(Future, "exception", exception)


def test_an_interrupted_wait_leaves_the_save_its_memory(repo, source, monkeypatch):
    slow = Slow(monkeypatch)
    manager = CheckpointManager(repo, config(save_every_n_steps=1), source)
    train(manager, source, 0, 1)
    slow.interrupt_the_next_wait(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(manager, source, 1, 2)
    slow.gate.set()
    train(manager, source, 2, 3)  # a notebook's user goes on
    manager.close()
    assert [weight(repo, c.id) for c in repo.log()] == [3, 1]
    assert [c.step for c in repo.chain()] == [3, 1]


def test_an_interrupted_wait_does_not_lose_the_step(repo, source, monkeypatch):
    slow = Slow(monkeypatch)

    def run():
        with CheckpointManager(repo, config(save_every_n_steps=1), source) as manager:
            train(manager, source, 0, 1)
            slow.interrupt_the_next_wait(monkeypatch)
            threading.Timer(0.05, slow.gate.set).start()
            train(manager, source, 1, 2)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps(repo) == [1, 2]
    assert repo.show().reasons == ("requested",)
    assert weight(repo, "HEAD") == 2


def test_a_run_that_resumes_from_another_branch_prunes_nothing_there(repo, source):
    options = config(save_every_n_steps=1, keep_last_n_checkpoints=2, save_on_best_metric="loss")
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 2)
    with CheckpointManager(repo, options, source, branch="exp") as manager:
        manager.restore("refs/heads/main")
        train(manager, source, 2, 8)
    assert steps(repo, "main", pruned=False) == [1, 2]
    assert steps(repo, "exp", pruned=False)[-2:] == [7, 8]


@pytest.mark.parametrize("best", [False, True])
def test_a_run_whose_beginning_is_gone_can_be_resumed(repo, source, caplog, best):
    options = config(save_every_n_steps=1, save_on_best_metric="loss", keep_last_n_checkpoints=3)
    with CheckpointManager(repo, options, source, branch="pretrain") as manager:
        train(manager, source, 0, 3)
        manager.emit(Evaluated(3, {"loss": 1.0}))
    with CheckpointManager(repo, options, source, branch="finetune") as manager:
        assert manager.restore("pretrain").step == 3
        train(manager, source, 3, 5)
    for tag in repo.tags():
        repo.delete_tag(tag)
    repo.delete_branch("pretrain")
    repo.gc(0)
    assert repo.fsck().ok
    with CheckpointManager(repo, options, source, branch="finetune") as manager:
        assert manager.restore(best=best).step == 5
        train(manager, source, 5, 7)
    assert steps(repo, "finetune", pruned=False) == [5, 6, 7]


def test_a_run_that_had_stopped_early_says_so_when_it_is_resumed(repo, source):
    options = config(save_every_n_epochs=1, save_on_best_metric="loss", early_stopping_patience=1)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 4, epoch_steps=2, scores=[1.0, 2.0])
    with CheckpointManager(repo, options, source) as manager:
        manager.restore()
        assert "early stopping" in manager.stop_reason


def test_a_run_that_fails_again_and_again_keeps_what_came_before(repo, source, caplog):
    options = config(save_every_n_epochs=1, keep_last_n_checkpoints=2)
    with CheckpointManager(repo, options, source) as manager:
        train(manager, source, 0, 6, epoch_steps=2)

    def attempt(start):
        with CheckpointManager(repo, options, source) as manager:
            manager.restore()
            train(manager, source, start, start + 1)
            raise FloatingPointError

    for start in (6, 7, 8):
        with pytest.raises(FloatingPointError):
            attempt(start)
    assert steps(repo, pruned=False) == [4, 6, 8, 9]
    said = [r for r in caplog.records if "going on approximately" in r.message]
    assert [r.levelname for r in said] == ["WARNING"] * 2  # the first one goes on from an epoch's end


def test_whoever_only_looks_at_what_was_trained_holds_nothing(repo, source):
    manager = CheckpointManager(repo, config(save_every_n_steps=1), source)
    train(manager, source, 0, 3)
    manager.close()
    manager.restore("step:1")
    assert repo.store.fs.list("intents") == []
    repo.prune("step:2")
    train(manager, source, 1, 2)  # on from there, after all
    manager.wait()
    assert len(repo.store.fs.list("intents")) == 1
    manager.close()
    assert repo.store.fs.list("intents") == []


def test_what_could_not_be_pruned_is_with_the_next(repo, source, monkeypatch):
    real, refused = Repository.annotate, []

    def annotate(self, ref, **options):
        if options.get("pruned") and not refused:
            refused.append(ref)
            raise OSError(28, "pretended")
        return real(self, ref, **options)

    monkeypatch.setattr(Repository, "annotate", annotate)
    manager = CheckpointManager(repo, config(save_every_n_steps=1, keep_last_n_checkpoints=2), source)
    train(manager, source, 0, 3)
    with pytest.raises(SaveFailedError, match="prune"):
        manager.wait()
    train(manager, source, 3, 5)
    manager.close()
    assert steps(repo, pruned=False) == [4, 5]


def test_a_tag_that_fails_does_not_undo_the_save(repo, source, monkeypatch):
    monkeypatch.setattr(Repository, "tag", lambda *args, **options: (_ for _ in ()).throw(OSError(5, "pretended")))
    options = config(save_every_n_steps=1, save_on_best_metric="loss", keep_last_n_checkpoints=1)
    manager = CheckpointManager(repo, options, source)
    manager.emit(StepEnd(1), Evaluated(1, {"loss": 1.0}))
    with pytest.raises(SaveFailedError, match="tag"):
        manager.wait()
    assert manager.state.best is not None
    train(manager, source, 1, 3)
    manager.close()
    assert [c.step for c in repo.chain()] == [3, 2, 1]


@pytest.mark.parametrize("name", ["E" * 90, "x" * 400, "E" * 400, "实验 1", "опыт"])
def test_the_best_of_any_experiment_has_a_tag_of_its_own(repo, source, name):
    for experiment in (name, name + name[-1]):
        with CheckpointManager(repo, config(save_on_best_metric="loss"), source, experiment=experiment) as manager:
            manager.emit(StepEnd(1), Evaluated(1, {"loss": 1.0}))
    assert len(set(repo.tags().values())) == len(repo.tags()) == 2


def test_a_best_tag_made_by_hand_is_not_taken_away(repo, source, caplog):
    mine = repo.commit({"w": np.zeros(1)}, "mine")
    repo.tag("best/x", mine)
    with CheckpointManager(repo, config(save_on_best_metric="loss"), source, experiment="x") as manager:
        manager.emit(StepEnd(1), Evaluated(1, {"loss": 1.0}))
    assert repo.tags()["best/x"] == mine
    assert "is not tagged" in caplog.text


def test_resuming_looks_for_the_experiments_own_checkpoints(repo, source, caplog):
    for name, end in (("a", 2), ("b", 3)):
        with CheckpointManager(repo, config(save_every_n_steps=1), source, experiment=name) as manager:
            train(manager, source, 0, end)
    with CheckpointManager(repo, config(), source, experiment="a") as manager:
        assert manager.restore().step == 2
    assert caplog.text == ""
    with CheckpointManager(repo, config(), source, experiment="new") as manager:
        assert manager.restore().step == 3
    assert "'b'" in caplog.text


def test_the_order_of_events_in_one_call_does_not_change_the_record(repo, source):
    for branch, events in (("one", (EpochEnd(3, 0), StepEnd(3))), ("two", (StepEnd(3), EpochEnd(3, 0)))):
        with CheckpointManager(repo, config(save_every_n_epochs=1), source, branch=branch) as manager:
            manager.emit(*events)
        found = TrainingState.of(repo.show(branch))
        assert (found.epoch, found.epoch_complete) == (0, True)


def test_another_metric_is_not_judged_against_the_old_ones_score(repo, source):
    with CheckpointManager(repo, config(save_on_best_metric="loss"), source) as manager:
        manager.emit(StepEnd(1), Evaluated(1, {"loss": 0.01}))
    options = config(save_on_best_metric="val_loss", keep_best_n_checkpoints=1)
    with CheckpointManager(repo, options, source) as manager:
        manager.restore()
        manager.emit(StepEnd(2), Evaluated(2, {"val_loss": 0.7}))
        manager.emit(StepEnd(3), Evaluated(3, {"val_loss": 0.6}))
    assert repo.show("best").step == 3


def test_a_failed_save_is_logged_even_if_nobody_asks(repo, source, monkeypatch, caplog):
    Failing(repo, monkeypatch, 1)
    manager = CheckpointManager(repo, config(save_every_n_steps=1), source)
    train(manager, source, 0, 1)
    manager._queue.close()
    assert "saving step 1 failed" in caplog.text
    with pytest.raises(SaveFailedError):
        manager.wait()


def test_a_hook_that_fails_loses_no_save(repo, source):
    manager = CheckpointManager(repo, config(save_every_n_steps=1), source)
    manager.on_saved.append(lambda step, commit: 1 // 0)
    train(manager, source, 0, 1)
    for _ in range(2):
        with pytest.raises(SaveFailedError, match="zero"):
            manager.wait()
        manager.emit(StepEnd(manager.state.step + 1))
    manager.on_saved.clear()
    manager.close()
    assert steps(repo) == [1, 2, 3]


def test_an_unsafe_branch_is_refused_at_once(repo, source):
    with pytest.raises(ValueError, match="branch"):
        CheckpointManager(repo, config(), source, branch="../x")


def test_a_hand_made_commit_has_no_epoch_of_another_run(repo, source):
    hand = repo.commit({"w": np.zeros(4, np.float32)}, "hand")
    with CheckpointManager(repo, config(save_every_n_epochs=1), source) as manager:
        train(manager, source, 0, 4, epoch_steps=1)
        manager.restore(hand)
        assert manager.epoch_to_run == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_saves_by_a_thread_of_its_own(tmp_path):
    code = f"""
import os, sys
import numpy as np
from coral import Repository, WeightTensor
from coral.store import needed
from coral.training import CheckpointConfig, CheckpointManager, Snapshot, StepEnd
class Source:
    def capture(self, *, copy=True):
        return Snapshot({{"w": WeightTensor(np.ones(3))}})
    def restore(self, snapshot): ...
repo = Repository({str(tmp_path / "repo")!r}, init=True)
manager = CheckpointManager(repo, CheckpointConfig(save_every_n_steps=1), Source())
manager.emit(StepEnd(1)); manager.wait(); manager.restore()
pid = os.fork()
if pid == 0:
    manager.emit(StepEnd(2)); manager.wait(); sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert needed(repo.store.fs), "the child took the parent's intent away"
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [c.step for c in Repository(tmp_path / "repo").log()] == [2, 1]
