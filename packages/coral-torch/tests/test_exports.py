"""The public names."""

import coral.integrations.pytorch as pytorch


def test_all_is_sorted_and_complete():
    assert pytorch.__all__ == sorted(pytorch.__all__)
    assert pytorch.__all__ == [
        "CoralTrainer",
        "LoadReport",
        "PyTorchIntegration",
        "__version__",
        "from_weight",
        "to_weight",
    ]
    assert all(hasattr(pytorch, name) for name in pytorch.__all__)
