"""What to inherit from: pytorch-lightning and lightning are one code base under two names, and each wants its own.

A trainer of one asks `isinstance` of its own classes. A class that inherits from both goes with both, and with the
LightningCLI of either. `lightning` need not be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric.plugins import CheckpointIO
    from pytorch_lightning import Callback
else:
    import importlib
    import importlib.util

    def _classes(*places: tuple[str, str], name: str) -> tuple[type, ...]:
        """The class of this name in each of the modules whose package is installed."""
        found = [importlib.import_module(module) for package, module in places if importlib.util.find_spec(package)]
        return tuple({id(each): each for each in (getattr(module, name) for module in found)}.values())

    Callback = type(
        "Callback",
        _classes(
            ("pytorch_lightning", "pytorch_lightning.callbacks"), ("lightning", "lightning.pytorch.callbacks"),
            name="Callback",
        ),
        {},
    )  # fmt: skip
    CheckpointIO = type(
        "CheckpointIO",
        _classes(
            ("lightning_fabric", "lightning_fabric.plugins"), ("lightning", "lightning.fabric.plugins"),
            name="CheckpointIO",
        ),
        {},
    )  # fmt: skip

__all__ = ["Callback", "CheckpointIO", "is_sigterm"]


def is_sigterm(error: Any) -> bool:
    """Whether it is what Lightning raises between two batches when a SIGTERM came: of either package."""
    return any(kind.__name__ == "SIGTERMException" for kind in type(error).__mro__)
