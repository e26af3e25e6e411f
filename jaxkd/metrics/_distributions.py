"""The student's distribution beside the teacher's: `imitation` and `kl_bounds`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd.metrics._derived import derived
from jaxkd.metrics._means import from_values
from jaxkd.types import Array, Context, Derived, Mean, Metrics


def imitation(context: Context, *, output: str = "logits", draft: int = 4) -> Metrics:
    """Divergences of student and teacher, and the student's worth as a draft.

    In speculative decoding the student proposes tokens, and the teacher accepts one with the probability ``min(1, p_t /
    p_s)``, on average ``α = Σ min(p_t, p_s) = 1 − TV(p_t, p_s)``. After γ proposals the teacher adds a token of its
    own, so that one of its passes gives ``(1 − α^{γ+1}) / (1 − α)`` tokens, if acceptances are independent. Leviathan,
    Kalman & Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023, equation 1 and corollary
    3.6.

    Args:
      context: logits ``[..., classes]`` of both models. Masked examples or tokens are excluded.
      output: name of the output with the logits.
      draft: γ, number of tokens that the student proposes at once.

    Returns:
      ``forward_kl``, ``KL(p_t ‖ p_s)``, and ``reverse_kl``, ``KL(p_s ‖ p_t)``, in nats; ``acceptance``, α;
      ``accepted_length``, the tokens for each pass of the teacher, from 1 to γ + 1, computed from the merged α.

    Raises:
      ValueError: there are no such outputs, their shapes differ, or ``draft`` is not positive.

    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> context = Context({"logits": logits}, {"logits": logits[::-1]}, {}, step=0)
    >>> from jaxkd.metrics import compute
    >>> found = compute(imitation(context, draft=1))
    >>> round(found["acceptance"], 3), round(found["accepted_length"], 3)
    (0.6, 1.6)
    """
    if draft < 1:
        raise ValueError(f"imitation, draft: expected at least one token, got {draft}.")
    student, teacher = (batches.lookup(context, f"{role}/{output}") for role in ("student", "teacher"))
    shape = checks.same_shape("imitation", {f"student/{output}": student, f"teacher/{output}": teacher})
    where = batches.mask_of_shape(context, shape[:-1])
    forward = losses.soft_target_kl(student, teacher, temperature=1.0, where=where)
    reverse = losses.reverse_kl(student, teacher, temperature=1.0, where=where)
    overlap = jnp.sum(jnp.exp(jnp.minimum(_log_softmax(student), _log_softmax(teacher))), axis=-1)
    acceptance = from_values(overlap, where)
    found: dict[str, Mean | Derived] = {
        "forward_kl": from_values(forward, where),
        "reverse_kl": from_values(reverse, where),
        "acceptance": acceptance,
        "accepted_length": derived(lambda alpha: sum(alpha**i for i in range(draft + 1)), acceptance),
    }
    return found


def kl_bounds(context: Context, *, output: str = "logits") -> dict[str, Mean]:
    """Bounds of ``KL(p_t ‖ p_s)`` where k classes of the teacher and a tail are known.

    **Lower bound.** `jaxkd.losses.top_k_kl`: the tail as one bucket. Merging classes never raises a KL.

    **Upper bound.** The known classes contribute ``Σ_k p_t log(p_t / p_s)`` in any case. Of the other ones it is known
    that their probabilities p add up to the tail's mass r, and that none exceeds m, the smallest known one. Their part,
    ``Σ p log(p / p_s)``, is a convex function of p, so that its maximum over these p is at a vertex of their polytope,
    where all but one of them are 0 or m: n = ⌊r / m⌋ are m, and one is r − n·m. It is then ``Σ p log p``, which is the
    same for all vertices, minus ``Σ p log p_s``, which is least if the largest p are at the smallest p_s (rearrangement
    inequality). So the bound is attained: without further knowledge of the teacher, none is lower.

    Where the log-probabilities are known up to an error s (`jaxkd.cache.codecs.packed_top_k`), m is multiplied by
    ``eˢ``, both bounds become wider by ``(eˢ − 1) Σ_k p |a − mean a|`` with ``a = log p / p_s``, and the upper one by
    ``s² / 8``, which holds as these errors change neither the tail nor the sum.

    Args:
      context: the student's logits ``[..., classes]``, of all classes; the teacher's log-probabilities, normalized over
        all classes, of its k most probable classes ``[..., k]``, and these classes, as ``OUTPUT/log_probs`` and
        ``OUTPUT/indices``; optionally the logarithm of the tail's mass ``[...]`` as ``OUTPUT/log_tail``, which is more
        exact than the difference from 1; and their errors ``[...]`` as ``OUTPUT/error``. A cached teacher has them.
      output: name of the output.

    Returns:
      ``kl_lower`` and ``kl_upper`` over the examples or tokens that the mask includes, in nats. The upper bound is
      infinite where the student excludes a class of the tail.

    Raises:
      ValueError: there are no such outputs, or their shapes do not fit.

    >>> student, teacher = jnp.log(jnp.array([[0.2, 0.2, 0.3, 0.3]])), jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]]))
    >>> log_probs, indices = jax.lax.top_k(teacher, 2)
    >>> known = {"logits/log_probs": log_probs, "logits/indices": indices}
    >>> from jaxkd.metrics import compute
    >>> bounds = compute(jax.jit(kl_bounds)(Context({"logits": student}, known, {}, step=0)))
    >>> {name: round(value, 4) for name, value in bounds.items()}  # the KL is 0.3601
    {'kl_lower': 0.3601, 'kl_upper': 0.4987}
    """
    student = batches.lookup(context, f"student/{output}")
    log_probs, indices = (batches.lookup(context, f"teacher/{output}/{x}") for x in ("log_probs", "indices"))
    where = batches.mask_of_shape(context, student.shape[:-1])
    lower = losses.top_k_kl(student, log_probs, indices, where=where)
    log_tail, error = (context.teacher.get(f"{output}/{x}") for x in ("log_tail", "error"))
    log_q, log_probs = _log_softmax(student), jnp.asarray(log_probs, jnp.float32)
    error = jnp.zeros(lower.shape, jnp.float32) if error is None else jnp.asarray(error)
    slack = _slack(log_q, log_probs, indices, error)
    upper = _largest_kl(log_q, log_probs, indices, log_tail, error) + slack + error**2 / 8
    upper = jnp.where(jnp.isnan(lower), jnp.nan, upper)  # `top_k_kl` marks indices that are no classes
    return {"kl_lower": from_values(jnp.maximum(lower - slack, 0), where), "kl_upper": from_values(upper, where)}


def _slack(log_q: Array, log_probs: Array, indices: Array, error: Array) -> Array:
    """Returns the largest change of the known part by errors of its log-probabilities."""
    p = jnp.exp(log_probs)
    gap = jnp.where(p > 0, log_probs - jnp.take_along_axis(log_q, jnp.maximum(indices, 0), axis=-1), 0)
    center = jnp.sum(p * gap, axis=-1, keepdims=True) / jnp.sum(p, axis=-1, keepdims=True)
    wide = jnp.sum(jnp.where(p > 0, p * jnp.abs(gap - center), 0), axis=-1)
    return jnp.where(error > 0, jnp.expm1(error) * wide, 0)


def _largest_kl(log_q: Array, log_probs: Array, indices: Array, log_tail: Array | None, error: Array) -> Array:
    """Returns the largest KL of a teacher with these probabilities, ``[...]``."""
    classes = log_q.shape[-1]
    # Padding is scattered to one place more than there are classes, which is then cut off.
    slots = jnp.where((indices >= 0) & (indices < classes), indices.astype(jnp.int32), classes)
    empty = jnp.zeros((*log_q.shape[:-1], classes + 1), jnp.float32)
    p = jnp.put_along_axis(empty, slots, jnp.exp(log_probs), axis=-1, inplace=False)[..., :classes]
    kept = jnp.put_along_axis(empty, slots, 1.0, axis=-1, inplace=False)[..., :classes] > 0
    others = classes - jnp.sum(kept, axis=-1, keepdims=True)
    tail = 1 - jnp.sum(p, axis=-1, keepdims=True) if log_tail is None else jnp.exp(log_tail)[..., None]
    tail = jnp.where(others > 0, jnp.maximum(tail, 0), 0)
    most = jnp.min(jnp.where(kept & (p > 0), p, 1), axis=-1, keepdims=True) * jnp.exp(error)[..., None]
    full = jnp.minimum(jnp.floor(tail / most), others)
    smallest = jnp.sort(jnp.where(kept, jnp.inf, log_q), axis=-1)  # of the tail's classes, and then infinities
    place = jnp.arange(classes).reshape((1,) * (log_q.ndim - 1) + (classes,))
    rest = jnp.where(place == full, jnp.maximum(tail - full * most, 0), 0)
    worst = jnp.where(place < others, jnp.where(place < full, most, rest), 0)
    return jnp.sum(_terms(p, log_q), axis=-1) + jnp.sum(_terms(worst, smallest), axis=-1)


def _terms(p: Array, log_q: Array) -> Array:
    return jnp.where(p > 0, p * (jnp.log(jnp.where(p > 0, p, 1)) - jnp.where(p > 0, log_q, 0)), 0)


def _log_softmax(logits: Array) -> Array:
    return jax.nn.log_softmax(jnp.asarray(logits).astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
