"""Models of PEFT: the adapter alone is saved, with a reference to the base that it is for.

Of one that transformers' own `add_adapter` has put into its base all is saved, and the adapter alone is exported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coral import WeightTensor
from coral.integrations.hf_trainer._pretrained import Writer
from coral.integrations.pytorch._fitting import LoadReport, refuse
from coral.integrations.pytorch._tensors import NAMES, from_weight

__all__ = [
    "adapter_tensors",
    "config_writer",
    "injected_names",
    "is_injected",
    "is_peft",
    "load_adapter",
    "reference",
    "trained_outside",
]


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


def trained_outside(model: Any, moved: Mapping[str, Tensor]) -> list[str]:
    """What is trained, or there, beside the active adapter: other adapters, parameters and `moved` buffers of the base.

    A prompt is saved as what its encoder makes of it, which is the encoder's own weight, or is not.
    """
    saved = adapter_tensors(model).values()
    mine = {tensor.data_ptr() for tensor in saved}
    made = [tensor for tensor in saved if _config(model).is_prompt_learning]
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    loose = [
        name
        for name, each in {**trained, **moved}.items()
        if each.data_ptr() not in mine and not any(_equal(tensor, each) for tensor in made)
    ]
    others = [f"the adapter {name!r}" for name in model.peft_config if name != _adapter(model)]
    return [*others, *loose]


def _equal(made: Tensor, weight: Tensor) -> bool:
    return made.dtype is weight.dtype and torch.equal(made, weight.to(made.device))


def is_injected(model: nn.Module) -> bool:
    """Whether it is a model of transformers whose `add_adapter` has put an adapter into it."""
    return not is_peft(model) and getattr(model, "_hf_peft_config_loaded", False) is True


def injected_names(model: Any) -> dict[str, str]:
    """PEFT's name for each weight of the adapter that is injected, and the model's; none unless one alone is active."""
    if not is_injected(model) or len(model.active_adapters()) != 1:
        return {}
    from peft import get_peft_model_state_dict

    state = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in state.items()}
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=_adapter(model), save_embedding_layers=False
    )
    if any(id(tensor) not in names for tensor in found.values()):  # it is made for the file, and no weight of the model
        return {}
    return {f"base_model.model.{name}": names[id(tensor)] for name, tensor in found.items()}


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
    name: str = model.active_adapter if is_peft(model) else model.active_adapters()[0]
    return name


def _config(model: Any) -> Any:
    return model.peft_config[_adapter(model)]
