"""The documented snippets, run as they are written, by processes that know the Hub by its address alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from loopback_hub import Hub

CLIENT = """
from coral.integrations.huggingface import CoralHubClient

client = CoralHubClient(
    cache_dir="~/.coral/hub",
    token="hf_xxx",               # Optional HF token
    delta_config=DeltaConfig(...),
    similarity_threshold=0.95,
)

# Get model info
info = client.get_model_info("meta-llama/Llama-2-7b-hf")
print(f"Files: {info.files}")
print(f"Base model: {info.base_model}")

# Download with delta optimization
weights = client.download_model(
    "username/my-finetuned-llama",
    base_model="meta-llama/Llama-2-7b-hf",  # Auto-detected if possible
)

# Check savings
stats = client.last_download_stats
print(f"Could save {stats.savings_percent:.1f}% with deltas")

# Upload model
url = client.upload_model(
    weights,
    repo_id="username/my-model",
    base_model="meta-llama/Llama-2-7b-hf",
    private=False,
)

# Compare two models
comparison = client.compare_models("model-a", "model-b")
print(f"Identical: {comparison['identical_weights']}")
print(f"Similar: {comparison['similar_weights']}")
"""

SHORT = """
from coral.integrations.huggingface import load_pretrained_efficient

weights = load_pretrained_efficient(
    "username/finetuned-bert",
    base_model="bert-base-uncased",
)
"""

README = Path(__file__).parents[2] / "README.md"
BEFORE = "import coral\nDeltaConfig = lambda given: coral.DeltaConfig()\n"  # what the reader is to fill in


def run(hub: Hub, home: Path, snippet: str) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", BEFORE + snippet]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def models(hub: Hub) -> Hub:
    base = {f"layer.{i}": np.full((64, 64), i, np.float32) for i in range(4)}
    tuned = base | {"layer.0": base["layer.0"] + np.float32(0.5)}
    card = b"---\nbase_model: meta-llama/Llama-2-7b-hf\n---\n"
    for name in ("meta-llama/Llama-2-7b-hf", "model-a", "bert-base-uncased", "google-bert/bert-base-uncased"):
        hub.add(name, {"model.safetensors": safetensors.numpy.save(base), "config.json": b"{}"})
    for name in ("username/my-finetuned-llama", "model-b", "username/finetuned-bert"):
        hub.add(name, {"model.safetensors": safetensors.numpy.save(tuned), "README.md": card})
    return hub


def test_the_clients_snippet_runs_as_written(models: Hub, tmp_path: Path) -> None:
    said = run(models, tmp_path, CLIENT)
    assert "Files: ('model.safetensors', 'config.json')" in said
    assert "Base model: None" in said
    assert "Could save 0.0% with deltas" in said  # nobody uploaded it with coral, and nothing of it was here
    assert "Identical: 3" in said
    assert (tmp_path / ".coral" / "hub").is_dir()
    opened = safetensors.numpy.load(models.files("username/my-model")["model.safetensors"])
    assert opened["layer.0"].max() == 0.5
    assert b"base_model: meta-llama/Llama-2-7b-hf" in models.files("username/my-model")["README.md"]


def test_the_short_snippet_runs_as_written(models: Hub, tmp_path: Path) -> None:
    said = run(models, tmp_path, SHORT + "print(weights['layer.0'].data.max())")
    assert said == "0.5\n"


def test_the_readme_runs_as_written(models: Hub, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (snippet,) = [snippet for snippet in snippets if "CoralHubClient" in snippet]
    run(models, tmp_path, snippet)
    assert "coral.json" in models.files("username/my-bert")
