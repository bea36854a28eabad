"""Models of PEFT: the adapter alone is saved, with a reference to the base that it is for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from coral import WeightTensor
from coral.integrations.hf_trainer._pretrained import Writer
from coral.integrations.pytorch._fitting import LoadReport, refuse
from coral.integrations.pytorch._tensors import NAMES, from_weight

__all__ = ["adapter_tensors", "config_writer", "is_peft", "load_adapter", "reference", "trained_outside"]


def is_peft(model: nn.Module) -> bool:
    """Whether it is a PeftModel. PEFT is not imported for the question: who has made one has imported it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the active adapter, by the names that PEFT's own files have; they live on in the model."""
    from peft import get_peft_model_state_dict

    # embeddings that are trained belong to the adapter anyway; "auto" would ask the Hub
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=_adapter(model), save_embedding_layers=False
    )
    return found


def trained_outside(model: Any) -> list[str]:
    """What is trained, or there, beside the active adapter: other adapters and parameters of the base."""
    mine = {tensor.data_ptr() for tensor in adapter_tensors(model).values()}
    loose = [name for name, each in model.named_parameters() if each.requires_grad and each.data_ptr() not in mine]
    others = [f"the adapter {name!r}" for name in model.peft_config if name != _adapter(model)]
    return [*others, *loose]


def reference(model: nn.Module) -> dict[str, Any]:
    """What names the base of an adapter: its name or path on the Hub, and its revision, where known."""
    config: Any = _config(model)
    return {"name": _adapter(model), "base_model": config.base_model_name_or_path, "base_revision": config.revision}


def config_writer(model: nn.Module) -> Writer:
    """What writes adapter_config.json as `save_pretrained` of the model would."""
    config = type(_config(model))(**{**_config(model).to_dict(), "inference_mode": True})

    def write(folder: str) -> None:
        config.save_pretrained(folder)

    return write


def load_adapter(model: nn.Module, weights: Mapping[str, WeightTensor], *, strict: bool) -> LoadReport:
    """Load an adapter's weights into the active adapter of a model.

    WeightsMismatch lists what does not fit exactly, and leaves the model as it was; with `strict=False` what fits is
    loaded.
    """
    from peft import set_peft_model_state_dict

    live = adapter_tensors(model)
    mismatched = {
        name: (f"{NAMES[live[name].dtype]} {tuple(live[name].shape)}", f"{weight.dtype} {weight.shape}")
        for name, weight in weights.items()
        if name in live and (NAMES[live[name].dtype], tuple(live[name].shape)) != (weight.dtype, weight.shape)
    }
    fits = {name: from_weight(weights[name]) for name in live if name in weights and name not in mismatched}
    report = LoadReport(
        loaded=list(fits),
        missing=[name for name in live if name not in weights],
        unexpected=[name for name in weights if name not in live],
        mismatched=mismatched,
        matched=len(fits),
    )
    if strict:
        refuse(report)
    set_peft_model_state_dict(model, fits, adapter_name=_adapter(model))
    return report


def _adapter(model: Any) -> str:
    name: str = model.active_adapter
    return name


def _config(model: Any) -> Any:
    return model.peft_config[_adapter(model)]
