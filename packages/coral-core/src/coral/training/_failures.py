"""What went wrong in the background waits here until the thread that trains can be told."""

from __future__ import annotations

from coral.errors import SaveFailedError


class Failures:
    """Holds the first failure that was not raised yet; later ones are in the log alone."""

    def __init__(self) -> None:
        self._first: SaveFailedError | None = None

    def note(self, message: str, error: Exception, step: int | None) -> None:
        """Keep a failure for the next `raise_first`."""
        if self._first is None:
            self._first = SaveFailedError(message, step=step)
            self._first.__cause__ = error

    def raise_first(self) -> None:
        """Raise what is kept, once."""
        first, self._first = self._first, None
        if first is not None:
            raise first
