"""Sequence losses: frames, alignments and whole hypotheses of a recogniser or a translator.

Logits are ``[batch, frames, classes]``. Paddings are said with masks that are True for what counts, as everywhere:
``frame_where`` and ``label_where`` within an example, ``where`` for the examples (or frames) themselves.

This file needs only jax and optax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["ctc", "ctc_n_best", "n_best_nll", "frame_kl"]

_FAR = 1e30  # minus the logarithm of no probability: finite, so that sums of it are too


def ctc(
    logits: Float[Array, "batch frames classes"],
    labels: Int[Array, "batch labels"],
    *,
    frame_where: Bool[Array, "batch frames"] | None = None,
    label_where: Bool[Array, "batch labels"] | None = None,
    blank: int = 0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Connectionist temporal classification: ``−log Σ_π Π_t softmax(z_t)[π_t]`` over the alignments of the labels.

    An alignment π has one class a frame; without repetitions, and then without blanks, it is the labels. Graves et
    al., "Connectionist Temporal Classification", ICML 2006, by `optax.ctc_loss`. Called by itself,
    that takes paddings (1 for what does *not* count), stands in for log 0 with −1e5, so that labels that do not fit
    into the frames cost some 1e5 and unlikely ones are cut off there, and gives NaN for a class of ``-inf``.
    PyTorch's ``reduction="mean"`` divides each value by its number of labels; this does not.

    Args:
      logits: scores ``[batch, frames, classes]``; ``-inf`` marks a class that cannot occur.
      labels: integer classes ``[batch, labels]``, none of them the blank.
      frame_where: True for the frames that count ``[batch, frames]``.
      label_where: True for the labels that count ``[batch, labels]``; the others may hold anything.
      blank: the class of the blank.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats. Labels without an alignment (too many for the frames, where a
      repeated label needs a blank in between; an excluded class; the blank) give infinity with a gradient of 0, to be
      found with `jnp.isinf` and left out with ``where``. A counted label that is no class gives NaN.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, the shapes do not fit, or the blank is
        no class.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # "1" is 0.5 * 0.25 + 0.5 * 0.75 + 0.5 * 0.75
    >>> jnp.exp(-ctc(logits, jnp.array([[1]]))).round(4)
    Array([0.875], dtype=float32)
    """
    logits, frame_where, where = _frames(logits, frame_where, blank, where)
    labels, label_where = _labels("labels", labels, label_where, (logits.shape[0],), where)
    value, impossible = _alignments(logits, labels, frame_where, label_where, blank)
    return _drop(value + jnp.where(impossible, jnp.inf, 0), where)


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
    """Sequence-level distillation for CTC: ``Σ_n softmax(log P_t)_n CTC(hypothesis n)`` over the teacher's N-best list.

    Takashima, Sheng & Kawai, "Investigation of Sequence-Level Knowledge Distillation Methods for CTC Acoustic Models",
    ICASSP 2019. The teacher's posteriors are normalised over the list. With one hypothesis this is `ctc` of what the
    teacher decoded; its labels are those of the teacher, so no alignment of the two networks is needed, where
    `frame_kl` would ask that their peaks coincide.

    Args:
      logits: the student's scores ``[batch, frames, classes]``.
      hypotheses: integer classes ``[batch, n_best, labels]``, none of them the blank.
      log_posteriors: the teacher's log-probability of each hypothesis ``[batch, n_best]``, up to a constant. ``-inf``
        marks one that is absent, whose labels may be anything; if all are, the value is 0.
      label_where: True for the labels that count ``[batch, n_best, labels]``.
      frame_where: True for the frames that count ``[batch, frames]``.
      blank: the class of the blank.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats. It is infinite where a hypothesis of positive weight has no alignment
      (see `ctc`), with the gradient of the other hypotheses; a label that is no class gives NaN.

    Raises:
      ValueError: logits or posteriors are not floating point, the hypotheses not integers, the shapes do not fit, or
        the blank is no class.

    >>> logits, hypotheses = jnp.zeros((1, 2, 3)), jnp.array([[[1], [2]]])
    >>> ctc_n_best(logits, hypotheses, jnp.log(jnp.array([[0.75, 0.25]]))).round(4)  # each log 3, of 9 alignments
    Array([1.0986], dtype=float32)
    """
    logits, frame_where, where = _frames(logits, frame_where, blank, where)
    posteriors = _floating("log_posteriors", log_posteriors, "[batch, n_best]")
    if posteriors.ndim != 2 or posteriors.shape[0] != logits.shape[0]:
        raise ValueError(
            f"log_posteriors: expected [batch, n_best] with the logits' batch of {logits.shape[0]}, got "
            f"{list(posteriors.shape)}."
        )
    if where is not None:
        posteriors = jnp.where(where[:, None], posteriors, 0)
    weights, present = _posterior(posteriors)
    counts = present if where is None else present & where[:, None]
    labels, label_where = _labels("hypotheses", hypotheses, label_where, posteriors.shape, counts)
    # The logits are the same for every hypothesis: mapped over the list, their softmax is computed once.
    over_list = jax.vmap(_alignments, in_axes=(None, 1, None, 1, None), out_axes=1)
    values, impossible = over_list(logits, labels, frame_where, label_where, blank)
    infinite = jnp.where(jnp.any(impossible & (weights > 0), axis=1), jnp.inf, 0)
    return _drop(jnp.sum(weights * values, axis=1) + infinite, where)


