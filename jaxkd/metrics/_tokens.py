"""Metrics of language models, and of the texts that they write."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

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
      The metrics of `classification` over tokens, with ``perplexity`` and ``bits_per_byte`` of the student;
      ``tokens_per_example``, the included tokens by the examples of the batch, with which the rows of a run have
      ``tokens_per_second``; ``teacher_nll`` and ``teacher_perplexity`` of a teacher with the same vocabulary.

    Raises:
      ValueError: there are no logits, or no labels for them.

    >>> label = jnp.array([[0, 1, -100]])
    >>> context = Context({"logits": jnp.zeros((1, 3, 4))}, {}, {"label": label}, step=0)
    >>> from jaxkd.metrics import compute
    >>> {name: round(value, 3) for name, value in compute(tokens(context)).items()}
    {'accuracy': 0.5, 'nll': 1.386, 'perplexity': 4.0, 'tokens_per_example': 2.0}
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
    # Not by the included examples: the speed of a run counts those of a batch.
    found["tokens_per_example"] = Mean(nll.count, jnp.asarray(batches.batch_size(context.batch), jnp.float32))
    if bytes_path is not None:
        size = batches.lookup(context, bytes_path)
        counted = where if size.shape == label.shape else batches.mask_of_shape(context, size.shape)
        found["bits_per_byte"] = Mean(nll.sum / math.log(2), from_values(size, counted).sum)
    teacher = context.teacher.get("logits")
    if teacher is not None and teacher.shape == logits.shape:
        theirs = from_values(losses.cross_entropy(teacher, label, where=where), where)
        found |= {"teacher_nll": theirs, "teacher_perplexity": derived(jnp.exp, theirs)}
    return found


def distinct_n(
    x: Int[Array, "examples tokens"], n: int = 2, *, where: Bool[Array, "examples tokens"] | None = None
) -> float:
    """Share of different n-grams among all n-grams of generated texts, on the host.

    Also known as: distinct-1, distinct-2.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016, section 5. It
    falls with the number of texts, so that only sets of equal size can be compared.

    Args:
      x: ids of the generated tokens ``[examples, tokens]``.
      n: length of the n-grams.
      where: mask, True for the tokens to include ``[examples, tokens]``. An n-gram with an excluded token is none.

    Returns:
      A number from 0 to 1; NaN if there is no n-gram.

    Raises:
      ValueError: the ids are not integers ``[examples, tokens]``, ``where`` has another shape, or n is not positive.

    >>> distinct_n(np.array([[1, 2, 1, 2], [1, 2, 3, 0]]), where=np.array([[True] * 4, [True] * 3 + [False]]))
    0.6
    """
    ids = np.asarray(x)
    mask = np.ones(ids.shape, bool) if where is None else np.asarray(where)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or mask.shape != ids.shape or n < 1:
        raise ValueError(
            "distinct_n: expected integers [examples, tokens], a mask of their shape and n of at least 1, got "
            f"{checks.shape(ids)}, {checks.shape(mask)} and {n}."
        )
    if ids.shape[1] < n:
        return math.nan
    grams = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1).reshape(-1, n)
    whole = np.lib.stride_tricks.sliding_window_view(mask, n, axis=1).reshape(-1, n).all(axis=1)
    return len(np.unique(grams[whole], axis=0)) / int(whole.sum()) if whole.any() else math.nan


def edit_distance(
    x: Int[Array, "examples tokens"],
    y: Int[Array, "examples others"],
    *,
    where: Bool[Array, "examples tokens"] | None = None,
    y_where: Bool[Array, "examples others"] | None = None,
) -> np.ndarray:
    """Fewest insertions, deletions and substitutions between sequences, on the host.

    Also known as: Levenshtein distance.

    Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", Soviet Physics Doklady,
    1966. The error rate of phonemes, characters or words is the sum of the distances divided by the number of the
    reference's tokens.

    Args:
      x: ids of the sequences ``[examples, tokens]``.
      y: ids of the other sequences ``[examples, others]``, row by row.
      where: mask of x, True for the tokens to include; they may stand anywhere.
      y_where: mask of y.

    Returns:
      A distance for each example, int64 ``[examples]``.

    Raises:
      ValueError: the ids are not integers of as many examples, or a mask has another shape.

    >>> edit_distance(np.array([[1, 2, 3], [1, 2, 0]]), np.array([[1, 3], [4, 2]]), where=np.array([[True] * 3] * 2))
    array([1, 2])
    """
    (a, a_size), (b, b_size) = _compact("x", x, where), _compact("y", y, y_where)
    if len(a) != len(b):
        raise ValueError(f"edit_distance: expected as many rows of y as of x, {len(a)}, got {len(b)}.")
    columns = np.arange(b.shape[1] + 1)
    row = np.broadcast_to(columns, (len(b), len(columns))).copy()  # of the distances from the first i tokens of x
    for i in range(a.shape[1]):
        # Deletion or substitution, each from the row before. An insertion comes from the left: d_j = min over k <= j of
        # e_k + j - k, which is a running minimum of e_k - k.
        new = np.concatenate([row[:, :1], row[:, :-1] + (a[:, i, None] != b) - 1], axis=1)
        new = np.minimum(row, new) + 1
        new[:, 0] = i + 1
        new = np.minimum.accumulate(new - columns, axis=1) + columns
        row = np.where((i < a_size)[:, None], new, row)
    found: np.ndarray = np.take_along_axis(row, b_size[:, None], axis=1)[:, 0]
    return found


def _compact(name: str, x: Any, where: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids with the included ones first, and their number in each row."""
    ids = np.asarray(x)
    mask = np.ones(ids.shape, bool) if where is None else np.asarray(where)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or mask.shape != ids.shape or mask.dtype != bool:
        raise ValueError(
            f"edit_distance, {name}: expected integers [examples, tokens] and a boolean mask of their shape, got "
            f"{checks.shape(ids)} and {checks.shape(mask)}."
        )
    return np.take_along_axis(ids, np.argsort(~mask, axis=1, kind="stable"), axis=1), mask.sum(axis=1)
