"""The documented snippets, run as they are written."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from coral import Repository

CALLBACK = """
from coral.integrations.lightning import CoralCallback

callback = CoralCallback(
    repo_path="./weights",
    init=True,                    # Create repo if needed
    save_every_n_epochs=1,        # Save every N epochs
    save_every_n_steps=0,         # Save every N steps (0 to disable)
    save_on_best="val_loss",      # Metric to monitor
    mode="min",                   # 'min' or 'max'
    branch="experiment",          # Branch to commit to
    push_to="origin",             # Remote to push to
    include_optimizer=False,      # Save optimizer state
    metadata_keys=["current_epoch", "global_step"],
)

trainer = pl.Trainer(callbacks=[callback])
trainer.fit(model)

# Load weights back
callback.load_from_coral(pl_module, commit_ref=None, strict=True)
"""

USAGE = """
from coral.integrations.lightning import CoralCallback
import pytorch_lightning as pl

callback = CoralCallback(
    repo_path="./weights",
    save_every_n_epochs=1,
    save_on_best="val_loss",
    push_to="origin",
)

trainer = pl.Trainer(callbacks=[callback])
trainer.fit(model, train_dataloader, val_dataloader)
"""


@pytest.fixture
def names(lab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the snippets take for granted; a trainer is a short and quiet one, whatever the snippet says of it."""
    monkeypatch.chdir(tmp_path)
    train, validate = lab.loaders()

    class Whole(lab.Net):  # type: ignore[misc, name-defined]
        def train_dataloader(self) -> Any:
            return train

        def val_dataloader(self) -> Any:
            return validate

    class Short(pl.Trainer):
        def __init__(self, callbacks: Any = (), **options: Any) -> None:
            like = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options}
            super().__init__(callbacks=callbacks, enable_model_summary=False, enable_progress_bar=False, **like)

    monkeypatch.setattr(pl, "Trainer", Short)
    return {
        "pl": pl,
        "model": Whole(),
        "module": Whole(),
        "Module": Whole,
        "pl_module": Whole(),
        "train_dataloader": train,
        "val_dataloader": validate,
    }


def run(snippet: str, names: dict[str, Any]) -> None:
    exec(compile(textwrap.dedent(snippet), "snippet", "exec"), names)  # noqa: S102, that is what is tested


def test_the_callback_runs_as_written(names: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    run(CALLBACK, names)
    log = Repository("weights").log("experiment")
    assert [commit.step for commit in log] == [9, 6, 3]
    assert [dict(commit.metadata) for commit in log] == [
        {"current_epoch": epoch, "global_step": 3 * epoch + 3} for epoch in (2, 1, 0)
    ]
    live, loaded = names["model"].state_dict(), names["pl_module"].state_dict()
    assert all((live[name] == loaded[name]).all() for name in live)
    assert "not pushed: experiment to origin" in caplog.text


def test_the_usage_example_runs_as_written(names: dict[str, Any]) -> None:
    run(USAGE, names)
    assert [commit.step for commit in Repository("weights").log()] == [9, 6, 3]


def test_the_readme_runs_as_written(names: dict[str, Any]) -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        run(snippet, names)
    assert names["trainer"].global_step == 15
