"""Hugging Face Hub: models of which only what is not here already is fetched, kept in a coral repository.

`HubRemote` is what `hf://owner/name` leads to: a coral repository on the Hub."""

from coral.integrations.huggingface._client import CoralHubClient, load_pretrained_efficient
from coral.integrations.huggingface._compare import Comparison
from coral.integrations.huggingface._models import DownloadStats, ModelInfo
from coral.integrations.huggingface._remote import HubRemote

__all__ = ["Comparison", "CoralHubClient", "DownloadStats", "HubRemote", "ModelInfo", "load_pretrained_efficient"]
