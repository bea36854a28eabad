"""The laws of the policy, each as a property of any run under any config."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coral.training._config import CheckpointConfig
from coral.training._events import (
    Action,
    Annotate,
    EpochEnd,
    Evaluated,
    Event,
    Interrupted,
    Prune,
    Save,
    Saved,
    SaveFailed,
    SaveRequested,
    StepEnd,
    Stop,
    TrainBegin,
    TrainEnd,
)
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import Kept, PolicyState

Schedule = list[list[Event]]  # the events of each step

laws = settings(deadline=None)  # how many examples: the profile in tests/conftest.py

VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, -1.0, -0.0, math.nan, math.inf, -math.inf])
METRICS = st.dictionaries(st.sampled_from(["val", "acc"]), VALUES, max_size=2)


@st.composite
def configs(draw: st.DrawFn) -> CheckpointConfig:
    monitor = draw(st.sampled_from(["val", "val", None, "never"]))
    cadence, budget = st.sampled_from([None, 0, 1, 2, 3]), st.sampled_from([None, 1, 2, 3])
    return CheckpointConfig(
        save_every_n_steps=draw(cadence),
        save_every_n_epochs=draw(cadence),
        save_every_seconds=draw(st.sampled_from([None, 3.0])),
        save_on_best_metric=monitor,
        minimize_metric=draw(st.booleans()),
        best_threshold=draw(st.sampled_from([0.0, 0.0, 0.5])),
        keep_last_n_checkpoints=draw(budget),
        keep_best_n_checkpoints=draw(budget) if monitor else None,
        keep_checkpoint_every_n_epochs=draw(cadence),
        save_on_train_end=draw(st.booleans()),
        save_on_interrupt=draw(st.booleans()),
        early_stopping_patience=draw(budget) if monitor else None,
        early_stopping_threshold=draw(st.sampled_from([0.0, 0.5])),
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    step, epoch, time = 0, 0, 0.0
    schedule: Schedule = []
    for _ in range(draw(st.integers(1, 12))):
        step += draw(st.integers(1, 3))
        time += draw(st.sampled_from([0.5, 1.0, 4.0]))
        group: list[Event] = [StepEnd(step, time, draw(METRICS))]
        for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
            group.append(EpochEnd(step, epoch, draw(st.sampled_from([True, True, False])), draw(METRICS)))
            epoch += 1
        group += [Evaluated(step, draw(METRICS)) for _ in range(draw(st.sampled_from([0, 1, 1, 2])))]
        group += [SaveRequested(step)] * draw(st.sampled_from([0, 0, 0, 1]))
        schedule.append(group)
    end = draw(st.sampled_from([None, TrainEnd(step), Interrupted(step, "exception"), Interrupted(step, "preempted")]))
    if end is not None:
        schedule[-1].append(end)
    return schedule


@dataclass
class Run:
    """A manager without I/O: it commits at once, reports `delay` calls later, and checks every action it is given."""

    config: CheckpointConfig
    delay: int = 0
    fails: frozenset[int] = frozenset()  # the saves, by their number, that fail
    state: PolicyState = field(default_factory=PolicyState)
    history: list[Event] = field(default_factory=list)
    asked: dict[int, frozenset[str]] = field(default_factory=dict)
    counters: dict[int, Any] = field(default_factory=dict)
    records: dict[int, list[Kept]] = field(default_factory=dict)  # of checkpoints saved and not pruned
    notes: dict[int, tuple[frozenset[str], str]] = field(default_factory=dict)
    saved: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    stops: int = 0
    inbox: list[tuple[int, int]] = field(default_factory=list)  # calls to wait, step

    def play(self, schedule: Iterable[list[Event]], *, at_once: bool = True) -> Run:
        for group in schedule:
            for events in [group] if at_once else [[event] for event in group]:
                self.emit(*events)
                self.report()
        return self

    def finish(self) -> Run:
        while self.inbox:
            self.report(everything=True)
        return self

    def report(self, *, everything: bool = False) -> None:
        due = [step for wait, step in self.inbox if everything or wait <= 0]
        self.inbox = [(wait - 1, step) for wait, step in self.inbox if step not in due]
        for step in due:
            if list(self.asked).index(step) in self.fails:
                self.records.pop(step, None)
                self.emit(SaveFailed(step, "disk full"))
            else:
                self.saved.append(step)
                self.emit(Saved(step, f"commit {step}"))

    def emit(self, *events: Event) -> None:
        self.history += events
        self.state, actions = CheckpointPolicy(self.config).advance(self.state, *events)
        for action in actions:
            self.do(action, events)

    def do(self, action: Action, events: tuple[Event, ...]) -> None:
        record = CheckpointPolicy(self.config).current(self.state)
        match action:
            case Save(step=step, reasons=reasons):
                assert step not in self.asked, "one step, at most one save"
                assert step == self.state.step
                assert reasons
                self.asked[step] = reasons
                self.counters[step] = json.dumps(self.state.to_json(counters_only=True), allow_nan=False)
                self.records[step] = [record]
                self.inbox.append((self.delay, step))
                self.notes[step] = reasons, dump(self.state.metrics)
            case Annotate(step=step, reasons=reasons, metrics=metrics):
                assert step == self.state.step
                assert step in self.asked
                assert reasons >= self.asked[step]
                self.asked[step] = reasons
                self.records[step].append(record)
                self.notes[step] = reasons, dump(metrics)
            case Prune(steps=steps):
                saved = self.state.step in self.saved  # then its entry may have changed, by any event
                assert saved or any(isinstance(event, Saved | Evaluated | EpochEnd) for event in events)
                assert steps
                assert {*steps} <= {*self.saved} - {*self.pruned}
                best = self.state.best
                assert not {*steps} & {max(self.saved), best.step if best else None, self.state.resumed_from}
                self.pruned += steps
                for step in steps:
                    del self.records[step]
            case Stop():
                self.stops += 1

    @property
    def left(self) -> list[int]:
        return sorted({*self.saved} - {*self.pruned})

    def outcome(self) -> tuple[Any, ...]:
        """What a run leaves behind, whatever the way its events came."""
        return self.asked, self.notes, sorted(self.saved), sorted(self.pruned), self.state.best


def dump(value: Any) -> str:
    return json.dumps({name: str(value[name]) for name in sorted(value)})


def shuffled(schedule: Schedule, seed: int) -> Schedule:
    return [random.Random(seed).sample(group, len(group)) for group in schedule]


def plain(state: PolicyState) -> Any:
    return state.to_json()


FAILS = st.frozensets(st.integers(0, 6), max_size=4)


@laws
@given(configs(), schedules(), st.integers(0, 99), st.booleans(), st.integers(0, 3))
def test_order_within_a_step_and_calls_do_not_matter(
    config: CheckpointConfig, schedule: Schedule, seed: int, at_once: bool, delay: int
) -> None:
    one = Run(config).play(schedule).finish()
    other = Run(config, delay).play(shuffled(schedule, seed), at_once=at_once).finish()
    assert one.outcome() == other.outcome()
    # Whether to stop is said at once, though a better value may yet come at the step.
    assert plain(replace(one.state, stopped=False)) == plain(replace(other.state, stopped=False))


@laws
@given(configs(), schedules(), st.integers(0, 99), FAILS)
def test_order_within_a_step_does_not_matter_when_saves_fail(
    config: CheckpointConfig, schedule: Schedule, seed: int, fails: frozenset[int]
) -> None:
    one = Run(config, fails=fails).play(schedule).finish()
    other = Run(config, fails=fails).play(shuffled(schedule, seed)).finish()
    assert one.outcome() == other.outcome()


@laws
@given(configs(), schedules(), st.integers(0, 3), FAILS, st.booleans())
def test_what_is_kept_is_what_the_budgets_say(
    config: CheckpointConfig, schedule: Schedule, delay: int, fails: frozenset[int], at_once: bool
) -> None:
    run = Run(config, delay, fails).play(schedule, at_once=at_once).finish()
    failed = {step for number, step in enumerate(run.asked) if number in fails}
    assert {*run.saved} == {*run.asked} - failed

    last, best, every = (
        config.keep_last_n_checkpoints,
        config.keep_best_n_checkpoints,
        config.keep_checkpoint_every_n_epochs,
    )
    if last is None and best is None:
        assert run.pruned == []
        assert run.state.kept == ()
        return
    scores = {step: score for step in run.saved if (score := score_at(config, schedule, step)) is not None}
    ranked = sorted(scores, key=lambda step: (scores[step] if config.minimize_metric else -scores[step], step))
    permanent = {
        event.step
        for group in schedule
        for event in group
        if isinstance(event, EpochEnd) and event.complete and every and (event.epoch + 1) % every == 0
    }
    saved = sorted(run.saved)
    regular = [step for step in saved if run.asked[step] != {"exception"}]
    sound = [step for step in saved if not run.asked[step] <= {"exception", "preempted", "requested"}]
    newest = {*regular[-(last or 1) :], *sound[-1:], *saved[-1:]}
    wanted = {*newest, *ranked[: best or 0], *(permanent & {*run.saved})}
    if run.state.best is not None:
        wanted.add(run.state.best.step)
    assert run.left == sorted(wanted)
    assert {kept.step for kept in run.state.kept} <= wanted
    assert len(run.state.kept) <= (last or 1) + 2 + (best or 0) + 1


def score_at(config: CheckpointConfig, schedule: Schedule, step: int) -> float | None:
    """The better of the finite monitored values judged at a step."""
    judged = [event for group in schedule for event in group if isinstance(event, Evaluated | EpochEnd)]
    values = [event.metrics.get(config.save_on_best_metric or "", math.nan) for event in judged if event.step == step]
    values = [value for value in values if math.isfinite(value)]
    return (min if config.minimize_metric else max)(values, default=None)


@laws
@given(configs(), schedules(), st.integers(0, 3), st.booleans())
def test_the_saves_are_those_that_the_triggers_say(
    config: CheckpointConfig, schedule: Schedule, delay: int, at_once: bool
) -> None:
    run = Run(config, delay).play(schedule, at_once=at_once).finish()
    expected: dict[int, set[str]] = {}
    best: float | None = None
    last_step, last_time = 0, None
    sign = 1.0 if config.minimize_metric else -1.0
    for group in schedule:
        step, why = group[0].step, set()
        time = next(event.time for event in group if isinstance(event, StepEnd))
        assert time is not None
        if config.save_every_n_steps and step // config.save_every_n_steps > last_step // config.save_every_n_steps:
            why.add("step")
        if config.save_every_seconds and last_time is not None and time - last_time >= config.save_every_seconds:
            why.add("time")
        score = score_at(config, schedule, step)
        if score is not None and (best is None or sign * (best - score) > config.best_threshold):
            best = score
            why.add("best")
        for event in group:
            match event:
                case EpochEnd(epoch=epoch, complete=True) if config.save_every_n_epochs:
                    why |= {"epoch"} if (epoch + 1) % config.save_every_n_epochs == 0 else set()
                case TrainEnd() if config.save_on_train_end:
                    why.add("final")
                case Interrupted(cause=cause) if config.save_on_interrupt:
                    why.add(cause)
                case SaveRequested():
                    why.add("requested")
        if why:
            expected[step] = why
            last_step = step
        if why or last_time is None:
            last_time = time
    assert run.asked == expected
    assert (run.state.best.score if run.state.best else None) == best


@laws
@given(configs(), schedules(), st.integers(0, 3))
def test_when_every_save_fails_nothing_is_pruned_and_nothing_is_best(
    config: CheckpointConfig, schedule: Schedule, delay: int
) -> None:
    run = Run(config, delay, frozenset(range(99))).play(schedule).finish()
    assert (run.saved, run.pruned, run.state.best, run.state.kept) == ([], [], None, ())
    assert run.state.pending == ()


@laws
@given(configs(), schedules(), st.integers(0, 3), FAILS, st.booleans())
def test_the_best_is_always_a_checkpoint_that_exists(
    config: CheckpointConfig, schedule: Schedule, delay: int, fails: frozenset[int], at_once: bool
) -> None:
    run = Run(config, delay, fails)
    for group in schedule:
        run.play([group], at_once=at_once)
        best = run.state.best
        assert best is None or (best.step in run.left and math.isfinite(best.score))
        assert all(kept.step in run.left for kept in run.state.kept)
        assert run.saved == [] or max(run.saved) in run.left


@laws
@given(configs(), schedules(), st.integers(0, 3), FAILS, st.booleans())
def test_replay_and_json_rebuild_the_state(
    config: CheckpointConfig, schedule: Schedule, delay: int, fails: frozenset[int], at_once: bool
) -> None:
    run = Run(config, delay, fails).play(schedule, at_once=at_once).finish()
    policy, state = CheckpointPolicy(config), PolicyState()
    for event in run.history:
        state, _ = policy.advance(PolicyState.from_json(json.loads(json.dumps(plain(state), allow_nan=False))), event)
    assert plain(state) == plain(run.state)
    assert plain(policy.advance(PolicyState(), *run.history)[0]) == plain(run.state)


@laws
@given(configs(), schedules(), st.integers(0, 3), FAILS, st.booleans(), st.integers(0, 99), st.data())
def test_a_run_cut_anywhere_goes_on_as_if_it_had_not_been(
    config: CheckpointConfig,
    schedule: Schedule,
    delay: int,
    fails: frozenset[int],
    at_once: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    cut = data.draw(st.integers(1, len(schedule)))
    before = Run(config, delay, fails).play(schedule[:cut], at_once=at_once)
    if not before.saved:
        return
    step = data.draw(st.sampled_from([max(before.saved), *before.left]))
    # The checkpoints that a process resuming from `step` finds, each with all that was written about it, in any order.
    found = [record for s in before.left if s <= step for record in before.records[s]]
    random.Random(seed).shuffle(found)
    state = CheckpointPolicy(config).resume(json.loads(before.counters[step]), found)
    resumed = Run(config, state=state, saved=[s for s in before.left if s <= step])
    resumed.records = {s: before.records[s] for s in resumed.saved}

    # The run that was never cut, with the same saves done, at the moment when all of `step` had come.
    whole = Run(config, delay, fails)
    whole.play((group for group in schedule if group[0].step <= step), at_once=at_once).finish()
    if whole.state.best is not None and whole.state.best.step not in resumed.saved:
        # A better one came later, and this one was pruned: the best is among what is left, or still to come.
        assert resumed.state.best is None or resumed.state.best.step in resumed.saved
        return
    for run in (whole, resumed):
        run.emit(TrainBegin(step, resumed=True))
        run.fails = frozenset()
        run.asked = {}
        run.play(group for group in schedule if group[0].step > step).finish()
    assert resumed.asked == whole.asked
    assert resumed.state.best == whole.state.best
    later = [s for s in whole.left if s > step]
    assert [s for s in resumed.left if s > step] == later
    if later:  # a prune that the cut run no longer came to follows the next save
        assert {*resumed.left} <= {*whole.left}


@laws
@given(configs(), schedules(), st.integers(0, 3), st.data())
def test_the_resumed_from_is_never_pruned(
    config: CheckpointConfig, schedule: Schedule, delay: int, data: st.DataObject
) -> None:
    config = replace(config, save_every_n_steps=1, keep_last_n_checkpoints=1)
    cut = data.draw(st.integers(1, len(schedule)))
    run = Run(config, delay).play(schedule[:cut]).finish()
    run.emit(TrainBegin(run.state.step, resumed=True))
    run.play(schedule[cut:]).finish()
    assert run.state.resumed_from == schedule[cut - 1][0].step
    assert run.state.resumed_from in run.left


@laws
@given(configs(), schedules(), st.booleans())
def test_a_state_rebuilt_at_a_boundary_is_the_state(
    config: CheckpointConfig, schedule: Schedule, at_once: bool
) -> None:
    run = Run(config).play(schedule, at_once=at_once)
    if run.state.step not in run.saved:
        return
    found = [record for step in run.left for record in run.records[step]]
    state = CheckpointPolicy(config).resume(json.loads(run.counters[run.state.step]), found)
    if at_once:  # what has gone on after a stop, and got better, is not stopped any more
        assert plain(replace(state, stopped=run.state.stopped)) == plain(run.state)
        assert state.stopped <= run.state.stopped
    else:  # metrics that only came as notes are in the notes
        assert (state.kept, state.best, state.goal) == (run.state.kept, run.state.best, run.state.goal)


@laws
@given(configs(), schedules(), st.integers(0, 3), st.none() | st.integers(0, 99))
def test_a_save_inside_an_update_is_never_the_best_and_has_no_score(
    config: CheckpointConfig, schedule: Schedule, delay: int, seed: int | None
) -> None:
    """Whether the events of its step come after it, or in one call with it, in any order."""
    run = Run(config, delay).play(schedule[:-1])
    step = schedule[-1][0].step
    interrupt = Interrupted(step, "exception", mid_step=True)
    last = [[interrupt], schedule[-1]] if seed is None else shuffled([[*schedule[-1], interrupt]], seed)
    run.play(last).finish()
    assert run.asked.get(step) == (frozenset({"exception"}) if config.save_on_interrupt else None)
    assert run.state.best is None or run.state.best.step != step
    assert all(kept.score is None for kept in run.state.kept if kept.step == step)


@laws
@given(configs(), schedules(), st.booleans())
def test_stop_is_said_at_most_once_and_the_state_says_so(
    config: CheckpointConfig, schedule: Schedule, at_once: bool
) -> None:
    run = Run(config).play(schedule, at_once=at_once).finish()
    assert run.stops == int(run.state.stopped)
    if at_once:  # each step's values are all there when it is judged
        sign = 1.0 if config.minimize_metric else -1.0
        goal, waited, stopped = None, 0, False
        for group in schedule:
            judged = [event for event in group if isinstance(event, Evaluated | EpochEnd)]
            if not any(config.save_on_best_metric in event.metrics for event in judged):
                continue
            score = score_at(config, schedule, group[0].step)
            if score is not None and (goal is None or sign * (goal - score) > config.early_stopping_threshold):
                goal, waited = score, 0
            else:
                waited += 1
            stopped |= waited >= (config.early_stopping_patience or math.inf)
        assert run.state.stopped >= stopped
