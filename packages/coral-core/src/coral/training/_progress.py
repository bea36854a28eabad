"""Where training is, whatever the policy was told: what a checkpoint's record says of its moment."""

from __future__ import annotations

from dataclasses import dataclass

from coral.training._events import EpochEnd, Event, Interrupted, StepEnd, TrainBegin, TrainEnd


@dataclass(slots=True)
class Progress:
    """The step and the epoch that training is at. `moved` says that there is something new to save at the end."""

    step: int = 0
    epoch: int = 0
    epoch_complete: bool = False
    begun: bool = False
    moved: bool = False

    @property
    def epoch_to_run(self) -> int:
        """The 0-based epoch that training is in, or goes on with."""
        return self.epoch + 1 if self.epoch_complete else self.epoch

    def follow(self, event: Event) -> None:
        """Move on with what happened."""
        before, self.step = self.step, max(self.step, event.step)
        match event:
            case TrainBegin():
                self.begun = True
            case StepEnd(step=step) if step > before and self.epoch_complete:
                self.epoch, self.epoch_complete, self.moved = self.epoch + 1, False, True
            case EpochEnd(epoch=epoch, complete=complete):
                self.epoch, self.epoch_complete, self.moved = epoch, complete, True
            case StepEnd():
                self.moved = True
            case TrainEnd() | Interrupted():
                self.moved = False