def n_best_nll(
    log_probs: Float[Array, "batch n_best"],
    log_posteriors: Float[Array, "batch n_best"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Sequence-level distillation: ``−Σ_n softmax(log P_t)_n log P_s(hypothesis n)`` over the teacher's N-best list.

    Kim & Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, section 3.2, whose sum over all sequences is
    taken over the list. With one hypothesis, the teacher's beam search result, it is the paper's approximation by
    the mode: the usual training on decoded sequences.

    Args:
      log_probs: the student's log-probability of each of the teacher's sequences ``[batch, n_best]``, for a
        left-to-right student the sum of those of its tokens.
      log_posteriors: the teacher's ``[batch, n_best]``, up to a constant; ``-inf`` marks a sequence that is absent.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats; 0 where all sequences are absent, and infinite where the student
      excludes (``-inf``) one that is not, with finite gradients.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> n_best_nll(jnp.array([[-2.0, -6.0]]), jnp.log(jnp.array([[0.6, 0.2]])))
    Array([3.], dtype=float32)
    """
    log_probs = _floating("log_probs", log_probs, "[batch, n_best]")
    posteriors = _floating("log_posteriors", log_posteriors, "[batch, n_best]")
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs: expected [batch, n_best], got {list(log_probs.shape)}.")
    if posteriors.shape != log_probs.shape:
        raise ValueError(
            f"log_posteriors: expected the shape {list(log_probs.shape)} of log_probs, got {list(posteriors.shape)}."
        )
    where = _check_where("where", where, log_probs.shape[:1])
    if where is not None:
        log_probs, posteriors = (jnp.where(where[:, None], x, 0) for x in (log_probs, posteriors))
    weights, _ = _posterior(posteriors)
    excluded = log_probs == -jnp.inf
    infinite = jnp.where(jnp.any(excluded & (weights > 0), axis=1), jnp.inf, 0)
    return _drop(infinite - jnp.sum(weights * jnp.where((weights > 0) & ~excluded, log_probs, 0), axis=1), where)


def frame_kl(
    student: Float[Array, "batch frames classes"],
    teacher: Float[Array, "batch frames classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    blank: int = 0,
    blank_weight: float | Float[Array, ""] = 0.0,
    where: Bool[Array, "batch frames"] | None = None,
) -> Float[Array, "batch frames"]:
    """Frame-level distillation with blank handling: ``w T² KL(p_t ‖ p_s)`` for each frame, ``p = softmax(z / T)``.

    ``w`` is ``blank_weight`` where the teacher's most probable class is the blank, and 1 elsewhere. A CTC network says
    blank nearly everywhere, and a frame-level loss would teach little else; with a weight of 0 those frames are
    eliminated (Huang et al., "Knowledge Distillation for Sequence Model", Interspeech 2018, and Takashima et al., "An
    Investigation of a Knowledge Distillation Method for CTC Acoustic Models", ICASSP 2018, are about this). With a
    weight of 1 it is the plain loss for frame-wise networks: the soft targets of Tang, Wang & Zhang, "Recurrent Neural
    Network Training with Dark Knowledge Transfer", ICASSP 2016.

    Args:
      student: logits ``[batch, frames, classes]``.
      teacher: logits of the same shape. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0.
      blank: the class of the blank.
      blank_weight: the weight of the frames that the teacher calls blank, not negative; 0 takes them out.
      where: True for the frames that count ``[batch, frames]``.

    Returns:
      One value per frame ``[batch, frames]``, in nats times T². Eliminated frames are 0 and stay in a plain mean.
      Infinite where the student excludes a class that the teacher does not, with finite gradients.

    Raises:
      ValueError: shapes differ, dtypes are not floating, T is not positive, the weight is negative, or the blank is no
        class.

    >>> teacher = jnp.log(jnp.array([[[0.25, 0.75], [0.75, 0.25]]]))
    >>> frame_kl(jnp.zeros((1, 2, 2)), teacher, blank_weight=0.5).round(4)
    Array([[0.1308, 0.0654]], dtype=float32)
    """
    student, teacher = _floating("student", student, _FRAMES), _floating("teacher", teacher, _FRAMES)
    if student.ndim != 3:
        raise ValueError(f"student: expected logits {_FRAMES}, got {list(student.shape)}.")
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; the two have to agree on the frames and the classes."
        )
    _check_blank(blank, student.shape[-1])
    if not isinstance(blank_weight, jax.core.Tracer) and not blank_weight >= 0:
        raise ValueError(f"blank_weight: expected a number that is not negative, got {blank_weight}.")
    where = _check_where("where", where, student.shape[:2])
    if where is not None:
        student, teacher = (jnp.where(where[..., None], x, 0) for x in (student, teacher))
    scale = _temperature(temperature, student.dtype)
    (log_student, known_s), (log_teacher, known_t) = _log_softmax(student / scale), _log_softmax(teacher / scale)
    target = jnp.where(known_t, jnp.exp(log_teacher), 0)
    # What is infinite is added as a constant: the product of the infinity and the target has no finite slope.
    infinite = jnp.where(jnp.any((target > 0) & ~known_s, axis=-1), jnp.inf, 0)
    values = scale**2 * jnp.sum(target * (log_teacher - log_student), axis=-1) + infinite
    weight = jnp.where(jnp.argmax(teacher, axis=-1) == blank, jnp.asarray(blank_weight, values.dtype), 1)
    return _drop(jnp.where(weight > 0, weight * values, 0), where)


def _temperature(temperature: float | Array, dtype: jnp.dtype) -> Array:
    value = jnp.asarray(temperature, dtype)
    if value.shape != ():
        raise ValueError(f"temperature: expected a scalar, got {value.dtype}{list(value.shape)}.")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # NaN is not
        raise ValueError(f"temperature: expected a positive number, got {temperature}.")
    return value


def _alignments(
    logits: Array, labels: Array, frame_where: Array, label_where: Array, blank: int
) -> tuple[Array, Array]:
    """−log of the probability of the labels, and True where they have none, for which the value is 0."""
    known = (labels >= 0) & (labels < logits.shape[-1])
    wrong = jnp.any(label_where & ~known, axis=-1)
    blanks = jnp.any(label_where & (labels == blank), axis=-1)
    labels = jnp.where(label_where & known, labels, blank)
    # optax wants the labels that count first; the frames may have gaps.
    first = jnp.argsort(~label_where, axis=-1, stable=True)
    labels, paddings = (jnp.take_along_axis(x, first, axis=-1) for x in (labels, ~label_where))
    excluded = logits == -jnp.inf
    empty = jnp.any(frame_where & jnp.all(excluded, axis=-1), axis=-1)
    value = optax.ctc_loss(
        jnp.where(excluded, -_FAR, logits),
        (~frame_where).astype(logits.dtype),
        labels,
        paddings.astype(logits.dtype),
        blank_id=blank,
        # The same either way, but made from the inputs: under shard_map, optax's scan has to start from what varies.
        log_epsilon=jnp.where(jnp.any(wrong | empty), -_FAR, -_FAR).astype(logits.dtype),
    ).astype(logits.dtype)
    impossible = (blanks | empty | (value > _FAR / 2)) & ~wrong
    return jnp.where(wrong, jnp.nan, jnp.where(impossible, 0, value)), impossible


def _posterior(log_posteriors: Array) -> tuple[Array, Array]:
    """Weights over the list ``[batch, n_best]``, all 0 where nothing is present; and what is."""
    logs, present = _log_softmax(log_posteriors)
    return jnp.where(present, jnp.exp(logs), 0), present


def _log_softmax(scores: Array) -> tuple[Array, Array]:
    """Over what is not ``-inf``, and what that is; finite also at the rest, and where nothing is left."""
    known = scores != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = jnp.where(known, scores - jnp.where(top == -jnp.inf, 0, top), 0)
    total = jnp.sum(jnp.where(known, jnp.exp(shifted), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total)), known


_FRAMES = "[batch, frames, classes]"


def _frames(
    logits: Array, frame_where: Array | None, blank: int, where: Array | None
) -> tuple[Array, Array, Array | None]:
    """The logits, 0 in frames that do not count; which frames do, and which examples."""
    logits = _floating("logits", logits, _FRAMES)
    if logits.ndim != 3 or 0 in logits.shape[1:]:
        raise ValueError(f"logits: expected {_FRAMES} with a frame and a class at least, got {list(logits.shape)}.")
    _check_blank(blank, logits.shape[-1])
    where = _check_where("where", where, logits.shape[:1])
    frame_where = _check_where("frame_where", frame_where, logits.shape[:2])
    frame_where = jnp.ones(logits.shape[:2], bool) if frame_where is None else frame_where
    if where is not None:
        frame_where = frame_where & where[:, None]
    return jnp.where(frame_where[..., None], logits, 0), frame_where, where


def _labels(
    name: str, labels: Array, label_where: Array | None, leading: tuple[int, ...], counts: Array | None
) -> tuple[Array, Array]:
    """Integer labels ``[*leading, labels]``, and which of them count: none of a sequence that does not."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name}: expected integer classes, got {labels.dtype}{list(labels.shape)}.")
    if labels.ndim != len(leading) + 1 or labels.shape[:-1] != leading:
        raise ValueError(
            f"{name}: expected shape [{', '.join(map(str, leading))}, labels], the first of them the batch, got "
            f"{list(labels.shape)}."
        )
    label_where = _check_where("label_where", label_where, labels.shape)
    label_where = jnp.ones(labels.shape, bool) if label_where is None else label_where
    if counts is not None:
        label_where = label_where & counts[..., None]
    return labels.astype(jnp.promote_types(labels.dtype, jnp.int32)), label_where


def _floating(name: str, x: Array, form: str) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating-point {form}, got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_blank(blank: int, classes: int) -> None:
    if not 0 <= blank < classes:
        raise ValueError(f"blank: expected one of the {classes} classes, counted from 0, got {blank}.")


def _check_where(name: str, where: Array | None, shape: tuple[int, ...]) -> Array | None:
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"{name}: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
