"""SIGTERM and SIGUSR1: real ones, sent to real processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coral import Repository

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGUSR1, and no way to send a SIGTERM")

CHILD = """
import json, os, signal, sys, threading, time, warnings
import numpy as np
from coral import Repository, WeightTensor
from coral.training import CheckpointConfig, CheckpointManager, Interrupted, Snapshot, StepEnd

class Source:
    def capture(self, *, copy=True):
        return Snapshot({"w": WeightTensor(np.full(5, step))})
    def restore(self, snapshot): ...

step, heard, gate, real = 0, [], threading.Event(), Repository.commit
gate.set()
def commit(*args, **options):
    assert gate.wait(10)
    return real(*args, **options)
Repository.commit = commit

options = json.loads(sys.argv[2])
repo = Repository(sys.argv[1], init=True)
config = CheckpointConfig(**{"handle_signals": True, "durability": "fast"} | options)
manager = CheckpointManager(repo, config, Source())
TERM, USR1 = signal.SIGTERM, signal.SIGUSR1
for line in sys.stdin:
    match line.strip():
        case "step":
            step += 1
            manager.emit(StepEnd(step))
        case "step, and the save in flight is done meanwhile":
            step += 1
            threading.Timer(0.1, gate.set).start()
            manager.emit(StepEnd(step))
        case "close":
            manager.close()
        case "wait":
            manager.wait()
        case "raise":
            try:
                with manager:
                    raise ValueError
            except ValueError:
                pass
        case "have handlers":
            for number in (TERM, USR1):
                signal.signal(number, lambda number, frame: heard.append(number))
        case "lay one over":
            signal.signal(TERM, lambda number, frame: heard.append("over"))
        case "fork":
            warnings.simplefilter("ignore")
            begun, says = os.pipe()
            pid = os.fork()
            if not pid:
                os.write(says, b"x")  # Python forgets signals that come before it is through with the fork
                for _ in range(500):  # pause() would sleep through a signal that came just before it
                    time.sleep(0.01)
                os._exit(0)
            os.read(begun, 1)
            os.kill(pid, TERM)
            heard.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        case "look":
            heard.append(manager.asked_to_end)
        case "slow":
            gate.clear()
    default = [signal.getsignal(number) == signal.SIG_DFL for number in (TERM, USR1)]
    print(json.dumps([manager.stop_reason, heard, default]), flush=True)
