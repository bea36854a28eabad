"""PyTorch Lightning: a callback that saves each checkpoint of a run as a commit, and resumes from any of them."""

from coral.integrations.lightning._callback import CoralCallback
from coral.integrations.lightning._checkpoint_io import CoralCheckpointIO
from coral.integrations.lightning._version import __version__

__all__ = ["CoralCallback", "CoralCheckpointIO", "__version__"]
