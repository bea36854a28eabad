"""A resumed run is the run that was never interrupted: to the bit, and in another process."""

import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from coral import Repository
from coral.integrations.pytorch import CoralTrainer
from coral.training import CheckpointConfig

EVERY_EPOCH = CheckpointConfig(save_every_n_epochs=1, save_on_best_metric="loss", durability="fast")

RUNS = {
    "AdamW": {},
    "AdamW with a tensor lr": {"make_optimizer": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01))},
    "SGD with momentum": {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)},
    "LBFGS": {"make_optimizer": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4)},
    "StepLR": {"make_scheduler": lambda o: lrs.StepLR(o, 2, gamma=0.5)},
    "ReduceLROnPlateau": {"make_scheduler": lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.5)},
    "warm-up and cosine": {
        "make_scheduler": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o), lrs.CosineAnnealingLR(o, 4)], [2])
    },
    "LambdaLR": {"make_scheduler": lambda o: lrs.LambdaLR(o, lambda epoch: 0.5**epoch)},
    "OneCycleLR": {"make_scheduler": lambda o: lrs.OneCycleLR(o, 0.1, 20)},
}

pytestmark = pytest.mark.filterwarnings("ignore:the functions of a LambdaLR")


def uninterrupted(make_run, tmp_path, epochs=5, **kind):
    run = make_run(**kind)
    repo = Repository(tmp_path / "whole", init=True, durability="fast")
    with CoralTrainer(run.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        run.attach(trainer)
        run.train(trainer, epochs)
    return run.everything()


@pytest.mark.parametrize("name", RUNS)
def test_resuming_is_exact(name, make_run, repo, tmp_path):
    kind = RUNS[name]
    expected = uninterrupted(make_run, tmp_path, **kind)

    first = make_run(**kind)
    with CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        first.attach(trainer)
        first.train(trainer, 3)

    second = make_run(seed=99, **kind)  # other weights, other random numbers
    trainer = CoralTrainer(second.model, repo, checkpoint_config=EVERY_EPOCH, resume=True)
    second.attach(trainer)
    assert (trainer.start_epoch, trainer.global_step, trainer.current_epoch) == (3, 9, 2)
    second.train(trainer, 5)
    trainer.close()
    assert second.everything() == expected
    assert [commit.step for commit in repo.log()] == [15, 12, 9, 6, 3]
    assert all(commit.exact for commit in repo.log())


@pytest.mark.parametrize("name", ["AdamW", "ReduceLROnPlateau"])
def test_load_checkpoint_after_everything_is_set_is_exact(name, make_run, repo, tmp_path):
    kind = RUNS[name]
    expected = uninterrupted(make_run, tmp_path, **kind)
    first = make_run(**kind)
    with CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        first.attach(trainer)
        first.train(trainer, 3)
    second = make_run(seed=99, **kind)
    with CoralTrainer(second.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        second.attach(trainer)
        assert trainer.load_checkpoint() is True
        second.train(trainer, 5)
    assert second.everything() == expected


def test_going_back_within_a_run_is_exact(make_run, repo, tmp_path):
    expected = uninterrupted(make_run, tmp_path)
    run = make_run()
    with CoralTrainer(run.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        run.attach(trainer)
        run.train(trainer, 4)
        assert trainer.load_checkpoint("step:6")
        assert trainer.start_epoch == 2
        run.train(trainer, 5)
    assert run.everything() == expected


def test_a_gradient_scaler_goes_on_exactly(make_run, repo, tmp_path):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=4)

    expected = uninterrupted(make_run, tmp_path, scaler=scaler())
    first = make_run(scaler=scaler())
    with CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        first.attach(trainer)
        first.train(trainer, 3)
    assert first.scaler.get_scale() == 16.0
    second = make_run(seed=99, scaler=scaler())
    with CoralTrainer(second.model, repo, checkpoint_config=EVERY_EPOCH, resume=True) as trainer:
        second.attach(trainer)
        second.train(trainer, 5)
    assert second.everything() == expected


def test_random_numbers_drawn_before_the_loop_do_not_matter(make_run, repo, tmp_path):
    expected = uninterrupted(make_run, tmp_path)
    first = make_run()
    with CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        first.attach(trainer)
        first.train(trainer, 3)
    second = make_run(seed=99)
    trainer = CoralTrainer(second.model, repo, checkpoint_config=EVERY_EPOCH, resume=True)
    torch.rand(3)
    second.attach(trainer)
    torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
    second.train(trainer, 5)
    trainer.close()
    assert second.everything() == expected


def test_start_epoch_puts_random_numbers_back_only_once(make_run, repo):
    first = make_run()
    with CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        first.attach(trainer)
        first.train(trainer, 1)
    trainer = CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH, resume=True)
    first.attach(trainer)
    drawn = [(trainer.start_epoch, torch.rand(1).item()) for _ in range(2)]
    assert drawn[0][1] != drawn[1][1]


def test_a_loop_that_does_not_ask_for_the_epoch_is_exact_too(make_run, repo):
    first = make_run()
    with CoralTrainer(first.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        first.attach(trainer)
        first.train(trainer, 1)
    expected = first.everything()
    trainer.load_checkpoint()
    assert first.everything() == expected
    second = make_run(seed=99)
    trainer = CoralTrainer(second.model, repo, checkpoint_config=EVERY_EPOCH, resume=True)
    torch.rand(3)
    second.attach(trainer)
    assert second.everything() == expected


def test_generators_of_the_user_and_stateful_things_go_on(make_run, repo):
    class Counter:
        def __init__(self):
            self.state = {"count": 0, "sum": torch.zeros(2)}

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state

    def things():
        return {"numpy": np.random.default_rng(5), "torch": torch.Generator(), "py": random.Random(5), "own": Counter()}

    run, mine = make_run(), things()
    with CoralTrainer(run.model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
        run.attach(trainer)
        for name, thing in mine.items():
            trainer.register(name, thing)
        mine["own"].state["count"] = 7
        mine["own"].state["sum"] += 1
        mine["numpy"].random(), mine["py"].random(), torch.rand(1, generator=mine["torch"])
        run.train(trainer, 1)
        expected = mine["numpy"].random(), mine["py"].random(), torch.rand(1, generator=mine["torch"])
        mine["own"].state["sum"] += 1

    other = things()
    trainer = CoralTrainer(run.model, repo, checkpoint_config=EVERY_EPOCH, resume=True)
    for name, thing in other.items():
        trainer.register(name, thing)
    other["numpy"].random()  # after it was registered: start_epoch puts it back
    assert trainer.start_epoch == 1
    assert (other["numpy"].random(), other["py"].random(), torch.rand(1, generator=other["torch"])) == expected
    assert other["own"].state["count"] == 7
    assert other["own"].state["sum"].tolist() == [1, 1]


def test_a_checkpoint_within_an_epoch_says_that_it_is_approximate(make_run, repo):
    run = make_run()
    config = CheckpointConfig(save_every_n_steps=2, durability="fast")
    with CoralTrainer(run.model, repo, checkpoint_config=config) as trainer:
        run.attach(trainer)
        run.train(trainer, 2)
    exact = {commit.step: commit.exact for commit in repo.log()}
    assert exact == {2: False, 4: False, 6: True}
    trainer = CoralTrainer(run.model, repo, checkpoint_config=config, resume="step:4")
    assert (trainer.start_epoch, trainer.current_epoch, trainer.global_step) == (1, 1, 4)


def test_a_checkpoint_within_an_epoch_is_exact_if_the_data_knows_its_position(make_run, repo, tmp_path):
    class Data:
        """Batches in order, that go on where they were."""

        def __init__(self, run):
            self.batches = [(run.loader.dataset[:4]), (run.loader.dataset[4:8]), (run.loader.dataset[8:])]
            self.next = 0

        def state_dict(self):
            return {"next": self.next}

        def load_state_dict(self, state):
            self.next = state["next"]

        def __iter__(self):
            while self.next < len(self.batches):
                self.next += 1
                yield self.batches[self.next - 1]
            self.next = 0

    def train(run, repo, stop=None, resume=False):
        config = CheckpointConfig(save_every_n_steps=2, durability="fast", save_on_train_end=False)
        trainer = CoralTrainer(run.model, repo, checkpoint_config=config, resume=resume)
        run.attach(trainer)
        run.loader = Data(run)
        trainer.register("data", run.loader, data=True)
        metrics = []
        for epoch in range(trainer.start_epoch, 3):
            for batch in run.loader:
                trainer.step(run.step(batch))
                if trainer.global_step == stop:
                    trainer.close()
                    return None
            trainer.epoch_end(epoch)
            metrics.append(trainer.training_metrics)
        trainer.close()
        return metrics, run.everything()

    expected = train(make_run(), Repository(tmp_path / "whole", init=True))
    train(make_run(), repo, stop=5)
    assert (repo.show().step, repo.show().exact) == (4, True)  # the second epoch had three steps, and one of them done
    metrics, everything = train(make_run(seed=99), repo, resume=True)
    assert everything == expected[1]
    assert metrics == expected[0][1:]  # the mean of the epoch has its first step in it


def test_resuming_in_another_process_is_exact(tmp_path):
    script = textwrap.dedent("""
        import random, sys
        import numpy as np, torch
        from torch import nn
        from coral import Repository
        from coral.integrations.pytorch import CoralTrainer
        from coral.training import CheckpointConfig

        path, epochs, seed, branch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        config = CheckpointConfig(save_every_n_epochs=1, durability="fast")
        with CoralTrainer(model, Repository(path, init=True), "run", config, branch=branch, resume=True) as trainer:
            trainer.set_optimizer(optimizer)
            trainer.set_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9))
            for epoch in range(trainer.start_epoch, epochs):
                for _ in range(2):
                    loss = (model(torch.randn(6, 4)) * random.random() + np.random.rand()).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    trainer.step(loss)
                trainer.epoch_end(epoch)
    """)

    def run(*arguments):
        subprocess.run(
            [sys.executable, "-W", "error", "-c", script, str(tmp_path / "repo"), *arguments],
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    run("4", "0", "whole")
    run("2", "0", "parts")
    run("4", "1", "parts")
    repo = Repository(tmp_path / "repo")
    assert repo.diff("whole", "parts").identical
    whole, parts = repo.load_state("whole"), repo.load_state("parts")
    assert whole["optimizer"]["state"][0]["exp_avg"].id == parts["optimizer"]["state"][0]["exp_avg"].id
    assert whole["random"]["torch"].id == parts["random"]["torch"].id
    assert whole["scheduler"] == parts["scheduler"]


def test_weights_of_an_older_version_of_a_module_are_migrated(repo):
    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))
            self.norm = nn.BatchNorm1d(2)

    class New(Old):
        """It keeps its weight transposed."""

        _version = 2

        def _load_from_state_dict(self, state, prefix, local_metadata, *rest):
            if (local_metadata.get("version") or 1) < 2:
                state[prefix + "weight"] = state[prefix + "weight"].t().contiguous()
            super()._load_from_state_dict(state, prefix, local_metadata, *rest)

    def saved(model):
        with CoralTrainer(model, repo, checkpoint_config=EVERY_EPOCH) as trainer:
            trainer.step(1.0)
            trainer.epoch_end(0)
        return model.weight

    for kind in Old, New:
        weight = saved(kind())
        model = New()
        assert CoralTrainer(model, repo, checkpoint_config=EVERY_EPOCH).load_checkpoint()
        assert torch.equal(model.weight, weight.t() if kind is Old else weight)
    assert repo.load_state()["versions"] == {"": 2, "norm": 2}
