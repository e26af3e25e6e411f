"""TRL's `GKDTrainer` on PyTorch, as a step that samples, evaluates the teacher and updates the student."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import numpy as np
import tokenizers
import torch
import transformers
from trl.experimental.gkd import GKDConfig, GKDTrainer

IGNORED = -100  # the label of tokens that have no loss


class Trainer(NamedTuple):
    """A GKD trainer.

    Attributes:
      loss: the loss of given tokens ``[batch, prompt + length]``, without an update.
      step: one on-policy step, which returns its loss.
    """

    loss: Callable[[np.ndarray], float]
    step: Callable[[], float]


def gkd(
    student: Path, teacher: Path, tokens: np.ndarray, prompt: int, *, beta: float, rate: float, threads: int
) -> Trainer:
    """Builds TRL's trainer, all of whose batches the student samples (λ = 1).

    Args:
      student: directory of a Llama.
      teacher: directory of a Llama.
      tokens: a batch ``[batch, prompt + length]``, whose prompts are continued to its length.
      prompt: number of tokens of a prompt.
      beta: β of the generalized JSD.
      rate: learning rate of AdamW.
      threads: number of PyTorch's threads.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    models = [transformers.LlamaForCausalLM.from_pretrained(directory) for directory in (student, teacher)]
    batch = _batch(tokens, prompt)
    settings = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        lmbda=1.0,
        beta=beta,
        temperature=1.0,
        max_new_tokens=tokens.shape[1] - prompt,
        per_device_train_batch_size=len(tokens),
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        disable_tqdm=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
    )
    trainer: Any = GKDTrainer(
        model=models[0],
        teacher_model=models[1],
        args=settings,
        data_collator=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
        train_dataset=datasets.Dataset.from_dict({name: x.tolist() for name, x in batch.items()}),
        processing_class=_tokenizer(),
    )
    trainer.generation_config.eos_token_id = None  # no sequence ends early, so that the lengths are equal

    def loss(tokens: np.ndarray) -> float:
        trainer.model.eval()
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, _batch(tokens, prompt)))

    def step() -> float:
        if trainer.optimizer is None:
            trainer.train()  # makes the optimizer and the other objects of a run, and takes one step
        found = float(trainer.training_step(trainer.model, dict(batch)))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return found

    return Trainer(loss, step)


def _batch(tokens: np.ndarray, prompt: int) -> dict[str, Any]:
    """Returns the inputs of the trainer, as its collator makes them; only continuations have labels."""
    ids = torch.tensor(tokens, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.where(torch.arange(ids.shape[1])[None] >= prompt, ids, IGNORED),
        "prompts": ids[:, :prompt],
        "prompt_attention_mask": torch.ones_like(ids[:, :prompt]),
    }


def _tokenizer() -> Any:
    """Returns a tokenizer, which the trainer asks for numbers of special tokens alone."""
    words = tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>")  # type: ignore[call-arg]
    special = {"pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), **special)
