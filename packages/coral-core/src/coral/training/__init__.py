"""When to save, what to keep, and how to go on: the framework-agnostic core that every adapter feeds with events."""

from coral.training._config import DEFAULT_CONFIG, CheckpointConfig
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
from coral.training._manager import CheckpointManager
from coral.training._policy import CheckpointPolicy
from coral.training._policy_state import Kept, PolicyState
from coral.training._record import TrainingState
from coral.training._signals import Signals
from coral.training._source import Buffers, Snapshot, StateSource, copy_all

__all__ = [
    "DEFAULT_CONFIG",
    "Action",
    "Annotate",
    "Buffers",
    "CheckpointConfig",
    "CheckpointManager",
    "CheckpointPolicy",
    "EpochEnd",
    "Evaluated",
    "Event",
    "Interrupted",
    "Kept",
    "PolicyState",
    "Prune",
    "Save",
    "SaveFailed",
    "SaveRequested",
    "Saved",
    "Signals",
    "Snapshot",
    "StateSource",
    "StepEnd",
    "Stop",
    "TrainBegin",
    "TrainEnd",
    "TrainingState",
    "copy_all",
]
