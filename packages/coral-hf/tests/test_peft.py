"""Of a model of PEFT the adapter alone is saved, with a reference to its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from coral import Repository
from coral.errors import WeightsMismatch
from coral.integrations.hf_trainer import CoralTrainerCallback

peft = pytest.importorskip("peft", reason="the extra [peft] is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

ROWS = [{"input_ids": torch.arange(i, i + 8), "labels": torch.arange(i, i + 8)} for i in range(16)]


def base(name: str = "") -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1, resid_pdrop=0.2
    )
    config.name_or_path = name
    model = GPT2LMHeadModel(config)
    model.name_or_path = name
    return model


def adapted(rank: int = 2, **options: Any) -> Any:
    config = peft.LoraConfig(r=rank, target_modules=["c_attn"], lora_dropout=0.2, task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(base("example/base"), config)


def adapter(model: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def test_the_adapter_alone_is_saved_and_names_its_base(training: Any, repo: Repository) -> None:
    model = adapted()
    training.trainer(CoralTrainerCallback(repo), model=model, train_dataset=ROWS).train()
    assert {*repo.tree()} == {*adapter(model)}
    assert all("lora_" in name for name in repo.tree())
    assert repo.show().metadata["adapter"] == {
        "name": "default", "base_model": "example/base", "base_revision": None,
    }  # fmt: skip


def test_what_is_exported_opens_on_its_base(training: Any, repo: Repository, tmp_path: Path) -> None:
    model = adapted()
    callback = CoralTrainerCallback(repo)
    training.trainer(callback, model=model, train_dataset=ROWS).train()
    folder = callback.export(None, tmp_path / "exported")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    opened = peft.PeftModel.from_pretrained(base(), folder)
    assert all(torch.equal(tensor, adapter(opened)[name]) for name, tensor in adapter(model).items())
    assert opened.peft_config["default"].base_model_name_or_path == "example/base"


def test_the_adapter_is_loaded_back(training: Any, repo: Repository) -> None:
    model = adapted()
    callback = CoralTrainerCallback(repo)
    training.trainer(callback, model=model, train_dataset=ROWS).train()
    other = adapted()
    assert not all(torch.equal(tensor, adapter(other)[name]) for name, tensor in adapter(model).items())
    report = callback.load_from_coral(other)
    assert report["matched"] == len(adapter(model))
    assert all(torch.equal(tensor, adapter(other)[name]) for name, tensor in adapter(model).items())


def test_an_adapter_of_another_rank_does_not_fit(training: Any, repo: Repository) -> None:
    callback = CoralTrainerCallback(repo)
    training.trainer(callback, model=adapted(), train_dataset=ROWS).train()
    other = adapted(rank=4)
    before = {name: tensor.clone() for name, tensor in adapter(other).items()}
    with pytest.raises(WeightsMismatch, match=r"(?s)float32 \(4, 8\), the weights float32 \(2, 8\)"):
        callback.load_from_coral(other)
    assert callback.load_from_coral(other, strict=False)["matched"] == 0
    assert all(torch.equal(tensor, adapter(other)[name]) for name, tensor in before.items())


def test_resuming_an_adapter_is_exact(training: Any, repo: Repository) -> None:
    def options() -> dict[str, Any]:
        return {"model": adapted(), "train_dataset": ROWS, "num_train_epochs": 3}

    whole = training.trainer(**options())
    whole.train()
    expected = training.everything(whole)
    callback = CoralTrainerCallback(repo, save_every_n_steps=1, include_optimizer=True)
    training.trainer(callback, **options()).train()
    assert all(commit.exact for commit in repo.log())
    for step in (3, 4, 5):
        again = CoralTrainerCallback(repo, include_optimizer=True, branch=f"from-{step}")
        trainer = training.trainer(again, **options())
        trainer.train(resume_from_checkpoint=again.resume_path(repo.resolve(f"main@step:{step}")))
        assert training.everything(trainer) == expected


def test_modules_that_are_trained_whole_belong_to_the_adapter(training: Any, repo: Repository) -> None:
    training.trainer(CoralTrainerCallback(repo), model=adapted(modules_to_save=["ln_f"]), train_dataset=ROWS).train()
    assert [name for name in repo.tree() if "ln_f" in name]


def test_what_is_trained_beside_the_adapter_is_said_not_to_be_saved(training: Any, repo: Repository) -> None:
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["c_proj"], task_type="CAUSAL_LM"))
    model.base_model.model.transformer.wpe.weight.requires_grad_(True)
    training.trainer(CoralTrainerCallback(repo, include_optimizer=True), model=model, train_dataset=ROWS).train()
    commit = repo.show()
    assert not commit.exact
    assert "the adapter 'second'" in str(commit.training["why"])
    assert "wpe.weight" in str(commit.training["why"])