"""


class Child:
    """A process that trains, one order at a time."""

    def __init__(self, process: Any, path: Path) -> None:
        self.process, self.path = process, path

    def do(self, *orders: str) -> Any:
        """(why it is to stop, what other handlers heard, which signals have their default) after the last order."""
        said = None
        for order in orders:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            said = json.loads(line)
        return said

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        out, err = self.process.communicate(timeout=60)
        self.log = out + err
        return self.process.returncode

    def reasons(self) -> dict[int | None, set[str]]:
        return {commit.step: set(commit.reasons) for commit in Repository(self.path).log("main")}


@pytest.fixture
def child(start: Callable[..., Any], folder: Path) -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(**options: Any) -> Child:
        made.append(Child(start(CHILD, folder, json.dumps(options)), folder))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.communicate()


def test_sigusr1_asks_for_a_save_and_training_goes_on(child: Any) -> None:
    run = child()
    run.do("step")
    run.send(signal.SIGUSR1)
    assert run.do("step", "step", "close")[0] is None
    assert run.end() == 0
    assert run.reasons() == {2: {"requested"}, 3: {"final"}}


def test_sigterm_saves_at_the_next_boundary_and_asks_the_training_to_end(child: Any) -> None:
    run = child()
    run.do("step")
    run.send(signal.SIGTERM)
    stop, _, _ = run.do("step")
    assert "before its time" in stop
    run.do("close")
    assert run.end() == 0
    assert run.reasons() == {2: {"preempted"}}
    assert Repository(run.path).show().exact


def test_between_the_signal_and_the_boundary_an_adapter_can_see_it(child: Any) -> None:
    run = child()
    assert run.do("step", "look")[1] == [False]
    run.send(signal.SIGTERM)
    assert run.do("look", "step", "look")[1] == [False, True, False]


def test_a_preempted_run_is_saved_before_emit_returns(child: Any) -> None:
    """Whoever sent it may not wait much longer."""
    run = child()
    run.do("step")
    run.send(signal.SIGTERM)
    run.do("step")
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    assert run.reasons() == {2: {"preempted"}}


def test_a_loop_that_does_not_stop_is_saved_once(child: Any) -> None:
    run = child(save_on_train_end=False)
    run.do("step")
    run.send(signal.SIGTERM)
    assert run.do("step", "step", "close")[0] is not None
    assert run.end() == 0
    assert run.reasons() == {2: {"preempted"}}


def test_sigterm_while_a_save_is_in_flight_waits_for_that_and_saves(child: Any) -> None:
    run = child(save_every_n_steps=2)
    run.do("slow", "step", "step")
    run.send(signal.SIGTERM)
    assert run.do("step, and the save in flight is done meanwhile")[0] is not None
    run.do("close")
    assert run.end() == 0
    assert run.reasons() == {2: {"step"}, 3: {"preempted"}}


def test_without_a_save_on_interrupts_sigterm_only_asks_for_the_end(child: Any) -> None:
    run = child(save_on_interrupt=False, save_on_train_end=False)
    run.do("step")
    run.send(signal.SIGTERM)
    assert run.do("step", "close")[0] is not None
    assert run.end() == 0
    assert run.reasons() == {}


def test_a_second_sigterm_ends_the_process_as_it_would_have(child: Any) -> None:
    run = child()
    run.do("step")
    run.send(signal.SIGTERM)
    run.do("step")
    run.send(signal.SIGTERM)
    assert run.end() == -signal.SIGTERM


def test_a_second_sigterm_goes_to_the_handler_that_was_there(child: Any) -> None:
    run = child()
    run.do("have handlers", "step")
    run.send(signal.SIGTERM)
    assert run.do("step")[1] == []
    run.send(signal.SIGTERM)
    assert run.do("step")[1] == [signal.SIGTERM]


def test_sigusr1_goes_to_the_handler_that_was_there_as_well(child: Any) -> None:
    run = child()
    run.do("have handlers", "step")
    run.send(signal.SIGUSR1)
    assert run.do("step", "wait")[1] == [signal.SIGUSR1]
    assert run.reasons() == {2: {"requested"}}


@pytest.mark.parametrize("end", ["close", "raise"])
def test_the_handlers_that_were_there_come_back(child: Any, end: str) -> None:
    run = child()
    assert run.do("step")[2] == [False, False]
    assert run.do(end)[2] == [True, True]
    run.send(signal.SIGTERM)
    assert run.end() == -signal.SIGTERM


def test_own_handlers_come_back_and_are_heard(child: Any) -> None:
    run = child()
    run.do("have handlers", "step", "close")
    run.send(signal.SIGTERM)
    assert run.do("wait")[1] == [signal.SIGTERM]


def test_a_handler_that_was_set_meanwhile_is_left(child: Any) -> None:
    run = child()
    run.do("step", "lay one over", "close")
    run.send(signal.SIGTERM)
    assert run.do("wait")[1] == ["over"]


def test_a_run_that_goes_on_after_it_was_closed_listens_again(child: Any) -> None:
    run = child()
    run.do("step", "close")
    assert run.do("step")[2] == [False, False]
    assert run.do("close")[2] == [True, True]


def test_a_forked_process_dies_as_it_would_have(child: Any) -> None:
    """Data loaders end their workers by SIGTERM."""
    run = child()
    assert run.do("step", "fork")[1] == [-signal.SIGTERM]
    assert run.do("step")[0] is None


def test_a_sigterm_too_late_for_the_loop_is_saved_by_and_said(child: Any) -> None:
    run = child()
    run.do("step")
    run.send(signal.SIGTERM)
    assert run.do("close")[0] is not None
    assert run.end() == 0
    assert run.reasons() == {1: {"final", "preempted"}}


def test_signals_are_left_alone_unless_asked_for(child: Any) -> None:
    run = child(handle_signals=False)
    assert run.do("step")[2] == [True, True]
    run.send(signal.SIGTERM)
    assert run.end() == -signal.SIGTERM


def test_outside_the_main_thread_that_is_said_once(
    repo: Repository, training: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run = training(repo, handle_signals=True)
    with caplog.at_level(logging.WARNING, "coral"):
        thread = threading.Thread(target=lambda: (run.step(3), run.manager.close()))
        thread.start()
        thread.join()
    assert caplog.text.count("not in the main thread") == 1
    assert signal.getsignal(signal.SIGTERM) is before
