"""Metrics of language models: `tokens`."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd.metrics._classification import classification, included, is_class
from jaxkd.metrics._derived import derived
from jaxkd.metrics._means import from_values
from jaxkd.types import Context, Derived, Mean, Metrics


def tokens(context: Context, *, bytes_path: str | None = None) -> Metrics:
    """Metrics of a language model over the tokens that the mask includes.

    Args:
      context: logits ``[batch, tokens, vocabulary]``, and the batch with integer labels ``[batch, tokens]``, already
        shifted. A label outside of the vocabulary, such as -100, is excluded; a padding token that is a word of the
        vocabulary is not, and has to be masked.
      bytes_path: path of the number of bytes of each example ``[batch]`` or token ``[batch, tokens]``, for bits per
        byte.

    Returns:
      The metrics of `classification` over tokens, with ``perplexity`` and ``bits_per_byte`` of the student, and
      ``teacher_nll`` and ``teacher_perplexity`` of a teacher with the same vocabulary.

    Raises:
      ValueError: there are no logits, or no labels for them.

    >>> label = jnp.array([[0, 1, -100]])
    >>> context = Context({"logits": jnp.zeros((1, 3, 4))}, {}, {"label": label}, step=0)
    >>> from jaxkd.metrics import compute
    >>> {name: round(value, 3) for name, value in compute(tokens(context)).items()}
    {'accuracy': 0.5, 'nll': 1.386, 'perplexity': 4.0}
    """
    logits, label = batches.lookup(context, "student/logits"), batches.lookup(context, "batch/label")
    if not is_class(label, logits) or logits.shape[-1] < 2:
        raise ValueError(
            "tokens: expected logits [batch, tokens, vocabulary] and integer labels [batch, tokens], got "
            f"{checks.shape(logits)} and {checks.shape(label)}."
        )
    where = included(context, label, logits.shape[-1])
    shared = classification(context)
    nll = shared["nll"]
    found: dict[str, Mean | Derived] = {**shared, "perplexity": derived(jnp.exp, nll)}
    if bytes_path is not None:
        size = batches.lookup(context, bytes_path)
        counted = where if size.shape == label.shape else batches.mask_of_shape(context, size.shape)
        found["bits_per_byte"] = Mean(nll.sum / math.log(2), from_values(size, counted).sum)
    teacher = context.teacher.get("logits")
    if teacher is not None and teacher.shape == logits.shape:
        theirs = from_values(losses.cross_entropy(teacher, label, where=where), where)
        found |= {"teacher_nll": theirs, "teacher_perplexity": derived(jnp.exp, theirs)}
    return found
