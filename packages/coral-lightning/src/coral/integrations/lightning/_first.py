"""Being the first of a trainer's callbacks where that matters, wherever in the list the user has put ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from coral.integrations.lightning._hosts import Callback

__all__ = ["First"]


class First(Callback):
    """Comes before all other callbacks at the boundaries, while a run goes on; it leaves the trainer with its end.

    What the others do there would be saved as if it were the step's: those that average weights put their averages in
    the place of the weights in `on_train_end`, and others move schedulers or the learning rate on as an epoch begins.
    """

    def __init__(self, *, batch: Callable[[], None], epoch: Callable[[], None], end: Callable[[], None]) -> None:
        super().__init__()
        self._batch, self._epoch, self._end = batch, epoch, end

    def enter(self, trainer: Any) -> None:
        """Stand before the other callbacks. A hook that is being called goes on with the list that it began with."""
        trainer.callbacks = [self, *trainer.callbacks]

    def _leave(self, trainer: Any) -> None:
        trainer.callbacks = [each for each in trainer.callbacks if each is not self]

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batch()

    @override
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._epoch()

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._leave(trainer)
        self._end()

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._leave(trainer)
