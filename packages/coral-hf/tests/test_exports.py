"""The public names."""

import coral.integrations.hf_trainer as hf_trainer


def test_all_is_sorted_and_complete() -> None:
    assert hf_trainer.__all__ == sorted(hf_trainer.__all__) == ["CoralTrainerCallback", "__version__"]
    assert all(hasattr(hf_trainer, name) for name in hf_trainer.__all__)
