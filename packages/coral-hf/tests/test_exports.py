"""The public names."""

import coral.integrations.hf_trainer as hf_trainer
import coral.integrations.huggingface as huggingface


def test_all_is_sorted_and_complete() -> None:
    assert hf_trainer.__all__ == sorted(hf_trainer.__all__) == ["CoralTrainerCallback", "__version__"]
    assert all(hasattr(hf_trainer, name) for name in hf_trainer.__all__)


def test_all_of_the_hub_is_sorted_and_complete() -> None:
    names = ["Comparison", "CoralHubClient", "DownloadStats", "HubRemote", "ModelInfo", "load_pretrained_efficient"]
    assert huggingface.__all__ == sorted(huggingface.__all__) == names
    assert all(hasattr(huggingface, name) for name in names)
