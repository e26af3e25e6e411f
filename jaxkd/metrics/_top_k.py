"""Bounds of a divergence of which the teacher's most likely classes are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches
from jaxkd.metrics._means import from_values
from jaxkd.types import Context, Metrics


def top_k_bounds(context: Context, *, name: str = "logits") -> Metrics:
    """Bounds ``KL(p_t ‖ p_s)`` from both sides, of a teacher's k classes and tail.

    With r the mass of the tail, q the student's probabilities and m those of the teacher's k-th class, the lower bound
    is `jaxkd.losses.top_k_kl`. The upper one adds ``r (log m/r + log q(tail)/q_min)``: the divergence within the tail
    is at most its largest log-ratio, no class of the tail is more likely than the k-th, and none has less than q_min.
    Where the log-probabilities are known up to an error s (`jaxkd.cache.codecs.packed_top_k`), both bounds become wider
    by ``(eˢ − 1) Σ_k p |a − mean a|`` with ``a = log p/q``, and the upper one by ``s² / 8``, which holds as the errors
    change neither the tail nor the sum.

    Args:
      context: student logits ``[..., classes]``, and teacher outputs ``NAME/log_probs`` and ``NAME/indices`` ``[...,
        k]``, and ``NAME/error`` ``[...]`` if they have errors, as a cached teacher has them.
      name: name of the teacher's output.

    Returns:
      ``kl_lower`` and ``kl_upper``, means over the examples or tokens that the mask includes, in nats. The upper bound
      is infinite where the student excludes a class of a tail with mass.

    Raises:
      ValueError: an output does not exist, or shapes do not fit.

    >>> from jaxkd.metrics import compute
    >>> teacher = {"logits/log_probs": jnp.log(jnp.array([[0.5, 0.3]])), "logits/indices": jnp.array([[0, 1]])}
    >>> context = Context({"logits": jnp.log(jnp.array([[0.2, 0.2, 0.3, 0.3]]))}, teacher, {}, 0)
    >>> {bound: round(value, 3) for bound, value in compute(jax.jit(top_k_bounds)(context)).items()}
    {'kl_lower': 0.36, 'kl_upper': 0.58}
    """
    student = batches.lookup(context, "student/logits")
    log_p, indices = (batches.lookup(context, f"teacher/{name}/{part}") for part in ("log_probs", "indices"))
    lower = losses.top_k_kl(student, log_p, indices)
    log_q = jax.nn.log_softmax(student.astype(jnp.float32))
    error = context.teacher.get(f"{name}/error", jnp.zeros(lower.shape))
    stored = jnp.put_along_axis(jnp.zeros(log_q.shape, bool), indices, True, axis=-1, inplace=False)
    log_rest = jax.nn.logsumexp(jnp.where(stored, -jnp.inf, log_q), axis=-1)
    least = jnp.min(jnp.where(stored, jnp.inf, log_q), axis=-1)
    p = jnp.exp(log_p)
    rest = jnp.maximum(-jnp.expm1(jax.nn.logsumexp(log_p, axis=-1)), 0)
    some = rest > 16 * jnp.finfo(rest.dtype).eps
    ratio = jnp.min(log_p, axis=-1) + error - jnp.log(jnp.where(some, rest, 1)) + log_rest - least
    within = jnp.where(some, rest * jnp.maximum(jnp.where(some, ratio, 0), 0), 0)
    gap = jnp.where(p > 0, log_p - jnp.take_along_axis(log_q, indices, axis=-1), 0)
    center = jnp.sum(p * gap, axis=-1) / jnp.sum(p, axis=-1)
    slack = jnp.expm1(error) * jnp.sum(p * jnp.abs(gap - center[..., None]), axis=-1)
    where = batches.mask_of_shape(context, lower.shape)
    return {
        "kl_lower": from_values(jnp.maximum(lower - slack, 0), where),
        "kl_upper": from_values(lower + slack + error**2 / 8 + within, where),
    }
