"""Learned temperatures (CTKD): the temperature is trained against the student, by a growing gradient reversal."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks, losses
from jaxkd.objectives.compose import Schedule, counted, lookup, weighted
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, LossOut, LossVars, Objective

__all__ = ["cosine_curriculum", "curriculum_temperature", "instance_temperature"]


def cosine_curriculum(steps: int, *, low: float = 0.0, high: float = 1.0) -> Schedule:
    """The difficulty λ of Li et al.: from ``low`` to ``high`` over ``steps`` steps along half a cosine, then constant.

    ``λ(e) = low + ½ (high − low) (1 + cos((1 + min(e, E)/E) π))``; "Curriculum Temperature for Knowledge Distillation",
    AAAI 2023, equation 8. The authors count epochs, E = 10 of 240; this counts steps.

    Args:
      steps: E > 0, the number of steps until ``high`` is reached.
      low: λ at step 0.
      high: λ from step E on.

    Raises:
      ValueError: there are no steps.

    >>> schedule = cosine_curriculum(10)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """
    if steps <= 0:
        raise ValueError(f"cosine_curriculum, steps: expected a positive number, got {steps}.")

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
    """Soft targets at one learned temperature (Global-T): ``T = start + span · sigmoid(a)``, a trained to oppose.

    ``min_student max_a T² KL(p_t ‖ p_s)``: a's gradient is reversed and scaled by the difficulty λ. Li et al.,
    "Curriculum Temperature for Knowledge Distillation", AAAI 2023, equations 3 to 7. a begins at 1, as in the authors'
    code: T = 15.6. The factor T² is that of `jaxkd.losses.soft_target_kl`, as there.

    Args:
      student: path of the student's logits.
      teacher: path of the teacher's.
      difficulty: λ, a number or a schedule of the step, such as `cosine_curriculum`.
      start: the lowest temperature.
      span: the range of temperatures above it.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns the scalar ``a``. Its metrics include the ``temperature``.

    Raises:
      ValueError: when it is initialised or applied: a path does not exist, or the logits' shapes differ.

    >>> objective = curriculum_temperature()
    >>> logits = {"logits": jnp.array([[0.0, 1.0]])}
    >>> context = Context(logits, {"logits": -logits["logits"]}, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> objective.apply(params, {}, context, None).metrics["temperature"].sum.round(3)
    Array(15.621, dtype=float32)
    """

    def init(key: Array, context: Context) -> LossVars:
        del key
        _check(context, student, teacher)
        return LossVars({"raw": jnp.ones((), jnp.float32)})

    def raw(params: Any, context: Context) -> Array:
        return jnp.broadcast_to(params["raw"], lookup(context, student).shape[:-1])

    return _objective(init, raw, student, teacher, difficulty, start, span, weight)


def instance_temperature(
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    *,
    hidden: int = 128,
    difficulty: float | Schedule = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Soft targets at a learned temperature of each example (Instance-T), by a network of two layers on both logits.

    As `curriculum_temperature`, with ``a = W₂ relu(W₁ [z_s; z_t] + b₁) + b₂``. Li et al., "Curriculum Temperature for
    Knowledge Distillation", AAAI 2023, section 3.3. The logits enter without gradients of their own: the student is
    taught by the loss and not by choosing its temperature.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teacher: path of the teacher's.
      hidden: width of the network.
      difficulty: λ, a number or a schedule of the step, such as `cosine_curriculum`.
      start: the lowest temperature.
      span: the range of temperatures above it.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns the network. Its metrics include the mean ``temperature``.

    Raises:
      ValueError: when it is initialised or applied: a path does not exist, or the logits' shapes differ.

    >>> objective = instance_temperature(hidden=4)
    >>> logits = {"logits": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    >>> made = objective.init(jax.random.key(0), Context(logits, logits, {}, 0))
    >>> jax.tree.map(jnp.shape, made.params)["first"]
    {'bias': (4,), 'kernel': (6, 4)}
    """

    def init(key: Array, context: Context) -> LossVars:
        classes = _check(context, student, teacher)
        first, second = jax.random.split(key)
        return LossVars({"first": dense_init(first, 2 * classes, hidden), "second": dense_init(second, hidden, 1)})

    def raw(params: Any, context: Context) -> Array:
        both = [counted(context, jnp.asarray(lookup(context, path))).astype(jnp.float32) for path in (student, teacher)]
        # A class that is masked out (-inf) says nothing about the temperature.
        x = jax.lax.stop_gradient(jnp.concatenate([jnp.where(jnp.isfinite(z), z, 0) for z in both], axis=-1))
        return dense(params["second"], jax.nn.relu(dense(params["first"], x)))[..., 0]

    return _objective(init, raw, student, teacher, difficulty, start, span, weight)


def _check(context: Context, student: str, teacher: str) -> int:
    """The number of classes, which both logits have."""
    jax.eval_shape(losses.soft_target_kl, lookup(context, student), lookup(context, teacher))
    return int(lookup(context, student).shape[-1])


def _objective(
    init: Any,
    raw: Any,
    student: str,
    teacher: str,
    difficulty: float | Schedule,
    start: float,
    span: float,
    weight: float | Array | Schedule,
) -> Objective:
    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del key
        hard = difficulty(context.step) if callable(difficulty) else difficulty
        opposed = losses.reverse_gradient(raw(params, context), hard)
        temperature = start + span * jax.nn.sigmoid(opposed)
        mask = checks.example_mask(context.batch)
        rows = tuple(range(1, temperature.ndim))
        where = None if mask is None else jnp.broadcast_to(jnp.expand_dims(mask, rows), temperature.shape)
        scaled = (_divided(lookup(context, path), temperature) for path in (student, teacher))
        values = temperature**2 * losses.soft_target_kl(*scaled, temperature=1.0, where=where)
        return weighted(values, where, weight, context, state, temperature=temperature)

    return Objective(init, apply)


def _divided(logits: Array, temperature: Array) -> Array:
    """``z / T``; a class that is masked out (-inf) says nothing about T, and −inf/T would have a slope that is NaN."""
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    finite = jnp.isfinite(logits)
    return jnp.where(finite, jnp.where(finite, logits, 0) / temperature[..., None], logits)
