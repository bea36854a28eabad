"""PyTorch: training runs that can be gone back to, and models, optimizers and tensors as a repository holds them."""

from coral.integrations.pytorch._comparing import Comparison, compare_model_weights
from coral.integrations.pytorch._fitting import LoadReport
from coral.integrations.pytorch._functions import (
    SaveReport,
    create_model_from_weights,
    load_from_remote,
    load_from_repo,
    load_model_from_coral,
    save_model,
    save_model_to_coral,
)
from coral.integrations.pytorch._integration import PyTorchIntegration
from coral.integrations.pytorch._loading import load_into_model
from coral.integrations.pytorch._streaming import StreamingWeightLoader, WeightInfo, stream_load_model
from coral.integrations.pytorch._tensors import from_weight, to_weight
from coral.integrations.pytorch._trainer import CoralTrainer
from coral.integrations.pytorch._version import __version__

__all__ = [
    "Comparison",
    "CoralTrainer",
    "LoadReport",
    "PyTorchIntegration",
    "SaveReport",
    "StreamingWeightLoader",
    "WeightInfo",
    "__version__",
    "compare_model_weights",
    "create_model_from_weights",
    "from_weight",
    "load_from_remote",
    "load_from_repo",
    "load_into_model",
    "load_model_from_coral",
    "save_model",
    "save_model_to_coral",
    "stream_load_model",
    "to_weight",
]
