"""Sequence losses: CTC, N-best hypotheses and frames.

Logits are ``[batch, frames, classes]``. Padding is given by masks, which are True for the entries to include:
``frame_where`` and ``label_where`` within an example, ``where`` for the examples (or frames) themselves. Only `ctc` and
`ctc_n_best` need optax, which they import when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["ctc", "ctc_n_best", "n_best_nll", "frame_kl"]


_FAR = 1e30  # stands in for −log 0: finite, so that sums of it are too
_FRAMES = "logits [batch, frames, classes]"


def ctc(
    logits: Float[Array, "batch frames classes"],
    labels: Int[Array, "batch labels"],
    *,
    frame_where: Bool[Array, "batch frames"] | None = None,
    label_where: Bool[Array, "batch labels"] | None = None,
    blank: int = 0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Negative log-likelihood of the labels over all alignments with the frames.

    Also known as: CTC (connectionist temporal classification).

    ``−log Σ_π Π_t softmax(z_t)[π_t]`` over the alignments π of the labels. An alignment has one class per frame and
    equals the labels once repetitions, and then blanks, are removed. Graves et al., "Connectionist Temporal
    Classification", ICML 2006, by `optax.ctc_loss`. Called by itself, that takes paddings (1 for what to *exclude*),
    replaces log 0 by −1e5, so that labels that do not fit into the frames cost about 1e5 and unlikely ones are cut off
    there, and gives NaN for a class of ``-inf``. PyTorch's ``reduction="mean"`` divides each value by its number of
    labels; this does not.

    Args:
      logits: scores ``[batch, frames, classes]``; ``-inf`` marks a class that cannot occur.
      labels: integer classes ``[batch, labels]``, none of them the blank.
      frame_where: mask, True for the frames to include ``[batch, frames]``.
      label_where: mask, True for the labels to include ``[batch, labels]``; masked labels may have any value.
      blank: class index of the blank.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats. Labels without an alignment (too many for the frames, where a repeated
      label needs a blank in between; an excluded class; the blank) give infinity with a gradient of 0: find them with
      `jnp.isinf` and mask them by ``where``. An included label outside the classes yields NaN.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, the shapes do not fit, or the blank is not
        a class.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # "1" is 0.5 * 0.25 + 0.5 * 0.75 + 0.5 * 0.75
    >>> jnp.exp(-ctc(logits, jnp.array([[1]]))).round(4)
    Array([0.875], dtype=float32)
    """
    logits, frame_where, where = _frames(logits, frame_where, blank, where)
    labels, label_where = _labels("labels", labels, label_where, (logits.shape[0],), where)
    value, impossible = _alignments(logits, labels, frame_where, label_where, blank)
    return _numerics.mask_values(value + jnp.where(impossible, jnp.inf, 0), where)


