"""Distillation between tokenizers: spans of text that both of them delimit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import batches, checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import positive, share
from jaxkd.objectives._compose import at_step, reduce_values
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule

_LEAST_LOG = -100.0
"""Least log-probability of a token of the text, so that its product with others keeps a finite gradient."""


def span_aligned(
    matches: Array,
    *,
    label_path: str = "batch/label",
    teacher_label_path: str = "batch/teacher_label",
    ends_path: str = "batch/ends",
    teacher_ends_path: str = "batch/teacher_ends",
    matched_weight: float | None = None,
    temperature: float | Array | Schedule = 1.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Compares two language models with different tokenizers, span by span.

    Also known as: GOLD, ULD (universal logit distillation) of merged spans.

    A span is the shortest run of text that ends where a token of both networks ends. For each span, ``m(v) = p(v) · Π
    p(next tokens of the span)``: the distribution of its first token, times the probabilities of the further tokens of
    the text, so that the value at the text's own token is the probability of the whole span. With M the entries that
    both vocabularies have, the loss of a span is ``w Σ_M [m_t log(m_t / m_s) − m_t + m_s] + (1 − w) Σ_i |m_s(i) −
    m_t(i)|``, where (i) is the i-th largest of the other entries. Patiño et al., "Unlocking On-Policy Distillation for
    Any Model Family", 2025, and Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
    Loss for LLMs", 2024. The authors' matched term lacks ``m_s − m_t``, without which it can be negative, as m does not
    sum to 1; with the weights 1 and equal tokens, this one is the KL divergence.

    Logits at a position are those of the label at that position. A token's end is the number of bytes of the text up to
    and with it, and -1 is the end of padding. Both sequences begin at the same byte. The teacher reads its own tokens
    through `jaxkd.wrappers.with_inputs`.

    Args:
      matches: ids of equal entries of the vocabularies, student's and teacher's, integers ``[n, 2]``.
      label_path: path of the tokens that the student predicts ``[batch, tokens]``.
      teacher_label_path: path of the tokens that the teacher predicts ``[batch, teacher tokens]``.
      ends_path: path of the ends of the student's, integers ``[batch, tokens]``.
      teacher_ends_path: path of the ends of the teacher's.
      matched_weight: w, from 0 to 1; by default the matched share of the teacher's vocabulary.
      temperature: T of both softmaxes.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters: the mean over the spans whose first token the batch's mask includes, with the
      metrics ``matched`` and ``unmatched``.

    Raises:
      ValueError: the matches are not distinct, or w is outside [0, 1]; from ``init``: shapes do not fit.

    >>> import math
    >>> from jaxkd import Context
    >>> student, teacher = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.9, 0.1]]]))
    >>> one = jnp.array([[0]])
    >>> batch = {"label": one, "teacher_label": one, "ends": one + 1, "teacher_ends": one + 1}
    >>> objective = span_aligned(np.array([[0, 0], [1, 1]]))
    >>> objective.apply({}, {}, Context({"logits": student}, {"logits": teacher}, batch, 0), None).value.round(4)
    Array(0.3681, dtype=float32)
    """
    if matched_weight is not None:
        share("span_aligned", matched_weight=matched_weight)
    ids = np.asarray(matches)
    if ids.ndim != 2 or ids.shape[1] != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"span_aligned, matches: expected integers [n, 2], got {checks.shape(ids)}.")
    if any(len(np.unique(side)) < len(side) for side in ids.T) or (ids < 0).any():
        raise ValueError("span_aligned, matches: expected each id at most once for a vocabulary, none negative.")

    def values(context: Context) -> tuple[Array, Array, Array, Array]:
        heat = at_step(temperature, context.step)
        positive("span_aligned", temperature=heat)
        sides = []
        for side, label, ends in (
            ("student", label_path, ends_path),
            ("teacher", teacher_label_path, teacher_ends_path),
        ):
            logits, label_, ends_ = (lookup(context, path) for path in (f"{side}/logits", label, ends))
            for path, x in ((label, label_), (ends, ends_)):
                if logits.ndim != 3 or x.shape != logits.shape[:2] or not jnp.issubdtype(x.dtype, jnp.integer):
                    raise ValueError(
                        f"{path}: expected integers [batch, tokens] for the logits [batch, tokens, vocabulary] of the "
                        f"{side}, got {checks.shape(x)} for {checks.shape(logits)}."
                    )
            sides.append((logits, label_, ends_))
        (logits_s, label_s, ends_s), (logits_t, label_t, ends_t) = sides
        words = logits_s.shape[-1], logits_t.shape[-1]
        if (ids.max(axis=0, initial=0) >= np.array(words)).any():
            raise ValueError(
                f"span_aligned, matches: expected ids below {words[0]} and {words[1]}, the sizes of the vocabularies, "
                f"got up to {ids.max(axis=0).tolist()}."
            )
        number_s, first_s = _spans(ends_s, ends_t)
        number_t, _ = _spans(ends_t, ends_s)
        mask = batches.mask_of_shape(context, first_s.shape)
        counted = first_s if mask is None else first_s & mask

        def log_probs(logits: Array, number: Array) -> Array:
            # What belongs to no counted span may hold NaN.
            read = jnp.any((number[:, :, None] == number_s[:, None, :]) & counted[:, None, :], axis=-1)
            return jax.nn.log_softmax(jnp.where(read[..., None], logits.astype(jnp.float32), 0) / heat)

        log_s, log_t = log_probs(logits_s, number_s), log_probs(logits_t, number_t)
        merged_s = log_s + _further(log_s, label_s, number_s)[..., None]
        merged_t = log_t + _further(log_t, label_t, number_t)[..., None]
        # The teacher's first token of each of the student's spans.
        place = jax.vmap(jnp.searchsorted)(number_t, number_s)
        merged_t = jnp.take_along_axis(merged_t, jnp.minimum(place, log_t.shape[1] - 1)[..., None], axis=1)
        # Other positions hold no spans: their values are not used, and have to be finite.
        merged_s, merged_t = (jnp.where(first_s[..., None], x, 0) for x in (merged_s, merged_t))
        matched = _divergence(merged_t[..., ids[:, 1]], merged_s[..., ids[:, 0]])
        unmatched = _sorted_distance(_without(merged_s, ids[:, 0]), _without(merged_t, ids[:, 1]))
        w = len(ids) / words[1] if matched_weight is None else matched_weight
        return w * matched + (1 - w) * unmatched, counted, matched, unmatched

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        jax.eval_shape(values, context._replace(axis_name=None))
        return ObjectiveVars()

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params, key
        loss, counted, matched, unmatched = values(context)
        return reduce_values(loss, counted, weight, context, state, matched=matched, unmatched=unmatched)

    return Objective(init, apply)


