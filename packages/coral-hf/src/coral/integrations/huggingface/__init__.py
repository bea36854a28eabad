"""Hugging Face Hub: models of which only what is not here already is fetched, kept in a coral repository."""

from coral.integrations.huggingface._client import CoralHubClient, load_pretrained_efficient
from coral.integrations.huggingface._compare import Comparison
from coral.integrations.huggingface._models import DownloadStats, ModelInfo

__all__ = ["Comparison", "CoralHubClient", "DownloadStats", "ModelInfo", "load_pretrained_efficient"]
