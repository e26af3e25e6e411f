"""The best alignment of known labels with the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.models.speech._greedy import frame_log_probs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Alignment(NamedTuple):
    """The class of each frame that `ctc_alignment` found.

    Attributes:
      path: ``int32[batch, frames]``, class of each frame; the blank for masked frames.
      positions: ``int32[batch, frames]``, place of the frame's label among the labels; −1 for a blank.
      log_probs: ``float32[batch]``, log-probability of the path; ``-inf``, with a path of blanks, where the labels have
        no alignment.
    """

    path: Any
    positions: Any
    log_probs: Any


def ctc_alignment(
    logits: Float[Array, "batch frames classes"],
    labels: Int[Array, "batch labels"],
    *,
    frame_where: Bool[Array, "batch frames"] | None = None,
    label_where: Bool[Array, "batch labels"] | None = None,
    blank: int = 0,
) -> Alignment:
    """Returns the most probable alignment of known labels with the frames.

    Also known as: forced alignment, Viterbi alignment.

    Of the alignments over which `jaxkd.losses.ctc` sums, the one with the largest probability: the recursion of Graves
    et al., "Connectionist Temporal Classification", ICML 2006, section 4.1, with a maximum in place of the sum, as two
    scans over the frames. The state is ``2 · labels + 1`` numbers, and as many small integers are kept for each frame.

    Args:
      logits: scores ``[batch, frames, classes]``; ``-inf`` excludes a class.
      labels: integer classes ``[batch, labels]``, none of them the blank.
      frame_where: mask, True for the frames to include ``[batch, frames]``; others are skipped.
      label_where: mask, True for the labels to include ``[batch, labels]``.
      blank: class index of the blank.

    Returns:
      An `Alignment`. Labels that do not fit into the frames, the blank, or a label outside the classes have none.

    Raises:
      ValueError: shapes or dtypes do not fit, or the blank is not a class.

    >>> logits = jnp.log(jnp.array([[[0.2, 0.8, 0.0], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]]))
    >>> found = jax.jit(ctc_alignment)(logits, jnp.array([[1, 2]]))
    >>> found.path.tolist(), found.positions.tolist(), f"{jnp.exp(found.log_probs[0]):.3f}"
    ([[1, 0, 2]], [[0, -1, 1]], '0.224')
    """
    log_probs, frame_where = frame_log_probs(logits, blank, frame_where)
    if labels.ndim != 2 or labels.shape[0] != logits.shape[0] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: expected integers [batch, labels] with the logits' batch of {logits.shape[0]}, got "
            f"{labels.dtype}{list(labels.shape)}."
        )
    if label_where is not None and (label_where.shape != labels.shape or label_where.dtype != bool):
        raise ValueError(
            f"label_where: expected bool{list(labels.shape)}, as the labels, got "
            f"{label_where.dtype}{list(label_where.shape)}."
        )
    exist = jnp.ones(labels.shape, bool) if label_where is None else label_where
    # Included labels first, with their places.
    places = jnp.argsort(~exist, axis=-1, stable=True).astype(jnp.int32)
    labels, exist = (jnp.take_along_axis(x, places, axis=-1) for x in (labels, exist))
    wrong = jnp.any(exist & ((labels == blank) | (labels < 0) | (labels >= logits.shape[2])), axis=-1)
    labels = jnp.where(exist & ~wrong[:, None], labels, blank).astype(jnp.int32)
    states, totals = jax.vmap(_best_states, in_axes=(0, 0, 0, 0, None))(
        log_probs, frame_where, labels, jnp.sum(exist, axis=-1), blank
    )
    totals = jnp.where(wrong, -jnp.inf, totals)
    # States with odd numbers are labels, those between them and around them blanks.
    is_label = (states % 2 == 1) & frame_where & (totals > -jnp.inf)[:, None]
    number = jnp.where(is_label, states // 2, 0)
    if not labels.shape[1]:
        return Alignment(jnp.full_like(states, blank), jnp.full_like(states, -1), totals)
    path, positions = (jnp.take_along_axis(x, number, axis=-1) for x in (labels, places))
    return Alignment(jnp.where(is_label, path, blank), jnp.where(is_label, positions, -1), totals)


def _best_states(log_probs: Array, where: Array, labels: Array, count: Array, blank: int) -> tuple[Array, Array]:
    """Returns the state of each frame of one example, and the path's log-probability.

    State 2n + 1 is label n, and the states around it are blanks. A frame stays in the state before, enters the next
    one, or the one after that if it skips the blank between two different labels.
    """
    size = 2 * len(labels) + 1
    symbols = jnp.full(size, blank, jnp.int32).at[1::2].set(labels)
    may_skip = jnp.pad((symbols[2:] != blank) & (symbols[2:] != symbols[:-2]), (2, 0))[:size]

    def forward(best: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        frame_probs, exists = frame
        one, two = (jnp.pad(best, (steps, 0), constant_values=-jnp.inf)[:size] for steps in (1, 2))
        options = jnp.stack([best, one, jnp.where(may_skip, two, -jnp.inf)])
        steps = jnp.argmax(options, axis=0).astype(jnp.int8)
        new = jnp.max(options, axis=0) + frame_probs[symbols]
        return jnp.where(exists, new, best), jnp.where(exists, steps, 0)

    def backward(state: Array, steps: Array) -> tuple[Array, Array]:
        return state - steps[state], state

    # Before the first frame stands the first blank, so that this frame has it or the first label. It is made from the
    # inputs: under shard_map, the carry must vary over the same axes.
    zero = jnp.where(jnp.any(log_probs == 0), 0, 0)
    start = jnp.where(jnp.arange(size) == zero, 0, -jnp.inf).astype(log_probs.dtype)
    best, steps = jax.lax.scan(forward, start, (log_probs, where))
    last = 2 * count - jnp.where((count > 0) & (best[2 * count - 1] > best[2 * count]), 1, 0)
    _, states = jax.lax.scan(backward, last.astype(jnp.int32), steps, reverse=True)
    return states, best[last]
