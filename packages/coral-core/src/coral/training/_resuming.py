"""Finding the checkpoint to go on from, and rebuilding from the repository what its run knew."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from coral.errors import UnknownRef
from coral.objects import Commit
from coral.repository import Repository
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import Kept, PolicyState
from coral.training._record import TrainingState
from coral.training._retention import has_budget

_log = logging.getLogger("coral")

_IN_BRANCH = re.compile(r"(best|last|step:\d+)(?![\w@/.-])")


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a run that goes on from a checkpoint begins with: the policy's state, and the commits of its experiment.

    `held` are those of them that other branches have too: no run on this one prunes them.
    """

    state: PolicyState
    commits: Mapping[int, str]
    held: Mapping[int, str]


def find(repo: Repository, branch: str, experiment: str, ref: str | None, *, best: bool) -> str | None:
    """The commit that a run of an experiment on a branch is to go on from; None where the branch has none yet.

    Without a ref it is the newest of the experiment on the branch, or the best of that one's run. Where there is none
    of the experiment it is the branch's newest, with a warning.
    """
    if ref is not None:
        return repo.resolve(f"{branch}@{ref}" if _IN_BRANCH.match(ref) else ref)
    try:
        tip = repo.show(f"refs/heads/{branch}")
    except UnknownRef:
        return None
    newest = _newest(repo, tip, experiment)
    if not best:
        return newest.id
    for commit in repo.chain(newest.id):
        if "best" in commit.reasons and not commit.pruned:
            return commit.id
    _log.warning("%s: no checkpoint is marked as the best: loading the newest, %s", experiment, newest.id[:12])
    return newest.id


def _newest(repo: Repository, tip: Commit, experiment: str) -> Commit:
    if tip.experiment == experiment:
        return tip
    mine = next((commit for commit in repo.log(tip.id) if commit.experiment == experiment and not commit.pruned), None)
    if mine is None:
        whose = f"experiment {tip.experiment!r}" if tip.experiment else "no training run"
        _log.warning("%s: no checkpoint of it on the branch; its newest, %s, is of %s", experiment, tip.id[:12], whose)
    return mine or tip


def rebuild(repo: Repository, policy: CheckpointPolicy, branch: str, experiment: str, commit: Commit) -> Resumed:
    """What the policy knew when the checkpoint was saved, and what has come of the checkpoints before it since.

    Another experiment's checkpoints count for no budget, and its scores are nothing that this one has to beat.
    """
    found = TrainingState.of(commit)
    if found is None or found.policy is None:
        return Resumed(PolicyState(), {}, {})
    same = found.experiment == experiment and (found.monitor is None or tuple(found.monitor) == monitor_of(policy))
    elsewhere = _elsewhere(repo, branch) if has_budget(policy.config) else set()
    kept: list[Kept] = []
    commits: dict[int, str] = {}
    held: dict[int, str] = {}
    for each in repo.chain(commit.id):
        entry = TrainingState.of(each)
        if entry and entry.kept and entry.experiment == experiment and not each.pruned:
            known = Kept.from_json(entry.kept)
            kept.append(known if same else replace(known, score=None, reasons=known.reasons - {"best"}))
            (held if each.id in elsewhere else commits).setdefault(entry.step, each.id)
    counters = found.policy if same else _without_scores(found.policy)
    return Resumed(policy.resume(counters, kept), commits, held)


def monitor_of(policy: CheckpointPolicy) -> tuple[str | None, bool]:
    """By which metric a run's checkpoints are judged, and whether less is better."""
    return policy.config.save_on_best_metric, policy.config.minimize_metric


def _without_scores(counters: Mapping[str, Any]) -> dict[str, Any]:
    """Counters of a run that was judged by another metric, or another experiment's: its scores say nothing here."""
    state = PolicyState.from_json(counters)
    now = replace(state.now, judged={}, reasons=state.now.reasons - {"best"})
    cleared = replace(
        state, now=now, mark=None, goal=None, best=None, waited=0, monitored=False, seen=None, stopped=False, pending=()
    )
    return cleared.to_json(counters_only=True)


def _elsewhere(repo: Repository, branch: str) -> set[str]:
    """The commits of other branches."""
    others = [name for name in repo.branches() if name != branch]
    return {commit.id for name in others for commit in repo.log(f"refs/heads/{name}")}
