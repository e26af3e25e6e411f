"""Temperatures that are trained against the student, by gradient reversal."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import positive
from jaxkd.objectives._compose import at_step, mask_of_shape, mask_out, reduce_values
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def cosine_curriculum(steps: int, *, low: float = 0.0, high: float = 1.0) -> Schedule:
    """Builds a schedule that rises along half a cosine, then stays constant.

    Also known as: CTKD (curriculum temperature for knowledge distillation), its difficulty λ.

    ``λ(e) = low + ½ (high − low) (1 + cos((1 + min(e, E)/E) π))``. Li et al., "Curriculum Temperature for Knowledge
    Distillation", AAAI 2023, equation 8. The authors count epochs, E = 10 of 240; this counts steps.

    Args:
      steps: E > 0, the number of steps from ``low`` to ``high``.
      low: λ at step 0.
      high: λ from step E on.

    Raises:
      ValueError: the number of steps is not positive.

    >>> schedule = cosine_curriculum(10)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """
    positive("cosine_curriculum", steps=steps)

    def schedule(step: Any) -> Array:
        share = jnp.minimum(jnp.asarray(step, jnp.float32), steps) / steps
        return low + 0.5 * (high - low) * (1 + jnp.cos((1 + share) * math.pi))

    return schedule


def curriculum_temperature(
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    *,
    difficulty: float | Schedule = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """KL divergence at one learned temperature, trained against the student.

    Also known as: CTKD (curriculum temperature for knowledge distillation), its Global-T.

    ``min_student max_a T² KL(p_t ‖ p_s)`` with ``T = start + span · sigmoid(a)``: the gradient of a is reversed and
    scaled by the difficulty λ. Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, equations 3
    to 7. As in the authors' code, a starts at 1, T = 15.6, and the factor T² is that of `jaxkd.losses.soft_target_kl`.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teacher: path of the teacher's logits ``[..., classes]``.
      difficulty: λ, a number or a schedule of the step, such as `cosine_curriculum`.
      start: lowest temperature.
      span: range of temperatures above ``start``.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the scalar parameter ``raw``, a. Its metrics include the ``temperature``.

    Raises:
      ValueError: from ``init``: a path does not exist, or the logits' shapes differ.

    >>> objective = curriculum_temperature()
    >>> logits = {"logits": jnp.array([[0.0, 1.0]])}
    >>> context = Context(logits, {"logits": -logits["logits"]}, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> objective.apply(params, {}, context, None).metrics["temperature"].sum.round(3)
    Array(15.621, dtype=float32)
    """

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        _check(context, student, teacher)
        return ObjectiveVars({"raw": jnp.ones((), jnp.float32)})

    def raw(params: Any, context: Context) -> Array:
        return jnp.broadcast_to(params["raw"], lookup(context, student).shape[:-1])

    return _objective(init, raw, student, teacher, difficulty=difficulty, start=start, span=span, weight=weight)


def instance_temperature(
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    *,
    hidden_size: int = 128,
    difficulty: float | Schedule = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """KL divergence at a learned temperature per example, predicted from the logits.

    Also known as: CTKD (curriculum temperature for knowledge distillation), its Instance-T.

    As `curriculum_temperature`, with ``a = W₂ relu(W₁ [z_s; z_t] + b₁) + b₂``. Li et al., "Curriculum Temperature for
    Knowledge Distillation", AAAI 2023, section 3.3. No gradient reaches the logits through the temperature, which the
    student could otherwise choose to lower its loss.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teacher: path of the teacher's logits ``[..., classes]``.
      hidden_size: width of the hidden layer.
      difficulty: λ, a number or a schedule of the step, such as `cosine_curriculum`.
      start: lowest temperature.
      span: range of temperatures above ``start``.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the network as parameters. Its metrics include the mean ``temperature``.

    Raises:
      ValueError: from ``init``: a path does not exist, or the logits' shapes differ.

    >>> objective = instance_temperature(hidden_size=4)
    >>> logits = {"logits": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    >>> variables = objective.init(jax.random.key(0), Context(logits, logits, {}, 0))
    >>> jax.tree.map(jnp.shape, variables.params)["first"]
    {'bias': (4,), 'kernel': (6, 4)}
    """

    def init(key: Array, context: Context) -> ObjectiveVars:
        classes = _check(context, student, teacher)
        first, second = jax.random.split(key)
        return ObjectiveVars(
            {"first": dense_init(first, 2 * classes, hidden_size), "second": dense_init(second, hidden_size, 1)}
        )

    def raw(params: Any, context: Context) -> Array:
        both = [
            mask_out(context, jnp.asarray(lookup(context, path))).astype(jnp.float32) for path in (student, teacher)
        ]
        # An excluded class (-inf) enters as 0, since it would make the temperature NaN.
        x = jax.lax.stop_gradient(jnp.concatenate([jnp.where(jnp.isfinite(z), z, 0) for z in both], axis=-1))
        return dense(params["second"], jax.nn.relu(dense(params["first"], x)))[..., 0]

    return _objective(init, raw, student, teacher, difficulty=difficulty, start=start, span=span, weight=weight)


def _check(context: Context, student: str, teacher: str) -> int:
    """Raises unless the logits have one shape; returns the number of classes."""
    jax.eval_shape(losses.soft_target_kl, lookup(context, student), lookup(context, teacher))
    return int(lookup(context, student).shape[-1])


def _objective(
    init: Any,
    raw: Any,
    student: str,
    teacher: str,
    *,
    difficulty: float | Schedule,
    start: float,
    span: float,
    weight: float | Array | Schedule,
) -> Objective:
    """Builds the objective with the temperature ``start + span · sigmoid(raw)``."""

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del key
        reversed_raw = losses.reverse_gradient(raw(params, context), at_step(difficulty, context.step))
        temperature = start + span * jax.nn.sigmoid(reversed_raw)
        where = mask_of_shape(context, temperature.shape)
        scaled = (_divided(lookup(context, path), temperature) for path in (student, teacher))
        values = temperature**2 * losses.soft_target_kl(*scaled, temperature=1.0, where=where)
        return reduce_values(values, where, weight, context, state, temperature=temperature)

    return Objective(init, apply)


def _divided(logits: Array, temperature: Array) -> Array:
    """Divides logits by T; -inf, whose quotient has a NaN gradient, stays."""
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    finite = jnp.isfinite(logits)
    return jnp.where(finite, jnp.where(finite, logits, 0) / temperature[..., None], logits)
