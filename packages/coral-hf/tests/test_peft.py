"""Of a model of PEFT the adapter alone is saved, with a reference to its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from coral import Repository
from coral.errors import ConfigError, WeightsMismatch
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


class Normed(nn.Module):
    """A base whose statistics training moves, as a BatchNorm's are buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.norm(self.body(x)))
        return {"loss": (logits - labels).square().mean(), "logits": logits}


@pytest.mark.parametrize("saved", [False, True])
def test_buffers_that_training_moves_are_said_not_to_be_saved(training: Any, repo: Repository, saved: bool) -> None:
    """... unless the adapter has them."""

    def trainer(*callbacks: Any) -> Any:
        config = peft.LoraConfig(r=2, target_modules=["body"], modules_to_save=["norm"] if saved else None)
        model = peft.get_peft_model(Normed(), config)
        return training.trainer(*callbacks, model=model, remove_unused_columns=False)

    whole = trainer(CoralTrainerCallback(repo, save_every_n_epochs=1, include_optimizer=True))
    whole.train()
    expected = training.everything(whole)
    commit = repo.show("step:6")
    again = CoralTrainerCallback(repo, include_optimizer=True, branch="again")
    other = trainer(again)
    other.train(resume_from_checkpoint=again.resume_path(commit.id))
    assert (training.everything(other) == expected) is saved
    assert commit.exact is saved
    assert ("norm.running_mean" in str(commit.training.get("why", ""))) is not saved


PROMPTS = {
    "prompt": (lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), ""),
    "prefix": (lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), ""),
    "encoder": (
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=4),
        "mlp_head",
    ),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_of_a_prompt_what_is_made_by_an_encoder_alone_is_said_not_to_be_saved(
    training: Any, repo: Repository, prompt: str
) -> None:
    make, lost = PROMPTS[prompt]

    def trainer(*callbacks: Any) -> Any:
        return training.trainer(*callbacks, model=peft.get_peft_model(base("example/base"), make()), train_dataset=ROWS)

    whole = trainer(CoralTrainerCallback(repo, save_every_n_epochs=1, include_optimizer=True))
    whole.train()
    expected = training.everything(whole)
    commit = repo.show("step:4")
    again = CoralTrainerCallback(repo, include_optimizer=True, branch="again")
    other = trainer(again)
    other.train(resume_from_checkpoint=again.resume_path(commit.id))
    assert (training.everything(other) == expected) is not bool(lost)
    assert commit.exact is not bool(lost)
    assert lost in str(commit.training.get("why", ""))


def injected(folder: Path, *names: str, **options: Any) -> Any:
    """A base with adapters that transformers itself puts into it; it is saved in the folder, to be found there."""
    base().save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    torch.manual_seed(0)
    for name in names:
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.2, **options)
        model.add_adapter(config, name)
    return model


def test_an_adapter_inside_a_model_is_exported_and_resumed(training: Any, repo: Repository, tmp_path: Path) -> None:
    def trainer(*callbacks: Any) -> Any:
        model = injected(tmp_path / "base", "mine", modules_to_save=["ln_f"])
        return training.trainer(*callbacks, model=model, train_dataset=ROWS)

    callback = CoralTrainerCallback(repo, save_every_n_epochs=1, include_optimizer=True)
    whole = trainer(callback)
    whole.train()
    expected = training.everything(whole)
    folder = callback.export(None, tmp_path / "exported")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tokens, trained = torch.arange(8)[None], whole.model.eval()
    for opened in (
        AutoModelForCausalLM.from_pretrained(folder),
        peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(tmp_path / "base"), folder),
    ):
        assert torch.equal(opened.eval()(tokens).logits, trained(tokens).logits)

    again = CoralTrainerCallback(repo, include_optimizer=True, branch="again")
    other = trainer(again)
    other.train(resume_from_checkpoint=again.resume_path(repo.resolve("main@step:4")))
    assert repo.show("main@step:4").exact
    assert training.everything(other) == expected


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_of_several_adapters_inside_a_model_none_is_exported(training: Any, repo: Repository, tmp_path: Path) -> None:
    model = injected(tmp_path / "base", "mine", "yours")
    model.set_adapter(["mine", "yours"])
    callback = CoralTrainerCallback(repo)
    training.trainer(callback, model=model, train_dataset=ROWS).train()
    with pytest.raises(ConfigError, match="one adapter at a time"):
        callback.export(None, tmp_path / "exported")
