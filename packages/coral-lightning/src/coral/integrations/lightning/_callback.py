"""CoralCallback: checkpoints of a Lightning trainer.

Each hook only collects what has happened. It is told to the manager at the boundary, the first hook after all of a
step's at which nothing has moved yet: the start of the next batch within an epoch, the start of the next epoch, or the
end of the training. Other callbacks move things on in just these hooks, so there ours comes before them (First).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn
from typing_extensions import override

from coral import Commit, Repository
from coral.errors import ConfigError, CoralError, NotARepository, ReadOnly
from coral.integrations.lightning import _resume_file
from coral.integrations.lightning._checkpoint_io import CoralCheckpointIO, with_loaders
from coral.integrations.lightning._checkpoints import Origin, check_kinds, origin_of
from coral.integrations.lightning._first import First
from coral.integrations.lightning._hosts import Callback
from coral.integrations.lightning._position import begin_epoch, put_back
from coral.integrations.lightning._run import Run
from coral.integrations.lightning._source import TrainerSource
from coral.integrations.pytorch import LoadReport
from coral.integrations.pytorch._files import temporary
from coral.integrations.pytorch._loading import load_weights
from coral.integrations.pytorch._opening import in_branch
from coral.integrations.pytorch._optimizers import loaded_as_saved
from coral.integrations.pytorch._options import Options, config_of
from coral.integrations.pytorch._random import set_random_state
from coral.integrations.pytorch._ranks import on_main
from coral.integrations.pytorch._state import decode
from coral.store import check_ref_name
from coral.training import CheckpointConfig, CheckpointManager

__all__ = ["CoralCallback"]

_log = logging.getLogger("coral")


class CoralCallback(Callback):
    """Saves the fits of a Lightning trainer as they go, each checkpoint as a commit, in the background.

        callback = CoralCallback("./weights", save_every_n_epochs=1, save_on_best="val_loss", branch="experiment")
        trainer = Trainer(callbacks=[callback])
        trainer.fit(model)
        callback.load_from_coral(model, "best")

    A cadence of 0 is off. `save_on_best` names a metric that the module logs, of which less is better unless
    `mode="max"`. `branch` is where it commits, made where it does not exist: HEAD's branch if None. `metadata_keys` are
    attributes of the trainer that go into each commit, as they are when its step is complete. The other keywords are
    fields of CheckpointConfig, or `config` is given and none of them. Of two callbacks of one trainer on one repository
    each has a `branch` of its own: a trainer refuses them otherwise.

    With `include_optimizer=True` a checkpoint holds all that the trainer goes on by: optimizers, schedulers, loops,
    callbacks, random generators. `trainer.fit(model, ckpt_path="coral://./weights@experiment")` goes on from it, as if
    there had been no end where the commit is `exact`; where it is not, the log says why.

    A save that fails is an error in the log, and the training goes on. The branch is pushed to the remote `push_to` in
    the background; what cannot be pushed is by a later run. Nothing is saved under `fast_dev_run`, nor by validate,
    test and predict.

    Raises ConfigError, UnsafeInput, StorageError (ReadOnly), NotARepository, NewerFormat.
    """

    def __init__(
        self,
        repo_path: str | os.PathLike[str],
        init: bool = True,
        save_every_n_epochs: int = 0,
        save_every_n_steps: int = 0,
        save_on_best: str | None = None,
        mode: Literal["min", "max"] = "min",
        branch: str | None = None,
        push_to: str | None = None,
        include_optimizer: bool = False,
        metadata_keys: Iterable[str] = ("current_epoch", "global_step"),
        *,
        save_on_train_end: bool = True,
        experiment: str | None = None,
        config: CheckpointConfig | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        named = {
            "save_every_n_epochs": (save_every_n_epochs, 0),
            "save_every_n_steps": (save_every_n_steps, 0),
            "save_on_best": (save_on_best, None),
            "mode": (mode, "min"),
            "save_on_train_end": (save_on_train_end, True),
        }
        self.config = config_of("CoralCallback", config, named, options)
        if include_optimizer and not (self.config.save_optimizer_state and self.config.save_scheduler_state):
            raise ConfigError(
                "include_optimizer=True saves all that a trainer goes on by: leave save_optimizer_state and "
                "save_scheduler_state at True, or include_optimizer at False"
            )
        self.repo_path = Path(repo_path)
        self.init = init
        self.branch = None if branch is None else check_ref_name(branch)
        self.experiment = experiment or branch or "default"
        self.push_to = push_to
        self.include_optimizer = include_optimizer
        self.metadata_keys = (metadata_keys,) if isinstance(metadata_keys, str) else tuple(metadata_keys)
        _check_folder(self.repo_path, init=init)
        self._manager: CheckpointManager | None = None
        self._run: Run | None = None
        self._saved: dict[str, Any] = {}  # the last commit, for a trainer's own checkpoints
        self._origin: Origin | None = None  # of the checkpoint that the trainer has loaded for this fit
        self._to_check: dict[str, Any] = {}  # the checkpoint, until the trainer takes the optimizers' state from it
        self._loading = ExitStack()  # until the trainer has loaded the optimizers
        self._resumes = False  # at the start of an epoch, which is still to come
        self._known: dict[str, Any] = {}  # what a trainer's own checkpoint says was saved last

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process, which begins runs of its own."""
        return {**self.__dict__, "_manager": None, "_run": None, "_loading": ExitStack()}

    # What a trainer's own checkpoints hold of it

    @property
    @override
    def state_key(self) -> str:
        """What two callbacks of one trainer are told apart by."""
        return str(
            self._generate_state_key(repo_path=str(self.repo_path), branch=self.branch, experiment=self.experiment)
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """The last commit: a run that goes on from a trainer's own checkpoint keeps to the budgets of this one."""
        return dict(self._saved)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take note of it until training begins."""
        self._known = dict(state_dict)

    @override
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The trainer has loaded a checkpoint: take what is ours of it."""
        self._origin = origin = origin_of(checkpoint)
        if origin is None or trainer.state.fn != "fit":
            return
        if not origin.complete:
            raise ConfigError(
                f"commit {origin.commit[:12]} holds weights alone: it was saved with include_optimizer=False, so there "
                "is nothing to go on from. load_from_coral loads its weights, for a fit that begins anew"
            )
        if trainer.is_global_zero and self.include_optimizer:  # or it has none of its own to go on from
            self._check_branch(origin)
        checkpoint.update(with_loaders(checkpoint))  # a file holds rank 0's
        if not trainer.strategy.restore_checkpoint_after_setup:  # or it is loaded by now, sharded as it may be
            self._to_check = checkpoint
        self._put_random_back(trainer)  # here too: some strategies load after on_fit_start

    def _check_branch(self, origin: Origin) -> None:
        """Warn where it goes on from what is not its branch's own, though the branch has some: `@last` is HEAD's."""
        with suppress(CoralError):
            repo = self._repository()
            branch = self.branch or repo.head
            if Path(origin.repository) != repo.path.resolve() or branch not in repo.branches():
                return
            log = repo.log(f"refs/heads/{branch}")
            found = next((commit for commit in log if commit.id == origin.commit), None)
            mine = [commit for commit in log if commit.experiment == self.experiment]
            if found is None or (mine and found not in mine):
                _log.warning(
                    "%s: going on from %s, no checkpoint of its own on the branch %s that it saves to; the newest "
                    "there is of step %s: coral://%s@%s",
                    self.experiment, origin.commit[:12], branch, log[0].step, self.repo_path, branch,
                )  # fmt: skip

    # A fit begins

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let the trainer read commits, and open the repository: what is wrong with it shows before training."""
        self._origin, self._known, self._to_check, self._loading = None, {}, {}, ExitStack()
        strategy = trainer.strategy
        with suppress(NotImplementedError, TypeError):  # some strategies have no plugins
            if not isinstance(strategy.checkpoint_io, CoralCheckpointIO):
                strategy.checkpoint_io = CoralCheckpointIO(strategy.checkpoint_io)
        if stage == "fit" and not trainer.fast_dev_run and trainer.is_global_zero:
            repo = self._repository(init=self.init)
            if not os.access(repo.path, os.W_OK):
                raise ReadOnly(f"{repo.path} cannot be written to: no checkpoint could be saved there")

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """The optimizers are made, and about to take what is saved of them; then the first iterators draw numbers."""
        check_kinds(trainer, self._to_check)
        for optimizer, state in zip(trainer.optimizers, self._to_check.get("optimizer_states", ()), strict=False):
            self._loading.enter_context(loaded_as_saved(optimizer, state))
        self._to_check = {}
        self._put_random_back(trainer)

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Training begins, anew or with a checkpoint that the trainer has loaded; the sanity check is over."""
        self._loading.close()
        if trainer.fast_dev_run:
            return
        source = TrainerSource(trainer, self.config, complete=self.include_optimizer)
        resumed, origin = self._resumed(trainer.global_step), self._origin
        if trainer.is_global_zero:
            if resumed is None and origin is not None and not origin.exact:  # otherwise the manager says it
                _log.warning("%s: going on from %s approximately: %s", self.experiment, origin.commit[:12], origin.why)
            self._manager = CheckpointManager(
                self._repository(),
                self.config,
                source,
                experiment=self.experiment,
                branch=self.branch,
                push_to=self.push_to,
            )
            self._manager.on_saved.append(self._note)
        self._run = Run(trainer, source, self._manager, self.metadata_keys)
        self._run.begin(resumed)
        epoch = partial(self._epoch_begins, trainer)
        First(batch=self._batch_begins, epoch=epoch, end=self._ends).enter(trainer)
        if self._origin is not None and self._origin.within_epoch:
            # the iterators are made, which drew numbers that the run had drawn before
            put_back(trainer, self._origin.of_rank(trainer.global_rank))
        self._resumes = self._origin is not None and not self._origin.within_epoch and bool(self._origin.ranks)
        source.starts()

    def _resumed(self, step: int) -> Commit | None:
        """The commit of this repository that the fit goes on from, as far as is known."""
        known = self._known or (self._saved if step else {})  # or the same trainer has been fitting before
        with suppress(CoralError):
            repo = self._repository()
            if self._origin is not None and Path(self._origin.repository) == repo.path.resolve():
                return repo.show(self._origin.commit)
            if self._origin is None and known and known["step"] <= step:
                commit = repo.show(known["commit"])
                return None if commit.pruned else commit
        return None

    def _put_random_back(self, trainer: Any) -> None:
        if self._origin is not None and (random := self._origin.of_rank(trainer.global_rank).get("random")):
            set_random_state(random)

    def _note(self, step: int, commit: str) -> None:
        self._saved = {"commit": commit, "step": step}

    # What happens is collected

    @override
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """An update begins."""
        if self._run is not None:
            self._run.update_begins()

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is over."""
        if self._run is not None:
            self._run.batch_ends()

    @override
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """An evaluation begins."""
        if self._run is not None:
            self._run.evaluation_begins()

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """An evaluation is over."""
        if self._run is not None:
            self._run.evaluation_ends()

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """An epoch is over."""
        if self._run is not None:
            self._run.epoch_ends()
            if self._origin is not None and self._origin.within_epoch:
                # a loop that restarted within this epoch would leave out the step of its plateau scheduler
                trainer.fit_loop.restarting = False

    # The boundaries, before all other callbacks

    def _batch_begins(self) -> None:
        """The boundary of the step before, within an epoch."""
        if self._run is not None:
            self._run.batch_begins()

    def _epoch_begins(self, trainer: Any) -> None:
        """The boundary of the epoch before, or the point from which a run goes on that was saved there."""
        if self._run is not None:
            self._run.epoch_begins()
        if self._resumes and self._origin is not None:
            self._resumes = False
            begin_epoch(trainer)
            put_back(trainer, self._origin.of_rank(trainer.global_rank))

    # The end

    def _ends(self) -> None:
        """The boundary of the last epoch, and the end of the run."""
        run, self._run = self._run, None
        if run is not None:
            run.end()

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The run ends with an exception, which is the trainer's to raise."""
        run, self._run = self._run, None
        if run is not None:
            run.interrupted(exception)

    # Going back

    def load_from_coral(self, pl_module: nn.Module, commit_ref: str | None = None, strict: bool = True) -> LoadReport:
        """Load weights into a module, in place: of a commit, or the newest on the callback's branch.

        It says what was loaded. `best`, `last` and `step:500` are those of the callback's branch. It
        waits for what is being saved. WeightsMismatch lists all that does not fit exactly, unless `strict=False`.
        """
        repo, commit = self._found(commit_ref)
        state = repo.load_state(commit.id)
        extra = decode(state["extra"]) if isinstance(state, dict) and state.get("extra") else None
        return load_weights(pl_module, repo.load(commit.id), extra=extra, strict=strict, fill=True)

    def resume_path(self, ref: str | None = None, path: str | os.PathLike[str] | None = None) -> str:
        """Write a checkpoint as a .ckpt file for `trainer.fit(ckpt_path=...)`; returns its path.

        Without a ref, the newest on the callback's branch. Without a path, a file beside the repository that is removed
        when the program ends. In a distributed run all processes call it, and get the path of the one file.
        ConfigError if the checkpoint was saved without `include_optimizer=True`.
        """

        def write() -> str:
            repo, commit = self._found(ref)
            made = Path(path) if path is not None else temporary(self.repo_path) / f"step-{commit.step}.ckpt"
            return _resume_file.write(repo, commit, made)

        return on_main(write)

    def _found(self, ref: str | None) -> tuple[Repository, Commit]:
        if self._manager is not None:
            self._manager.wait()
        repo = self._repository()
        branch = self._manager.branch if self._manager is not None else self.branch or repo.head
        return repo, repo.show(in_branch(branch, ref))

    def _repository(self, *, init: bool = False) -> Repository:
        return Repository(self.repo_path, init=init)


def _check_folder(path: Path, *, init: bool) -> None:
    """Find out what can be wrong with a repository's folder before there is a run, without making anything."""
    try:
        Repository(path)
    except NotARepository:
        if not init:
            raise
        there = next(each for each in (path.resolve(), *path.resolve().parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ReadOnly(f"{path} cannot be made: {there} is not a folder that can be written to") from None
