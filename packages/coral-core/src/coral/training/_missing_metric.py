"""Saying that the monitored metric does not come: nothing would ever be the best, in silence."""

from __future__ import annotations

import logging

from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import PolicyState

_log = logging.getLogger("coral")


class MissingMetric:
    """Warns once in a run."""

    def __init__(self, policy: CheckpointPolicy, experiment: str) -> None:
        self._policy = policy
        self._experiment = experiment
        self._warned = False

    def look(self, state: PolicyState) -> None:
        """Warn if an evaluation came without the metric that `save_on_best_metric` names."""
        names = self._policy.missing_metric(state)
        if names is not None and not self._warned:
            self._warned = True
            came = f"what came: {', '.join(names)}" if names else "no metric came at all"
            _log.warning(
                "%s: the monitored metric %r did not come with an evaluation; %s. Without it nothing is the best.",
                self._experiment,
                self._policy.config.save_on_best_metric,
                came,
            )
