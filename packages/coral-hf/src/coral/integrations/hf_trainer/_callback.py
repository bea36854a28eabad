"""CoralTrainerCallback: checkpoints of a transformers Trainer.

Each hook only collects what has happened. It is told to the manager at the boundary, the first hook after all of a
step's at which nothing has moved yet: `on_step_begin` or `on_epoch_begin`, and at the end of the run the last `on_log`
(at `on_train_end` the weights may be the best ones, and the optimizer is that of the last).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from typing_extensions import override

from coral import Commit
from coral.errors import ConfigError, ReadOnly
from coral.integrations.hf_trainer import _folders, _peft
from coral.integrations.hf_trainer._events import is_final
from coral.integrations.hf_trainer._refs import resumed_commit
from coral.integrations.hf_trainer._run import Run, quietly
from coral.integrations.hf_trainer._source import TrainerSource
from coral.integrations.pytorch import LoadReport
from coral.integrations.pytorch._files import temporary
from coral.integrations.pytorch._loading import load_weights
from coral.integrations.pytorch._modules import is_sharded
from coral.integrations.pytorch._opening import RepositoryLike, in_branch, opened
from coral.integrations.pytorch._options import Options, config_of
from coral.integrations.pytorch._ranks import on_main
from coral.store import check_ref_name
from coral.training import CheckpointConfig, CheckpointManager, TrainBegin

__all__ = ["CoralTrainerCallback"]

_log = logging.getLogger("coral")


class CoralTrainerCallback(TrainerCallback):
    """Saves the runs of a Trainer as they go, each checkpoint as a commit, in the background.

        callback = CoralTrainerCallback("./weights", save_every_n_epochs=1, save_on_best="eval_loss", branch="training")
        trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[callback])
        with callback.guard():  # an exception saves, too
            trainer.train()
        callback.load_from_coral(model, "best")

    A cadence of 0 is off. `save_on_best` names a metric of the evaluations (`loss` will do for `eval_loss`), of which
    less is better unless `mode="max"`. `branch` is where it commits, made where it does not exist: HEAD's branch if
    None. The other keywords are fields of CheckpointConfig, or `config` is given and none of them.

    With `include_optimizer=True` a checkpoint holds the whole state of the Trainer, and
    `trainer.train(resume_from_checkpoint=callback.resume_path())` goes on from it as if there had been no end.

    A save that fails is an error in the log, and the training goes on. What is saved is pushed to `push_to`, a remote's
    name or URL, in the background; what cannot be pushed then is pushed by the next run. Raises ConfigError,
    UnsafeInput, StorageError (ReadOnly), NotARepository, NewerFormat.
    """

    def __init__(
        self,
        repo_path: RepositoryLike,
        init: bool = True,
        save_every_n_epochs: int = 0,
        save_every_n_steps: int = 0,
        save_on_best: str | None = None,
        mode: Literal["min", "max"] = "min",
        branch: str | None = None,
        push_to: str | None = None,
        save_on_train_end: bool = True,
        include_optimizer: bool = False,
        *,
        experiment: str | None = None,
        config: CheckpointConfig | None = None,
        **options: Unpack[Options],
    ) -> None:
        named = {
            "save_every_n_epochs": (save_every_n_epochs, 0),
            "save_every_n_steps": (save_every_n_steps, 0),
            "save_on_best": (save_on_best, None),
            "mode": (mode, "min"),
            "save_on_train_end": (save_on_train_end, True),
        }
        self.config = config_of(type(self).__name__, config, named, options)
        self.branch = None if branch is None else check_ref_name(branch)
        self.experiment = experiment or branch or "default"
        self.push_to = push_to
        self.include_optimizer = include_optimizer
        self.repository = opened(repo_path, init=init)
        if not os.access(self.repository.path, os.W_OK):
            raise ReadOnly(f"{self.repository.path} cannot be written to: no checkpoint could be saved there")
        self.manager: CheckpointManager | None = None  # of the run that goes on, or the last; on the main process alone
        self._trainer: Any = None
        self._run: Run | None = None  # between on_train_begin and its end
        self._resumes: Commit | None = None  # what the last resume_path was of

    def attach(self, trainer: Any) -> CoralTrainerCallback:
        """Make the Trainer known to the callback, which is added to it if it is not there yet; returns the callback.

        It is needed where parameters are sharded (FSDP, DeepSpeed ZeRO-3), to bring them together, and where other
        callbacks have a state of their own (EarlyStoppingCallback) that a resumed run is to go on with.
        """
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    # The run begins

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._abandon()
        if is_sharded(kwargs["model"]) and self._trainer is None:
            raise ConfigError("the parameters of the model are sharded: call callback.attach(trainer) before train()")
        parts = {**kwargs, "args": args, "state": state, "control": control}
        source = TrainerSource(self.config, parts, trainer=self._trainer, complete=self.include_optimizer)
        may_stop = self.config.early_stopping_patience is not None or self.config.handle_signals
        source.ranks.together = args.world_size > 1 and (source.needs_all or may_stop)
        self.manager = self._begin(source, state.global_step) if source.main else None
        self._run = Run(self.config, source, self.manager)
        if self._run.is_over():
            self._abandon()
            control.should_training_stop = True

    def _begin(self, source: TrainerSource, step: int) -> CheckpointManager:
        manager = CheckpointManager(
            self.repository,
            self.config,
            source,
            experiment=self.experiment,
            branch=self.branch,
            push_to=self.push_to,
        )
        resumed, self._resumes = self._resumes, None
        if step and (resumed is None or resumed.step != step):
            resumed = resumed_commit(self.repository, manager.branch, step)
        if resumed is not None and resumed.step == step:
            manager.restore(resumed.id)
            return manager
        if step:
            _log.warning(
                "%s: the run goes on from step %d, of which %s has no checkpoint: budgets and the best begin anew",
                self.experiment,
                step,
                manager.branch,
            )
        manager.emit(TrainBegin(step, resumed=step > 0))
        return manager

    def _abandon(self) -> None:
        """Let go of a run that was left by an exception that nobody guarded."""
        run, self._run = self._run, None
        if run is not None:
            run.abandon()

    # What happens is collected

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run is not None:
            self._run.update_begins()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._run is not None and self._run.step_ends(state.global_step):
            control.should_training_stop = True

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run is not None and self._run.epoch_ends(state, control):
            control.should_evaluate = False

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # an evaluation by hand, outside of training, finds no run
        if self._run is not None and self._run.evaluated(state.global_step, kwargs.get("metrics") or {}):
            control.should_training_stop = True

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.saved()

    # The boundary

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run is not None and self._run.step_begins():
            control.should_training_stop = True

    @override
    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run is not None and self._run.epoch_begins():
            control.should_training_stop = True

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if self._run is None:
            return
        if is_final(logs):
            self._run.end()
            self._run = None
        else:
            self._run.logged(logs)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:  # somebody has kept the log back
            _log.warning("%s: the last step is not saved: the best weights were loaded first", self.experiment)
            self._abandon()
        else:
            self._run.end()
            self._run = None

    # The run is interrupted

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Save when an exception leaves the `with`, which is raised again as it is: transformers has no hook for that.

        with callback.guard():
            trainer.train()
        """
        try:
            yield
        except BaseException as error:
            run, self._run = self._run, None
            if run is not None and not isinstance(error, GeneratorExit):
                run.interrupted(error)
            raise

    # Going back

    def load_from_coral(self, model: nn.Module, commit_ref: str | None = None, strict: bool = True) -> LoadReport:
        """Load weights into a model, in place: of a commit, or the branch's newest; says what was loaded.

        `best`, `last` and `step:500` are those of the callback's branch. It waits for what is being saved. For a model
        of PEFT it loads the adapter. WeightsMismatch lists all that does not fit exactly, unless `strict=False`.
        """
        commit = self._commit(commit_ref)
        weights = self.repository.load(commit.id)
        if _peft.is_peft(model):
            return _peft.load_adapter(model, weights, strict=strict)
        return load_weights(model, weights, strict=strict, fill=True)

    def resume_path(self, ref: str | None = None, folder: str | os.PathLike[str] | None = None) -> str:
        """Write a checkpoint as a folder for `trainer.train(resume_from_checkpoint=...)`; returns its path.

        Without a ref, the newest on the callback's branch. Without a folder, one beside the repository that is removed
        when the program ends. In a distributed run all processes call it, and get the path of the one that is written.
        ConfigError if the checkpoint was saved without `include_optimizer=True`.
        """
        return on_main(partial(self._write_resume, ref, folder))

    def _write_resume(self, ref: str | None, folder: str | os.PathLike[str] | None) -> str:
        commit = self._commit(ref)
        target = temporary(self.repository.path) if folder is None else Path(folder)
        _folders.write_resume(self.repository, commit, target)
        self._resumes = commit
        return str(target)

    def export(self, ref: str | None, folder: str | os.PathLike[str]) -> Path:
        """Write a checkpoint as a folder that `from_pretrained` opens: weights, config, tokenizer; returns its path.

        That of a model of PEFT is one that `PeftModel.from_pretrained(base, folder)` opens. The folder is
        made; if it is there, it has to be empty.
        """
        return _folders.write_export(self.repository, self._commit(ref), Path(folder))

    def _commit(self, ref: str | None) -> Commit:
        if self.manager is not None:
            quietly("finish what was being saved", self.manager.wait)
        branch = self.manager.branch if self.manager is not None else self.branch or self.repository.head
        return self.repository.show(in_branch(branch, ref))
