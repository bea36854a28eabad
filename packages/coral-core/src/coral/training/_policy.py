"""When to save and what to keep: a pure fold over the events of a run.

The state keeps the current step apart from the steps before it. What to do is a function of the two, and what comes at
the current step is joined (see `_now`), so the order of events within a step cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

from coral.errors import PolicyError
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
    Stop,
    TrainBegin,
    TrainEnd,
)
from coral.training._now import because, entry_of, join_entries, observe, rejoin, score_of, was_judged
from coral.training._policy_state import Best, Kept, Now, PolicyState
from coral.training._retention import beats, best_among, has_budget, is_permanent, retain, standing

_MAX_SEEN = 64  # names of metrics to remember for a warning


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """Decides, from the events of a run, what to save, annotate and prune, and when to stop.

    >>> from coral.training import CheckpointConfig, CheckpointPolicy, PolicyState, StepEnd
    >>> policy = CheckpointPolicy(CheckpointConfig(save_every_n_steps=100))
    >>> state, actions = policy.advance(PolicyState(), StepEnd(100))
    >>> actions
    (Save(step=100, reasons=frozenset({'step'})),)
    """

    config: CheckpointConfig

    def advance(self, state: PolicyState, *events: Event) -> tuple[PolicyState, tuple[Action, ...]]:
        """Fold events into the state and say what they ask for.

        Saves are the caller's to carry out and to report back with Saved or SaveFailed; only a save so reported counts
        for a budget or as the best. A report on a save that is not pending changes nothing. Raises PolicyError when
        the step goes back.
        """
        actions: list[Action] = []
        torn = _torn(state, events)
        for number, event in enumerate(events):
            state, asked = self._advance_one(state, event, asks=number >= torn)
            actions += asked
        return state, reduce(_merge, actions, ())

    def current(self, state: PolicyState) -> Kept:
        """What to store with a checkpoint of the current step, and with each note on it, for `resume`."""
        return entry_of(self.config, state.now)

    def missing_metric(self, state: PolicyState) -> tuple[str, ...] | None:
        """The names of the metrics that came, if evaluations, or the end, came and the monitored one never did."""
        return None if state.monitored else state.seen

    def resume(self, counters: object, kept: Iterable[Kept]) -> PolicyState:
        """The state of a run, rebuilt from its newest checkpoint.

        `counters` is the state as it was when that checkpoint was asked for, from `to_json(counters_only=True)`. `kept`
        are all of the run's checkpoints that still exist, that one among them, in any order; where a step comes more
        than once (the commit and notes on it), what they say is joined. Those of a later step are left aside: they
        belong to a future that the resumed run does not have. Raises CorruptObject for malformed counters.
        """
        config, state = self.config, PolicyState.from_json(counters)
        known: dict[int, Kept] = {}
        for entry in kept:
            if entry.step <= state.step:
                known[entry.step] = join_entries(config, known.get(entry.step, entry), entry)
        for entry in state.pending:  # saved after all if it is known, failed if not
            if entry.step in known:
                known[entry.step] = join_entries(config, known[entry.step], entry)
        now = rejoin(config, state.now, known.get(state.step))
        if state.step in known:
            known[state.step] = entry_of(config, now)

        every = tuple(known[step] for step in sorted(known))
        state = replace(state, now=now, pending=(), best=best_among(config, every))
        tracked, _ = retain(config, every, _protected(state))
        state = replace(
            state,
            kept=tuple(entry for entry in every if entry in tracked or not is_permanent(config, entry.epoch))
            if has_budget(config)
            else (),
        )
        return replace(state, stopped=self._out_of_patience(state))  # the patience may be another one than it was

    def _advance_one(self, state: PolicyState, event: Event, *, asks: bool) -> tuple[PolicyState, tuple[Action, ...]]:
        match event:
            case Saved(step=step):
                return self._saved(state, step)
            case SaveFailed(step=step):
                return _save_failed(state, step), ()
        if event.step < state.step:
            raise PolicyError(
                f"the step went back from {state.step} to {event.step} ({type(event).__name__}): it counts completed "
                "optimizer updates; to train on from an earlier checkpoint, begin a new run."
            )
        if event.step > state.step:
            state = self._next_step(state, event.step)
        if isinstance(event, TrainBegin):
            return _begun(state, event), ()

        now = observe(self.config, state.now, event)
        if asks and not now.adrift:
            now = because(now, *self._due(state, now))
        asked = self._asked(state.now, now) if asks else None
        regrouped = standing(now.reasons) != standing(state.now.reasons)
        if isinstance(asked, Save):
            now = replace(now, status="asked")
        state = self._noticed(replace(state, now=now), event)
        state, pruned = self._recorded(state, rerank=regrouped or isinstance(event, EpochEnd | Evaluated))
        state, stop = self._stopping(state)
        return state, (*((asked,) if asked else ()), *pruned, *stop)

    def _next_step(self, state: PolicyState, step: int) -> PolicyState:
        """The state with the current step made past.

        The mark to beat is set here, once for the whole step: what a report on an earlier save changes about the best
        must not depend on whether it comes before or after an event of this step.
        """
        now = state.now
        asked = now.status != "idle"
        contenders = [kept.score for kept in state.pending if "best" in kept.reasons]  # each better than the one before
        goal, waited = self._patience(state)
        return replace(
            state,
            now=Now(step=step),
            asked_step=now.step if asked else state.asked_step,
            asked_time=now.time if asked or state.asked_time is None else state.asked_time,
            mark=contenders[-1] if contenders else state.best.score if state.best else None,
            goal=goal,
            waited=waited,
        )

    # When to save

    def _due(self, state: PolicyState, now: Now) -> Iterable[str]:
        """The reasons that follow from the current step and the past together."""
        config, score = self.config, score_of(self.config, now)
        steps, seconds = config.save_every_n_steps, config.save_every_seconds
        if steps and now.ended and now.step // steps > (state.asked_step or 0) // steps:
            yield "step"
        if seconds and now.time is not None and state.asked_time is not None and now.time - state.asked_time >= seconds:
            yield "time"
        if score is not None and beats(config, score, state.mark, config.best_threshold):
            yield "best"

    def _asked(self, before: Now, now: Now) -> Save | Annotate | None:
        if now.status == "idle":
            return Save(now.step, now.reasons) if now.reasons else None
        same_entry = entry_of(self.config, before) == entry_of(self.config, now)
        if now.status == "failed" or (same_entry and before.metrics == now.metrics):
            return None
        return Annotate(now.step, now.reasons, now.metrics)

    def _noticed(self, state: PolicyState, event: Event) -> PolicyState:
        """The state with what an evaluation says about whether the monitored metric ever comes."""
        match event:
            case _ if self.config.save_on_best_metric is None or state.monitored:
                return state
            case Evaluated() | EpochEnd() if was_judged(self.config, state.now):
                return replace(state, monitored=True, seen=None)
            case Evaluated() | EpochEnd() if event.metrics or isinstance(event, Evaluated):
                return replace(state, seen=tuple(sorted({*(state.seen or ()), *state.now.judged})[:_MAX_SEEN]))
            case TrainEnd():
                return replace(state, seen=state.seen or ())
            case _:
                return state

    # Early stopping

    def _patience(self, state: PolicyState) -> tuple[float | None, int]:
        """The goal and the evaluations waited for it, with the current step counted in."""
        config, score = self.config, score_of(self.config, state.now)
        if config.early_stopping_patience is None or not was_judged(config, state.now):
            return state.goal, state.waited
        if score is not None and beats(config, score, state.goal, config.early_stopping_threshold):
            return score, 0
        return state.goal, state.waited + 1

    def _out_of_patience(self, state: PolicyState) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self._patience(state)[1] >= patience

    def _stopping(self, state: PolicyState) -> tuple[PolicyState, tuple[Action, ...]]:
        if state.stopped or not self._out_of_patience(state):
            return state, ()
        goal, waited = self._patience(state)
        best = "it was never finite" if goal is None else f"the best was {goal:g}"
        reason = f"{self.config.save_on_best_metric} did not improve in {waited} evaluations in a row; {best}"
        return replace(state, stopped=True), (Stop(reason),)

    # What to keep

    def _recorded(self, state: PolicyState, *, rerank: bool) -> tuple[PolicyState, tuple[Action, ...]]:
        """The state with all that is known of the current step in its entry, if it is pending or saved."""
        entry = entry_of(self.config, state.now)
        match state.now.status:
            case "asked":
                return replace(state, pending=_put(state.pending, entry)), ()
            case "saved":
                return self._counted(state, entry, prune=rerank)
            case _:
                return state, ()

    def _saved(self, state: PolicyState, step: int) -> tuple[PolicyState, tuple[Action, ...]]:
        entry = next((kept for kept in state.pending if kept.step == step), None)
        if entry is None:
            return state, ()
        now = replace(state.now, status="saved") if step == state.step else state.now
        return self._counted(replace(state, now=now, pending=_without(state.pending, step)), entry, prune=True)

    def _counted(self, state: PolicyState, entry: Kept, *, prune: bool) -> tuple[PolicyState, tuple[Action, ...]]:
        """The state with a saved checkpoint counted, and what falls out of the budgets."""
        marked, best = "best" in entry.reasons, state.best
        if marked and entry.score is not None and beats(self.config, entry.score, best.score if best else None, 0.0):
            state = replace(state, best=Best(entry.step, entry.score))
        if not has_budget(self.config):
            return state, ()
        state = replace(state, kept=_put(state.kept, entry))
        if not prune:
            return state, ()
        kept, gone = retain(self.config, state.kept, _protected(state))
        return replace(state, kept=kept), (Prune(gone),) if gone else ()


def _torn(state: PolicyState, events: tuple[Event, ...]) -> int:
    """Where the event stands, if any, before which nothing of its call can be saved any more.

    That is an interrupt inside the next update: the weights are not those that the events before it tell of.
    """
    for number, event in enumerate(events):
        if isinstance(event, Interrupted) and event.mid_step:
            asked = state.step == event.step and state.now.status != "idle"
            return 0 if asked else number
    return 0


def _begun(state: PolicyState, event: TrainBegin) -> PolicyState:
    """The state at the beginning of training, whose seconds may be those of another process's clock."""
    return replace(
        state,
        now=replace(state.now, time=None),
        asked_step=event.step if state.asked_step is None else state.asked_step,
        asked_time=None,
        resumed_from=event.step if event.resumed else state.resumed_from,
    )