def _spans(ends: Array, other: Array) -> tuple[Array, Array]:
    """Returns the number of each token's span, and True for the first token of each.

    Tokens after the last common end, and padding, have the number of spans as their number.
    """
    real = ends >= 0
    common = jnp.any(ends[:, :, None] == other[:, None, :], axis=-1) & real
    # Of several tokens with one end, such as an empty one, the last closes the span.
    last = jnp.concatenate([ends[:, 1:] != ends[:, :-1], jnp.ones_like(real[:, :1])], axis=1)
    closes = (common & last).astype(jnp.int32)
    number = jnp.cumsum(closes, axis=1) - closes
    total = jnp.sum(closes, axis=1, keepdims=True)
    number = jnp.where(real, number, total)
    before = jnp.concatenate([jnp.full_like(number[:, :1], -1), number[:, :-1]], axis=1)
    return number, (number != before) & (number < total)


def _further(log_probs: Array, label: Array, number: Array) -> Array:
    """Returns the log-probability of the further tokens of each token's span."""
    label = jnp.clip(label, 0, log_probs.shape[-1] - 1)
    own = jnp.maximum(jnp.take_along_axis(log_probs, label[..., None], axis=-1)[..., 0], _LEAST_LOG)
    same = number[:, :, None] == number[:, None, :]
    return jnp.sum(jnp.where(same, own[:, None, :], 0), axis=-1) - own


def _divergence(log_t: Array, log_s: Array) -> Array:
    """Returns ``Σ t log(t/s) − t + s`` of measures, with 0 log 0 = 0."""
    t, some = jnp.exp(log_t), log_t > -jnp.inf
    ratio = jnp.where(some, log_t, 0) - jnp.where(some, log_s, 0)
    return jnp.sum(t * ratio - t + jnp.exp(log_s), axis=-1)


def _without(log_measure: Array, ids: np.ndarray) -> Array:
    """Returns the measure of the entries that are not listed."""
    others = np.setdiff1d(np.arange(log_measure.shape[-1]), ids)
    return jnp.exp(log_measure[..., others])


def _sorted_distance(student: Array, teacher: Array) -> Array:
    """Returns the L1 distance of sorted values; the shorter list ends with zeros."""
    size = max(student.shape[-1], teacher.shape[-1])

    def ordered(x: Array) -> Array:
        return jnp.pad(jnp.sort(x, axis=-1), ((0, 0), (0, 0), (size - x.shape[-1], 0)))  # the smallest is first

    return jnp.sum(jnp.abs(ordered(student) - ordered(teacher)), axis=-1)
