"""Train a small GPT-2 with transformers' Trainer, go on from a checkpoint, and hand the best of it on.

    python docs/examples/trainer_text.py

It downloads nothing: the text is that of Python's own `help()` topics, the tokenizer is made of it on the spot, and the
model of a config. Three things are shown:

1. a run saves every 40 steps, and its best, while it trains;
2. a second Trainer goes on from the middle of an epoch, and ends with the very same weights, bit by bit;
3. the best is exported to a folder, which `from_pretrained` opens, and writes a few lines.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from coral.integrations.hf_trainer import CoralTrainerCallback

STEPS, CONTEXT, GO_ON_AT = 200, 48, "step:120"
torch.set_num_threads(1)  # so small a model gains nothing from more

TEXT = "\n\n".join(topics[name] for name in sorted(topics))


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """Byte pairs of the text itself, on bytes: there is nothing that it could not write."""
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator([text], vocab_size=1024, special_tokens=["<end>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, eos_token="<end>", pad_token="<end>")


def rows(ids: list[int]) -> list[dict[str, Tensor]]:
    """The text in pieces of one length."""
    pieces = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).reshape(-1, CONTEXT)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def new_model(vocabulary: int) -> GPT2LMHeadModel:
    """A GPT-2 of 0.2 million parameters, the same one at each call."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=CONTEXT,
            n_embd=64,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def train(folder: Path, branch: str, *, go_on_at: str | None = None) -> tuple[GPT2LMHeadModel, CoralTrainerCallback]:
    """Train to the end, from the beginning or from a checkpoint of the branch `whole`."""
    tokenizer = tokenizer_of(TEXT)
    data = rows(tokenizer(TEXT[:300_000])["input_ids"])
    model = new_model(len(tokenizer))
    callback = CoralTrainerCallback(
        folder / "weights",
        save_every_n_steps=40,
        save_on_best="eval_loss",
        branch=branch,
        include_optimizer=True,
        keep_last_n_checkpoints=4,
        keep_best_n_checkpoints=1,
    )
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        eval_strategy="steps",
        eval_steps=50,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data[:-40],
        eval_dataset=data[-40:],
        processing_class=tokenizer,
        callbacks=[callback],
    )
    with callback.guard():
        trainer.train(resume_from_checkpoint=callback.resume_path(f"whole@{go_on_at}") if go_on_at else None)
    return model, callback


def main() -> None:
    """Run all of it in a temporary folder."""
    logging.basicConfig(format="  %(message)s")
    logging.getLogger("coral").setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"1. {STEPS} steps without a break, on branch 'whole'")
        whole, callback = train(folder, "whole")

        print(f"2. the same from {GO_ON_AT} on, on branch 'on'")
        on, _ = train(folder, "on", go_on_at=GO_ON_AT)
        equal = all(torch.equal(a, b) for a, b in zip(whole.parameters(), on.parameters(), strict=True))
        print(f"   weights are bit-equal: {equal}")

        best = callback.repository.show("whole@best")
        print(f"3. the best is step {best.step}, eval_loss {best.metrics['eval_loss']:.3f}: it writes")
        exported = callback.export("best", folder / "exported")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
        prompt = tokenizer("The statement", return_tensors="pt")
        torch.manual_seed(0)
        written = model.generate(**prompt, max_new_tokens=36, do_sample=True, top_k=20, pad_token_id=0)
        print("   | " + tokenizer.decode(written[0]).replace("\n", "\n   | "))
        if not equal:
            raise SystemExit("the run that went on is another one")
    print(f"all of it took {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