def _save_failed(state: PolicyState, step: int) -> PolicyState:
    """The state without the save: it was never the best, so the best is still the one that it was to replace."""
    pending = _without(state.pending, step)
    if step == state.step and pending != state.pending:
        state = replace(state, now=replace(state.now, status="failed"))
    return replace(state, pending=pending)


def _protected(state: PolicyState) -> frozenset[int]:
    steps = (state.best.step if state.best else None, state.resumed_from)
    return frozenset(step for step in steps if step is not None)


def _put(entries: tuple[Kept, ...], entry: Kept) -> tuple[Kept, ...]:
    return tuple(sorted((*_without(entries, entry.step), entry), key=lambda kept: kept.step))


def _without(entries: tuple[Kept, ...], step: int) -> tuple[Kept, ...]:
    return tuple(kept for kept in entries if kept.step != step)


def _merge(actions: tuple[Action, ...], action: Action) -> tuple[Action, ...]:
    """Add an action to those of the same call, so that what is said of a step is said once, and in full."""
    if not isinstance(action, Annotate):
        return (*actions, action)
    for index, earlier in enumerate(actions):
        if isinstance(earlier, Save | Annotate) and earlier.step == action.step:
            said = Save(action.step, action.reasons) if isinstance(earlier, Save) else action
            return (*actions[:index], said, *actions[index + 1 :])
    return (*actions, action)
