"""Distances between the probabilities of student and teacher, without logarithms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["total_variation", "universal_logit_distance"]


def total_variation(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Total variation distance between the softmaxes of student and teacher.

    Also known as: TV, TVD, one minus the acceptance rate of speculative decoding.

    ``½ Σ |p_t − p_s| = 1 − Σ min(p_t, p_s)`` with ``p = softmax(z / T)``. Leviathan, Kalman & Matias, "Fast Inference
    from Transformers via Speculative Decoding", ICML 2023, section 3.2: ``α = Σ min(p_t, p_s)``, one minus this loss,
    is the probability that the teacher accepts a token that the student drafts. Trained on it by Zhou et al.,
    "DistillSpec: Improving Speculative Decoding via Knowledge Distillation", ICLR 2024. `linear_total_variation` takes
    hidden states in place of logits.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` has probability 0.
      temperature: T > 0, a scalar or one for each example ``[...]``: that of sampling.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, from 0 to 1, without T². The derivative of ``|p_t − p_s|`` at 0 is taken as 0.

    Raises:
      ValueError: shapes differ (nothing is broadcast), there is one class, a dtype is not floating point, or T is not
        positive.

    >>> total_variation(jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.9, 0.1]]))).round(4)
    Array([0.4], dtype=float32)
    """
    student, teacher, _, where = _numerics.softened(student, teacher, temperature, where)
    apart = _numerics.apart(jax.nn.softmax(teacher), jax.nn.softmax(student))
    return _numerics.mask_values(jnp.sum(jnp.abs(apart), axis=-1) / 2, where)


def universal_logit_distance(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes_t"],
    *,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Distance between sorted probabilities, for networks of other vocabularies.

    Also known as: ULD (universal logit distillation).

    ``Σ_i |p_s(i) − p_t(i)|`` with ``p(i)`` the i-th largest of ``softmax(z / T)``, and 0 beyond the smaller vocabulary.
    Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", 2024,
    equation 5: the Wasserstein distance of order 1 for a cost of 1 between any two tokens. It does not know which words
    the probabilities belong to, so the paper adds it to the cross-entropy, with a weight of 1.5. The sequences have to
    be aligned: the paper cuts both to the shorter one.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes_t]`` of the same leading shape.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, from 0 to 2. It is 0 for equal probabilities in any order.

    Raises:
      ValueError: leading shapes differ (nothing is broadcast), a network has one class, a dtype is not floating point,
        or T is not positive.

    >>> student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    >>> universal_logit_distance(student, teacher).round(4)  # |0.5 − 0.6| + |0.5 − 0.3| + |0 − 0.1|
    Array([0.4], dtype=float32)
    """
    student, teacher = _checks.class_logits("student", student), _checks.class_logits("teacher", teacher)
    shape, classes = student.shape[:-1], max(student.shape[-1], teacher.shape[-1])
    if teacher.shape[:-1] != shape:
        raise ValueError(
            f"teacher: expected {[*shape, 'classes']} as the student {list(student.shape)}, got {list(teacher.shape)}. "
            "Only the classes may differ; nothing is broadcast: cut both sequences to one length."
        )
    dtype = jnp.result_type(student, teacher)
    scale, where = _checks.temperature(temperature, dtype, shape), _checks.mask(where, shape)

    def ordered(logits: Array) -> Array:
        p = jnp.sort(jax.nn.softmax(_numerics.soften(logits.astype(dtype), scale)), axis=-1)  # the smallest is first
        return jnp.pad(p, [(0, 0)] * len(shape) + [(classes - p.shape[-1], 0)])

    student, teacher = _numerics.mask_inputs(where, student, teacher)
    apart = _numerics.apart(ordered(student), ordered(teacher))
    return _numerics.mask_values(jnp.sum(jnp.abs(apart), axis=-1), where)
