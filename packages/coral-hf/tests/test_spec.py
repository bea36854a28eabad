"""The documented snippets, run as they are written."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from coral import Repository

FULL = """
from coral.integrations.hf_trainer import CoralTrainerCallback
from transformers import Trainer

callback = CoralTrainerCallback(
    repo_path="./weights",
    init=True,
    save_every_n_epochs=1,
    save_every_n_steps=500,
    save_on_best="eval_loss",
    mode="min",
    branch="training",
    push_to="origin",
    save_on_train_end=True,
)

trainer = Trainer(
    model=model,
    args=training_args,
    callbacks=[callback],
)
trainer.train()

# Load weights back
callback.load_from_coral(model, commit_ref=None, strict=True)
"""

SHORT = """
from coral.integrations.hf_trainer import CoralTrainerCallback
from transformers import Trainer, TrainingArguments

callback = CoralTrainerCallback(
    repo_path="./weights",
    save_every_n_steps=500,
    save_on_best="eval_loss",
)

trainer = Trainer(
    model=model,
    args=TrainingArguments(...),
    callbacks=[callback],
)
trainer.train()
"""

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def names(training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the snippets take for granted: a model, arguments, and data, which they leave to the reader."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    rows = [{"input_ids": torch.arange(i, i + 8), "labels": torch.arange(i, i + 8)} for i in range(24)]
    arguments = training.arguments(eval_strategy="epoch")
    data = {"train_dataset": rows, "eval_dataset": rows[:4]}
    real = transformers.Trainer

    class Trainer(real):  # type: ignore[misc, valid-type]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**data, **options})

    monkeypatch.setattr(transformers, "Trainer", Trainer)
    monkeypatch.setattr(transformers, "TrainingArguments", lambda given: arguments)
    return {
        "model": GPT2LMHeadModel(config),
        "training_args": arguments,
        "args": arguments,
        "train_data": rows,
        "eval_data": rows[:4],
    }


def run(snippet: str, names: dict[str, Any]) -> None:
    exec(compile(textwrap.dedent(snippet), "snippet", "exec"), names)  # noqa: S102, that is what is tested


def test_the_full_snippet_runs_as_written(names: dict[str, Any]) -> None:
    run(FULL, names)
    repo = Repository("./weights")
    assert {*repo.branches()} == {"training"}
    assert [(commit.step, commit.reasons) for commit in repo.log("training")] == [
        (12, ("best", "epoch", "final")),
        (6, ("best", "epoch")),
    ]
    saved = {name: weight.data for name, weight in repo.load("training").items()}
    assert all((tensor.numpy() == saved[name]).all() for name, tensor in names["model"].state_dict().items())


def test_the_short_snippet_runs_as_written(names: dict[str, Any]) -> None:
    run(SHORT, names)
    assert [commit.step for commit in Repository("./weights").log()] == [12, 6]


def test_the_readme_runs_as_written(names: dict[str, Any], tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 3
    for snippet in snippets:
        if "CoralHubClient" not in snippet:  # those are run where there is a Hub
            run(snippet, names)
    assert (tmp_path / "exported" / "config.json").is_file()
