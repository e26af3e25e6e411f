"""The effect of a token on the reverse KL of those after it."""

from __future__ import annotations

from typing import Any

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
    nll, taught = (losses.cross_entropy(x, labels, where=where) for x in (student, teacher))
    return _to_go(nll, taught, where, length_normalized)


def linear_reverse_kl_to_go(
    student_hidden: Float[Array, "batch tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "batch tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    labels: Int[Array, "batch tokens"],
    *,
    length_normalized: bool = True,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "batch tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "batch tokens"]:
    """Policy-gradient term of a sampled token, from hidden states.

    Also known as: MiniLLM, long-term part, chunked (fused linear).

    `reverse_kl_to_go` of the two networks' logits ``hidden @ kernel + bias``, without holding them, beside
    `jaxkd.losses.linear_reverse_kl` as the single-step part. Both log-probabilities are those of
    `jaxkd.losses.linear_cross_entropy`. Each token has a return of its own, and so the kernel's gradient takes a second
    pass.

    Args:
      student_hidden: inputs of the student's last layer ``[batch, tokens, hidden]``.
      student_kernel: its kernel ``[hidden, vocabulary]``, or a table ``[vocabulary, hidden]`` with ``transposed``.
      teacher_hidden: the teacher's hidden states ``[batch, tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      labels: the drawn tokens ``[batch, tokens]``, each drawn from the student at its place.
      length_normalized: whether R is divided by the number of its tokens.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens that were drawn ``[batch, tokens]``.
      vocabulary_axis: a mapped axis over which the vocabulary is split; labels count words of the whole vocabulary.
      chunk: largest number of tokens at once.

    Returns:
      One value per token ``[batch, tokens]``, as `reverse_kl_to_go` has it.

    Raises:
      ValueError: as of `jaxkd.losses.linear_cross_entropy`, or the hidden states are not of the same sequences.
      NotImplementedError: a second derivative.

    >>> student, teacher = jnp.zeros((1, 2, 2)), jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> linear_reverse_kl_to_go(student, jnp.eye(2), teacher, jnp.eye(2), jnp.array([[0, 0]])).round(3)
    Array([[-0.48,  0.  ]], dtype=float32)
    """
    if jnp.ndim(student_hidden) != 3 or jnp.shape(student_hidden)[:2] != jnp.shape(teacher_hidden)[:2]:
        raise ValueError(
            "linear_reverse_kl_to_go: expected hidden states [batch, tokens, hidden] of the same sequences, got "
            f"{list(jnp.shape(student_hidden))} and {list(jnp.shape(teacher_hidden))}."
        )
    nll, taught = (
        losses.linear_cross_entropy(
            hidden,
            kernel,
            labels,
            student_bias=bias,
            soft_cap=cap,
            transposed=table,
            where=where,
            vocabulary_axis=vocabulary_axis,
            chunk=chunk,
        )
        for hidden, kernel, bias, cap, table in (
            (student_hidden, student_kernel, student_bias, _pair(soft_cap)[0], _pair(transposed)[0]),
            (teacher_hidden, teacher_kernel, teacher_bias, _pair(soft_cap)[1], _pair(transposed)[1]),
        )
    )
    return _to_go(nll, taught, where, length_normalized)


def _pair(value: Any) -> tuple[Any, Any]:
    """Returns what is given for student and teacher, or for both."""
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else (value, value)


def _to_go(nll: Array, taught: Array, where: Array | None, length_normalized: bool) -> Array:
    """Returns the term from the tokens' costs for the student and for the teacher."""
    ratio = jax.lax.stop_gradient(nll - taught)
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
