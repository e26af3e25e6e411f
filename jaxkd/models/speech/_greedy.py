"""The labels of each frame's most probable class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class Transcripts(NamedTuple):
    """Labels that a CTC decoder found.

    Attributes:
      labels: ``int32[batch, length]`` of `ctc_greedy`, ``int32[batch, n_best, length]`` of `ctc_beam_search`, the best
        ones first; the blank where the mask is False.
      mask: bool of the same shape, True for labels that exist, which come first.
      log_probs: ``float32[batch]`` or ``float32[batch, n_best]``, ``-inf`` for labels that cannot occur.
    """

    labels: Any
    mask: Any
    log_probs: Any


def ctc_greedy(
    logits: Float[Array, "batch frames classes"],
    *,
    blank: int = 0,
    where: Bool[Array, "batch frames"] | None = None,
) -> Transcripts:
    """Returns the labels of each frame's most probable class.

    Also known as: best path decoding.

    Repetitions are removed first and then blanks. Graves et al., "Connectionist Temporal Classification", ICML 2006,
    section 3.2. It costs one pass over the logits. The labels need not be the most probable ones, whose alignments sum
    to more than the best path (`ctc_beam_search`).

    Args:
      logits: scores ``[batch, frames, classes]``, such as of an `AcousticLSTM`; ``-inf`` excludes a class.
      blank: class index of the blank, as for `jaxkd.losses.ctc`.
      where: mask, True for the frames to include ``[batch, frames]``; others are skipped.

    Returns:
      Labels and mask ``[batch, frames]``, and the log-probability of the path ``[batch]``.

    Raises:
      ValueError: the logits are not ``[batch, frames, classes]``, the mask does not fit, or the blank is not a class.

    >>> path = jnp.array([[1, 1, 0, 1, 2, 2]])
    >>> found = jax.jit(ctc_greedy)(5 * jax.nn.one_hot(path, 3))
    >>> found.labels.tolist(), found.mask.sum(axis=1).tolist()
    ([[1, 1, 2, 0, 0, 0]], [3])
    """
    log_probs, where = frame_log_probs(logits, blank, where)
    path = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    total = jnp.sum(jnp.where(where, jnp.max(log_probs, axis=-1), 0), axis=-1)
    # Skipped frames go last, so that a repetition may have some within.
    first = jnp.argsort(~where, axis=-1, stable=True)
    path, exists = (jnp.take_along_axis(x, first, axis=-1) for x in (path, where))
    before = jnp.pad(path[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    mask = exists & (path != blank) & (path != before)
    first = jnp.argsort(~mask, axis=-1, stable=True)
    labels, mask = (jnp.take_along_axis(x, first, axis=-1) for x in (path, mask))
    return Transcripts(jnp.where(mask, labels, blank), mask, total)


def frame_log_probs(logits: Any, blank: int, where: Any) -> tuple[Array, Array]:
    """Returns each frame's log-probabilities, and which frames to include.

    A frame all of whose classes are excluded has ``-inf`` for all of them.

    >>> frame_log_probs(jnp.array([[[-jnp.inf, -jnp.inf], [0.0, -jnp.inf]]]), 0, None)[0].tolist()
    [[[-inf, -inf], [0.0, -inf]]]
    """
    if logits.ndim != 3 or logits.shape[2] < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            "logits: expected floating point [batch, frames, classes] with at least two classes, one of them the "
            f"blank, got {logits.dtype}{list(logits.shape)}."
        )
    if not 0 <= blank < logits.shape[2]:
        raise ValueError(f"blank: expected one of the {logits.shape[2]} classes from 0, got {blank}.")
    if where is not None and (where.shape != logits.shape[:2] or where.dtype != bool):
        raise ValueError(
            f"where: expected bool{list(logits.shape[:2])}, True for the frames to include, got "
            f"{where.dtype}{list(where.shape)}."
        )
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    possible = jnp.any(wide > -jnp.inf, axis=-1, keepdims=True)
    log_probs = jnp.where(possible, jax.nn.log_softmax(jnp.where(possible, wide, 0)), -jnp.inf)
    return log_probs, jnp.ones(logits.shape[:2], bool) if where is None else where
