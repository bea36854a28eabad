"""transformers: a callback that saves the runs of a Trainer, resumes them exactly, and exports what they saved."""

from coral.integrations.hf_trainer._callback import CoralTrainerCallback
from coral.integrations.hf_trainer._version import __version__

__all__ = ["CoralTrainerCallback", "__version__"]
