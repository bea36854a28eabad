"""The public names."""

import coral.integrations.pytorch as pytorch


def test_all_is_sorted_and_complete():
    assert pytorch.__all__ == sorted(pytorch.__all__)
    assert pytorch.__all__ == [
        "Comparison",
        "CoralTrainer",
        "LoadReport",
        "PyTorchIntegration",
        "SaveReport",
        "StreamingWeightLoader",
        "WeightInfo",
        "__version__",
        "compare_model_weights",
        "create_model_from_weights",
        "from_weight",
        "load_from_remote",
        "load_from_repo",
        "load_into_model",
        "load_model_from_coral",
        "save_model",
        "save_model_to_coral",
        "stream_load_model",
        "to_weight",
    ]
    assert all(hasattr(pytorch, name) for name in pytorch.__all__)
