"""A progress bar for whoever looks at a terminal: none in a log file, and none but the first rank's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are a package of their own

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], object]]:
    """Show how many of `total` bytes are done, if that is `wanted`; yields what is called with those that are new."""
    # tqdm itself sees to it that there is none where stderr is no terminal, if `disable` is None
    disable = None if wanted and _first_rank() else True
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="weights", disable=disable) as bar:
        yield bar.update


def _first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
