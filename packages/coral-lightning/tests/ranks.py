"""What the processes of a distributed run do, for test_ranks.py: `python ranks.py SCENARIO FOLDER RANKS`.

Lightning starts the other processes itself. Rank 0 writes what it found to FOLDER/found.json.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coral import Repository
from coral.filesystem import LocalFileSystem
from coral.integrations.lightning import CoralCallback, _source
from coral.training._pushing import Pushing

warnings.simplefilter("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
torch.set_num_threads(1)

SCENARIO, FOLDER, RANKS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": RANKS,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}

coral = partial(CoralCallback, durability="fast", background_repack=False)


class Net(pl.LightningModule):
    """Drops out, so that each rank's random numbers count; its val_loss is another one on each rank."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.die_at = die_at

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.die_at == self.global_step and self.global_rank == 1:
            os._exit(9)  # as if it were killed
        x, y = batch
        return (self.net(x) - y).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        # rank 0 gets better until step 4, the others until the end
        score = abs(self.global_step - 4) if self.global_rank == 0 else -self.global_step
        self.log("val_loss", torch.tensor(float(score)), rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Sharded(Net):
    """The same in parts on every rank: FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])  # type: ignore[index]
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]


def loaders() -> tuple[Any, Any]:
    """2 batches for each rank."""
    x = torch.linspace(-1, 1, 32 * RANKS).reshape(8 * RANKS, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    return DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=8)


def seeded() -> None:
    """Other random numbers on each rank; the weights are those of rank 0 from the beginning on."""
    torch.manual_seed(1 + int(os.environ.get("LOCAL_RANK", "0")))


def trainer(*callbacks: Any, strategy: Any = "ddp_find_unused_parameters_true", **options: Any) -> Any:
    return pl.Trainer(callbacks=list(callbacks), strategy=strategy, **{**QUIET, "max_epochs": 4, **options})


def largest_difference(one: Repository, a: str, b: str) -> float:
    weights, others = one.load(a), one.load(b)
    return max(float(abs(weights[name].data - others[name].data).max()) for name in weights)


def agreed(found: Any) -> list[Any]:
    """What each rank found."""
    all_found: list[Any] = [None] * RANKS
    dist.all_gather_object(all_found, found)
    return all_found


def whole() -> dict[str, Any]:
    """Saves by epoch and on the best, stops early, and resumes exactly."""
    path, found = FOLDER / "weights", {}
    seeded()
    saves = partial(coral, path, save_every_n_epochs=1, save_on_best="val_loss", include_optimizer=True)
    first = trainer(saves(branch="whole"))
    first.fit(Net(), *loaders())
    repo = Repository(path)
    found["steps"] = {commit.step: commit.reasons for commit in repo.log("whole")}
    found["names"] = sorted(repo.load("whole"))
    found["exact"] = [commit.exact for commit in repo.log("whole")]
    own = first.lightning_module.state_dict()
    found["weights"] = agreed(
        all(bool((torch.from_numpy(repo.load("whole")[name].data.copy()) == own[name]).all()) for name in own)
    )
    torch.manual_seed(99)
    again = trainer(saves(branch="again"))
    again.fit(Net(), *loaders(), ckpt_path=f"coral://{path}@whole@step:4")
    found["difference"] = largest_difference(repo, "whole", "again")
    stops = trainer(saves(branch="stops", early_stopping_patience=1), max_epochs=9)
    stops.fit(Net(), *loaders())
    found["stopped"] = agreed(stops.global_step)
    stopped = trainer(saves(branch="stops", early_stopping_patience=1), max_epochs=9)
    stopped.fit(Net(), *loaders(), ckpt_path=f"coral://{path}@stops")
    found["stopped again"] = agreed(stopped.global_step)
    found["loaded"] = agreed(saves(branch="whole").load_from_coral(Net(), "best")["matched"])
    return found


class Naive(pl.Callback):
    """Saves on rank 0, as who writes files on one process would."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == 2:
            trainer.save_checkpoint(FOLDER / "naive.ckpt")


def naive() -> dict[str, Any]:
    """Rank 0 waits in its save for one that trains on: until the processes give each other up."""
    trainer(Naive(), strategy=DDPStrategy(find_unused_parameters=True, timeout=timedelta(seconds=8))).fit(
        Net(), *loaders()
    )
    return {}


class Preempted(pl.Callback):
    """The launcher signals all processes in step 3, as SLURM does."""

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def preempted() -> dict[str, Any]:
    """All end together, with what the main one has saved, and without their handlers."""
    own = trainer(Preempted(), coral(FOLDER / "weights", include_optimizer=True, handle_signals=True))
    own.fit(Net(), *loaders())
    return {"steps": agreed(own.global_step), "signals": agreed(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)}


def pushes() -> dict[str, Any]:
    """The last push takes until the other process is through with its training."""
    own_close, through = Pushing.close, FOLDER / "through"

    def close(self: Any, *args: Any) -> None:
        until = time.monotonic() + 30
        while not through.exists():
            assert time.monotonic() < until, "the other process waits for this push"
            time.sleep(0.05)
        own_close(self, *args)

    class Through(pl.Callback):
        def on_train_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_rank:
                through.touch()

    Pushing.close = close  # type: ignore[method-assign]
    trainer(coral(FOLDER / "weights", push_to=FOLDER / "there"), Through()).fit(Net(), *loaders())
    return {}


def dies() -> dict[str, Any]:
    """Rank 1 is killed within a step."""
    trainer(coral(FOLDER / "weights", save_every_n_steps=2, include_optimizer=True)).fit(Net(die_at=3), *loaders())
    return {}


def killed(rank: int, *, linked: bool | None = None) -> dict[str, Any]:
    """A rank is killed in the second save: as it gives what it has, or the main one around its commit's link."""
    own_give, own_link = _source.TrainerSource._give, LocalFileSystem.link
    moves = 0

    def give(self: Any) -> Any:
        if self._trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return own_give(self)

    def link(self: Any, source: str, target: str) -> None:
        nonlocal moves
        moves += target.startswith("refs/heads/main")
        if moves == 2 and not linked:
            os.kill(os.getpid(), signal.SIGKILL)
        own_link(self, source, target)
        if moves == 2 and linked:
            os.kill(os.getpid(), signal.SIGKILL)

    if int(os.environ.get("LOCAL_RANK", "0")) == rank:
        if linked is None:
            _source.TrainerSource._give = give  # type: ignore[method-assign]
        else:
            LocalFileSystem.link = link  # type: ignore[method-assign]
    saves = coral(FOLDER / "weights", save_every_n_steps=2, include_optimizer=True)
    # those that are left may have to wait so long for one that has gone as well: torch knows no other way
    strategy = DDPStrategy(timeout=timedelta(seconds=45))
    trainer(saves, strategy=strategy).fit(Net(), *loaders())
    return {}


def exits() -> dict[str, Any]:
    """The program ends in step 5, on all ranks, while step 4 is being saved."""

    class Exits(pl.Callback):
        ended = False

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                self.ended = True
                sys.exit(3)

    own_commit, end = Repository.commit, Exits()

    def slow(*args: Any, **options: Any) -> str:
        for _ in range(1200):  # it is done when the program ends
            if end.ended:
                (FOLDER / "ended").touch()
                break
            time.sleep(0.05)
        return own_commit(*args, **options)

    Repository.commit = slow  # type: ignore[method-assign]
    saves = coral(FOLDER / "weights", save_every_n_steps=4, include_optimizer=True, save_on_interrupt=False)
    trainer(saves, end).fit(Net(), *loaders())
    return {}


def sharded() -> dict[str, Any]:
    """Full tensors on rank 0, and a run that goes on from a file exactly."""
    path, found = FOLDER / "weights", {}
    strategy = partial(ModelParallelStrategy, data_parallel_size=RANKS, tensor_parallel_size=1)
    saves = partial(coral, path, save_every_n_epochs=1, include_optimizer=True)
    seeded()
    trainer(saves(branch="whole"), strategy=strategy()).fit(Sharded(), *loaders())
    repo = Repository(path)
    found["steps"] = [commit.step for commit in repo.log("whole")]
    found["shapes"] = {name: entry.shape for name, entry in repo.tree("whole").items()}
    file = saves(branch="whole").resume_path("step:4")
    found["file"] = agreed(file)
    torch.manual_seed(99)
    trainer(saves(branch="again"), strategy=strategy()).fit(Sharded(), *loaders(), ckpt_path=file)
    found["difference"] = largest_difference(repo, "whole", "again")
    plain = Net()
    found["loaded"] = saves(branch="whole").load_from_coral(plain)["matched"]
    return found


if __name__ == "__main__":
    result = {
        "whole": whole,
        "naive": naive,
        "preempted": preempted,
        "pushes": pushes,
        "dies": dies,
        "another is killed as it gives its part": lambda: killed(2),
        "the main one is killed before its commit is there": lambda: killed(0, linked=False),
        "the main one is killed when its commit is there": lambda: killed(0, linked=True),
        "exits": exits,
        "sharded": sharded,
    }[SCENARIO]()
    if dist.get_rank() == 0:
        (FOLDER / "found.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()  # else gloo's threads may be running still as the process exits, which aborts it