def ctc_n_best(
    logits: Float[Array, "batch frames classes"],
    hypotheses: Int[Array, "batch n_best labels"],
    log_posteriors: Float[Array, "batch n_best"],
    *,
    label_where: Bool[Array, "batch n_best labels"] | None = None,
    frame_where: Bool[Array, "batch frames"] | None = None,
    blank: int = 0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """CTC loss of the teacher's N-best hypotheses, weighted by their posteriors.

    Also known as: sequence-level KD for CTC.

    ``Σ_n softmax(log P_t)_n CTC(hypothesis n)``. Takashima, Sheng & Kawai, "Investigation of Sequence-Level Knowledge
    Distillation Methods for CTC Acoustic Models", ICASSP 2019. The teacher's posteriors are normalized over the list.
    With one hypothesis this is `ctc` of the teacher's decoding. Unlike `frame_kl` it does not require that the peaks of
    the two networks coincide in time.

    Args:
      logits: the student's scores ``[batch, frames, classes]``.
      hypotheses: integer classes ``[batch, n_best, labels]``, none of them the blank.
      log_posteriors: the teacher's log-probability of each hypothesis ``[batch, n_best]``, up to a constant. ``-inf``
        marks an absent hypothesis, whose labels may have any value; if all are absent, the value is 0.
      label_where: mask, True for the labels to include ``[batch, n_best, labels]``.
      frame_where: mask, True for the frames to include ``[batch, frames]``.
      blank: class index of the blank.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats. It is infinite where a hypothesis of positive weight has no alignment
      (see `ctc`), with the gradient of the other hypotheses; a label outside the classes yields NaN.

    Raises:
      ValueError: logits or posteriors are not floating point, the hypotheses not integers, the shapes do not fit, or
        the blank is not a class.

    >>> logits, hypotheses = jnp.zeros((1, 2, 3)), jnp.array([[[1], [2]]])
    >>> ctc_n_best(logits, hypotheses, jnp.log(jnp.array([[0.75, 0.25]]))).round(4)  # each log 3, of 9 alignments
    Array([1.0986], dtype=float32)
    """
    logits, frame_where, where = _frames(logits, frame_where, blank, where)
    posteriors = _checks.floating("log_posteriors", log_posteriors, "[batch, n_best]")
    if posteriors.ndim != 2 or posteriors.shape[0] != logits.shape[0]:
        raise ValueError(
            f"log_posteriors: expected [batch, n_best] with the logits' batch of {logits.shape[0]}, got "
            f"{list(posteriors.shape)}."
        )
    (posteriors,) = _numerics.mask_inputs(where, posteriors)
    weights, present = _posterior(posteriors)
    counts = present if where is None else present & where[:, None]
    labels, label_where = _labels("hypotheses", hypotheses, label_where, posteriors.shape, counts)
    # Mapping over the list computes the softmax of the logits, which all hypotheses share, once.
    over_list = jax.vmap(_alignments, in_axes=(None, 1, None, 1, None), out_axes=1)
    values, impossible = over_list(logits, labels, frame_where, label_where, blank)
    infinite = jnp.where(jnp.any(impossible & (weights > 0), axis=1), jnp.inf, 0)
    return _numerics.mask_values(jnp.sum(weights * values, axis=1) + infinite, where)


def n_best_nll(
    log_probs: Float[Array, "batch n_best"],
    log_posteriors: Float[Array, "batch n_best"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Negative log-likelihood of the teacher's N-best sequences, by their posteriors.

    Also known as: Seq-KD (sequence-level knowledge distillation).

    ``−Σ_n softmax(log P_t)_n log P_s(hypothesis n)`` over the teacher's N-best list. Kim & Rush, "Sequence-Level
    Knowledge Distillation", EMNLP 2016, section 3.2, with the sum over all sequences restricted to the list. With one
    hypothesis, the teacher's beam search result, it is the paper's approximation by the mode: training on decoded
    sequences.

    Args:
      log_probs: the student's log-probability of each of the teacher's sequences ``[batch, n_best]``, for an
        autoregressive student the sum over its tokens.
      log_posteriors: the teacher's ``[batch, n_best]``, up to a constant; ``-inf`` marks a sequence that is absent.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats; 0 where all sequences are absent, and infinite where the student
      excludes (``-inf``) one that is present, with finite gradients.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> n_best_nll(jnp.array([[-2.0, -6.0]]), jnp.log(jnp.array([[0.6, 0.2]])))
    Array([3.], dtype=float32)
    """
    log_probs = _checks.floating("log_probs", log_probs, "[batch, n_best]", rank=2)
    posteriors = _checks.floating("log_posteriors", log_posteriors, "[batch, n_best]")
    _checks.same_shape(log_probs, posteriors, "both are of the same list", name="log_posteriors", other="log_probs")
    where = _checks.mask(where, log_probs.shape[:1])
    log_probs, posteriors = _numerics.mask_inputs(where, log_probs, posteriors)
    weights, _ = _posterior(posteriors)
    excluded = log_probs == -jnp.inf
    infinite = _numerics.infinite_where(weights, ~excluded)
    return _numerics.mask_values(
        infinite - jnp.sum(weights * jnp.where((weights > 0) & ~excluded, log_probs, 0), axis=1), where
    )


def frame_kl(
    student: Float[Array, "batch frames classes"],
    teacher: Float[Array, "batch frames classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    blank: int = 0,
    blank_weight: float | Float[Array, ""] = 0.0,
    where: Bool[Array, "batch frames"] | None = None,
) -> Float[Array, "batch frames"]:
    """KL divergence of each frame, with a weight for the teacher's blank frames.

    Also known as: frame-level KD.

    ``w T² KL(p_t ‖ p_s)`` for each frame, ``p = softmax(z / T)``. ``w`` is ``blank_weight`` where the teacher's most
    probable class is the blank, and 1 elsewhere. A CTC network predicts the blank in nearly all frames, which would
    dominate a frame-level loss; a weight of 0 removes those frames (Huang et al., "Knowledge Distillation for Sequence
    Model", Interspeech 2018; Takashima et al., "An Investigation of a Knowledge Distillation Method for CTC Acoustic
    Models", ICASSP 2018). A weight of 1 is the plain loss of frame-wise networks: the soft targets of Tang, Wang &
    Zhang, "Recurrent Neural Network Training with Dark Knowledge Transfer", ICASSP 2016.

    Args:
      student: logits ``[batch, frames, classes]``.
      teacher: logits of the same shape. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0.
      blank: class index of the blank.
      blank_weight: weight of the frames whose most probable class is the blank, at least 0; 0 removes them.
      where: mask, True for the frames to include ``[batch, frames]``.

    Returns:
      One value per frame ``[batch, frames]``, in nats times T². Removed frames are 0 and are counted by a plain mean.
      The value is infinite where the student excludes a class that the teacher does not, with finite gradients.

    Raises:
      ValueError: shapes differ, there is one class, a dtype is not floating point, T is not positive, the weight is
        negative, or the blank is not a class.

    >>> teacher = jnp.log(jnp.array([[[0.25, 0.75], [0.75, 0.25]]]))
    >>> frame_kl(jnp.zeros((1, 2, 2)), teacher, blank_weight=0.5).round(4)
    Array([[0.1308, 0.0654]], dtype=float32)
    """
    student = _checks.floating("student", student, _FRAMES, rank=3)
    teacher = _checks.floating("teacher", teacher, _FRAMES)
    _checks.same_shape(student, teacher, "both networks need the same frames and classes")
    _checks.several("student", student, student.shape[-1])
    blank = _check_blank(blank, student.shape[-1])
    _checks.not_negative("blank_weight", blank_weight)
    where = _checks.mask(where, student.shape[:2])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    scale = _checks.temperature(temperature, student.dtype)
    softened = (_numerics.soften(x, scale) for x in (teacher, student))
    values = scale**2 * _numerics.softmax_kl_finite(*softened)
    weight = jnp.where(jnp.argmax(teacher, axis=-1) == blank, jnp.asarray(blank_weight, values.dtype), 1)
    return _numerics.mask_values(jnp.where(weight > 0, weight * values, 0), where)


def _alignments(
    logits: Array, labels: Array, frame_where: Array, label_where: Array, blank: int
) -> tuple[Array, Array]:
    """Returns −log P(labels), and the mask of impossible labels, whose value is 0."""
    import optax  # not at the top: no other loss needs it

    known = (labels >= 0) & (labels < logits.shape[-1])
    wrong = jnp.any(label_where & ~known, axis=-1)
    blanks = jnp.any(label_where & (labels == blank), axis=-1)
    labels = jnp.where(label_where & known, labels, blank)
    # optax needs the included labels first; the frames may have gaps.
    first = jnp.argsort(~label_where, axis=-1, stable=True)
    labels, paddings = (jnp.take_along_axis(x, first, axis=-1) for x in (labels, ~label_where))
    excluded = logits == -jnp.inf
    empty = jnp.any(frame_where & jnp.all(excluded, axis=-1), axis=-1)
    # Relative to the largest, a finite logit below -_FAR (finfo.min, a mask) is excluded too: sums of it overflow.
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    value = optax.ctc_loss(
        jnp.where(excluded, -_FAR, jnp.maximum(logits - jnp.where(excluded.all(-1, keepdims=True), 0, top), -_FAR)),
        (~frame_where).astype(logits.dtype),
        labels,
        paddings.astype(logits.dtype),
        blank_id=blank,
        # A constant made from the inputs: under shard_map, the carry of optax's scan must vary over the same axes.
        log_epsilon=jnp.where(jnp.any(wrong | empty), -_FAR, -_FAR).astype(logits.dtype),
    ).astype(logits.dtype)
    impossible = (blanks | empty | (value > _FAR / 2)) & ~wrong
    return jnp.where(wrong, jnp.nan, jnp.where(impossible, 0, value)), impossible


def _posterior(log_posteriors: Array) -> tuple[Array, Array]:
    """Returns weights over the N-best list, and the mask of present hypotheses."""
    logs, present = _numerics.log_softmax_finite(log_posteriors)
    return jnp.where(present, jnp.exp(logs), 0), present


def _frames(
    logits: Array, frame_where: Array | None, blank: int, where: Array | None
) -> tuple[Array, Array, Array | None]:
    """Returns logits, 0 in masked frames, and the masks of frames and examples."""
    logits = _checks.floating("logits", logits, _FRAMES)
    if logits.ndim != 3 or logits.shape[1] < 1 or logits.shape[2] < 2:
        raise ValueError(
            f"logits: expected {_FRAMES} with at least one frame and two classes, one of them the blank, got "
            f"{logits.dtype}{list(logits.shape)}."
        )
    _check_blank(blank, logits.shape[-1])
    where = _checks.mask(where, logits.shape[:1])
    frame_where = _checks.mask_or_ones(frame_where, logits.shape[:2], "frame_where")
    if where is not None:
        frame_where = frame_where & where[:, None]
    return jnp.where(frame_where[..., None], logits, 0), frame_where, where


def _labels(
    name: str, labels: Array, label_where: Array | None, leading: tuple[int, ...], present: Array | None
) -> tuple[Array, Array]:
    """Returns integer labels and their mask, False for all of a masked sequence."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name}: expected integer classes, got {labels.dtype}{list(labels.shape)}.")
    if labels.ndim != len(leading) + 1 or labels.shape[:-1] != leading:
        raise ValueError(
            f"{name}: expected shape [{', '.join(map(str, leading))}, labels], the first of them the batch, got "
            f"{list(labels.shape)}."
        )
    label_where = _checks.mask_or_ones(label_where, labels.shape, "label_where")
    if present is not None:
        label_where = label_where & present[..., None]
    return _checks.integers(labels), label_where


def _check_blank(blank: int, classes: int) -> int:
    return _checks.whole("blank", blank, least=0, most=classes - 1, expected=f"one of the {classes} classes from 0")
