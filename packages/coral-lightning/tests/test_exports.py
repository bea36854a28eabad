"""The public names."""

import coral.integrations.lightning as lightning


def test_all_is_sorted_and_complete():
    assert lightning.__all__ == sorted(lightning.__all__)
    assert lightning.__all__ == ["CoralCallback", "CoralCheckpointIO", "__version__"]
    assert all(hasattr(lightning, name) for name in lightning.__all__)
