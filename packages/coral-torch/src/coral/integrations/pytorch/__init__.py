"""PyTorch: training runs that can be gone back to, and models, optimizers and tensors as a repository holds them."""

from coral.integrations.pytorch._integration import PyTorchIntegration
from coral.integrations.pytorch._modules import LoadReport
from coral.integrations.pytorch._tensors import from_weight, to_weight
from coral.integrations.pytorch._trainer import CoralTrainer
from coral.integrations.pytorch._version import __version__

__all__ = [
    "CoralTrainer",
    "LoadReport",
    "PyTorchIntegration",
    "__version__",
    "from_weight",
    "to_weight",
]
