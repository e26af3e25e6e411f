"""The effect of a token on the reverse KL of those after it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxkd import losses
from jaxkd.types import Array


def reverse_kl_to_go(
    student: Float[Array, "batch tokens classes"],
    teacher: Float[Array, "batch tokens classes"],
    labels: Int[Array, "batch tokens"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
    length_normalized: bool = True,
) -> Float[Array, "batch tokens"]:
    """Policy-gradient term of a sampled token: the log-ratios of those after it.

    Also known as: MiniLLM, long-term part.

    ``−R_{t+1} log p_s(y_t)``, where ``R_{t+1} = Σ_{u>t} log(p_t(y_u) / p_s(y_u))`` is a constant for the gradient. Gu
    et al., "MiniLLM", ICLR 2024, section 2.2. For sequences that the student has drawn, the gradient of their reverse
    KL is that of the sum, over the tokens, of `jaxkd.losses.reverse_kl` (the single-step part, exact over the
    vocabulary) and of this, without length normalization. Normalized, R is a mean over the later tokens, so that long
    sequences do not get the smaller returns; the paper's divisor is T − t − 1, here it is the number of these tokens.
    The paper's clipping and its loss on a pretraining corpus are left to the objective. It is used with
    `jaxkd.schemes.on_policy` as a term:

    ``term(reverse_kl_to_go, "student/logits", "teacher/logits", "batch/label")``

    Args:
      student: logits ``[batch, tokens, classes]``.
      teacher: logits ``[batch, tokens, classes]``.
      labels: the drawn tokens ``[batch, tokens]``, each drawn from the student's logits at its place.
      where: mask, True for the tokens that were drawn ``[batch, tokens]``.
      length_normalized: whether R is divided by the number of its tokens.

    Returns:
      One value per token ``[batch, tokens]``, of which only the gradient has a meaning. It is infinite, with a gradient
      of 0, before a token that the teacher excludes.

    Raises:
      ValueError: the shapes do not fit, the logits are not floating point or the labels not integers.

    >>> student, teacher = jnp.zeros((1, 2, 2)), jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> reverse_kl_to_go(student, teacher, jnp.array([[0, 0]])).round(3)  # (log ¼ − log ½) times log 2, then nothing
    Array([[-0.48,  0.  ]], dtype=float32)
    """
    if jnp.ndim(student) != 3 or jnp.shape(student) != jnp.shape(teacher):
        raise ValueError(
            "reverse_kl_to_go: expected logits [batch, tokens, classes] of one shape, got "
            f"{list(jnp.shape(student))} and {list(jnp.shape(teacher))}."
        )
    nll = losses.cross_entropy(student, labels, where=where)
    ratio = jax.lax.stop_gradient(nll - losses.cross_entropy(teacher, labels, where=where))
    drawn = jnp.ones(nll.shape, bool) if where is None else where
    later = _later(ratio)
    if length_normalized:
        later = later / jnp.maximum(_later(drawn.astype(nll.dtype)), 1)
    later, endless = jnp.where(later == -jnp.inf, 0, later), jnp.where(later == -jnp.inf, jnp.inf, 0)
    return jnp.where(drawn, later * nll + endless, 0)


def _later(x: Array) -> Array:
    """Returns the sum over the tokens after each one."""
    after = jnp.pad(x[:, 1:], [(0, 0), (0, 1)])
    return jnp.cumsum(after[:, ::-1], axis=1)[:, ::-1]
