"""A checkpoint as a folder that `from_pretrained` opens, with the tokenizer it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from coral import Repository
from coral.errors import ConfigError
from coral.integrations.hf_trainer import CoralTrainerCallback


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {chr(byte): byte for byte in range(128)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", pad_token="\0", eos_token="\n")


def gpt2(**options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=128, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=10, bos_token_id=10, **options
        )
    )


ROWS = [{"input_ids": torch.arange(i, i + 8), "labels": torch.arange(i, i + 8)} for i in range(16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_exported_opens_with_from_pretrained(
    dtype: torch.dtype, training: Any, repo: Repository, tmp_path: Path
) -> None:
    model = gpt2().to(dtype)
    callback = CoralTrainerCallback(repo, save_every_n_steps=2)
    training.trainer(callback, model=model, train_dataset=ROWS, processing_class=tokenizer()).train()
    folder = callback.export(None, tmp_path / "exported")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "generation_config.json", "tokenizer.json"}

    opened, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert type(opened) is GPT2LMHeadModel
    assert opened.dtype is dtype
    assert opened.lm_head.weight is opened.transformer.wte.weight
    assert all(torch.equal(tensor, opened.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [97, 98, 99]


def test_a_checkpoint_before_the_last_is_that_one(training: Any, repo: Repository, tmp_path: Path) -> None:
    callback = CoralTrainerCallback(repo, save_every_n_steps=2)
    training.trainer(callback, model=gpt2(), train_dataset=ROWS).train()
    opened = AutoModelForCausalLM.from_pretrained(callback.export("step:2", tmp_path / "second"))
    mine = gpt2()
    callback.load_from_coral(mine, "step:2")
    assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in opened.state_dict().items())


def test_weights_that_are_not_tied_stay_apart(training: Any, repo: Repository, tmp_path: Path) -> None:
    model = gpt2(tie_word_embeddings=False)
    callback = CoralTrainerCallback(repo)
    training.trainer(callback, model=model, train_dataset=ROWS).train()
    opened = AutoModelForCausalLM.from_pretrained(callback.export(None, tmp_path / "exported"))
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(opened.lm_head.weight, opened.transformer.wte.weight)


def test_a_model_with_a_head_that_auto_classes_find(training: Any, repo: Repository, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = BertForSequenceClassification(config)
    rows = [{"input_ids": torch.arange(8), "labels": torch.tensor(i % 3)} for i in range(8)]
    callback = CoralTrainerCallback(repo)
    training.trainer(callback, model=model, train_dataset=rows).train()
    opened = BertForSequenceClassification.from_pretrained(callback.export(None, tmp_path / "exported"))
    assert opened.config.num_labels == 3
    assert torch.equal(opened.classifier.weight, model.classifier.weight)


def test_a_resumed_language_model_is_the_one_that_was_never_interrupted(
    training: Any, repo: Repository, caplog: Any
) -> None:
    """Its embeddings and its head are one tensor, which the folder has to make of both names."""

    def options() -> dict[str, Any]:
        return {"model": gpt2(), "train_dataset": ROWS, "processing_class": tokenizer()}

    whole = training.trainer(**options())
    whole.train()
    expected = training.everything(whole)
    callback = CoralTrainerCallback(repo, save_every_n_steps=1, include_optimizer=True)
    training.trainer(callback, **options()).train()
    for step in (3, 4):
        again = CoralTrainerCallback(repo, include_optimizer=True, branch=f"from-{step}")
        trainer = training.trainer(again, **options())
        trainer.train(resume_from_checkpoint=again.resume_path(repo.resolve(f"main@step:{step}")))
        assert training.everything(trainer) == expected
    assert "missing keys" not in caplog.text


class Processing:
    """A tokenizer of a megabyte."""

    pad_token_id = 0

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "sub").mkdir()
        Path(folder, "sub", "vocabulary").write_bytes(bytes(range(256)) * 4096)


def test_files_are_stored_once_however_many_checkpoints_there_are(training: Any, repo: Repository) -> None:
    callback = CoralTrainerCallback(repo, save_every_n_steps=1, save_on_train_end=False)
    trainer = training.trainer(callback, model=gpt2(), train_dataset=ROWS)
    trainer.callback_handler.processing_class = Processing()
    trainer.train()
    assert len(repo.log()) == 8
    assert repo.load_state("step:8")["files"]["sub/vocabulary"].nbytes == 1 << 20
    assert repo.stats().stored_bytes < 1.5 * (1 << 20)


def test_a_model_without_a_config_is_not_exported(training: Any, repo: Repository, tmp_path: Path) -> None:
    callback = CoralTrainerCallback(repo)
    training.trainer(callback).train()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        callback.export(None, tmp_path / "exported")
    assert list(tmp_path.glob("*exported*")) == []


def test_a_tokenizer_that_cannot_be_written_costs_its_files_alone(
    training: Any, repo: Repository, tmp_path: Path, caplog: Any
) -> None:
    class Broken(Processing):
        def save_pretrained(self, folder: str) -> None:
            raise OSError("it has no files")

    callback = CoralTrainerCallback(repo)
    trainer = training.trainer(callback, model=gpt2(), train_dataset=ROWS)
    trainer.callback_handler.processing_class = Broken()
    trainer.train()
    assert "no files of the tokenizer: it has no files" in caplog.text
    AutoModelForCausalLM.from_pretrained(callback.export(None, tmp_path / "exported"))
