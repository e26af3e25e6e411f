"""Temperatures that are trained against the student, by gradient reversal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.batches import lookup, mask_of_shape
from jaxkd._core.checks import same_shape
from jaxkd.objectives._checks import finite, positive, sizes
from jaxkd.objectives._compose import at_step, masked_mean, term
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, Mean, Objective, ObjectiveOut, ObjectiveVars, Schedule


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
    finite("cosine_curriculum", low=low, high=high)

    def schedule(step: Any) -> Array:
        share = jnp.minimum(jnp.asarray(step, jnp.float32), steps) / steps
        return low + 0.5 * (high - low) * (1 + jnp.cos((1 + share) * math.pi))

    return schedule


def curriculum_temperature(
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    *,
    loss: Callable[..., Array] = losses.soft_target_kl,
    label_path: str | None = None,
    difficulty: float | Schedule = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    weight: float | Array | Schedule = 1.0,
    **hyperparameters: Any,
) -> Objective:
    """Softened loss at one learned temperature, trained against the student.

    Also known as: CTKD (curriculum temperature for knowledge distillation), its Global-T.

    ``min_student max_a T² KL(p_t ‖ p_s)`` with ``T = start + span · sigmoid(a)``: the gradient of a is reversed and
    scaled by the difficulty λ. Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, equations 3
    to 7. As in the authors' code, a starts at 1, T = 15.6, and the factor T² is that of `jaxkd.losses.soft_target_kl`.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teacher: path of the teacher's logits ``[..., classes]``.
      loss: any loss with a ``temperature``, of the two paths: `jaxkd.losses.reverse_kl`, `jaxkd.losses.dist`, ...
      label_path: path of a third argument of the loss, as `jaxkd.losses.decoupled_kd` has; None for two arguments.
      difficulty: λ, a number or a schedule of the step, such as `cosine_curriculum`.
      start: lowest temperature.
      span: range of temperatures above ``start``.
      weight: a number, or an optax schedule of the step.
      **hyperparameters: further keyword arguments of the loss, as for `jaxkd.term`.

    Returns:
      An `Objective` with the scalar parameter ``raw``, a. Its metrics include the ``temperature``.

    Raises:
      ValueError: a number is out of range; from ``init``: a path does not exist, or the logits' shapes differ.

    >>> objective = curriculum_temperature()
    >>> logits = {"logits": jnp.array([[0.0, 1.0]])}
    >>> context = Context(logits, {"logits": -logits["logits"]}, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> objective.apply(params, {}, context, None).metrics["temperature"].sum.round(3)
    Array(15.621, dtype=float32)
    """

    def init(key: Array, context: Context) -> Any:
        del key, context
        return {"raw": jnp.ones((), jnp.float32)}

    def raw(params: Any, context: Context) -> Array:
        del context
        return jnp.asarray(params["raw"])

    made = _Parts("curriculum_temperature", init, raw, difficulty, start, span)
    return _objective(made, loss, _paths(student, teacher, label_path), weight=weight, **hyperparameters)


def instance_temperature(
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    *,
    hidden_size: int = 128,
    loss: Callable[..., Array] = losses.soft_target_kl,
    label_path: str | None = None,
    difficulty: float | Schedule = 1.0,
    start: float = 1.0,
    span: float = 20.0,
    weight: float | Array | Schedule = 1.0,
    **hyperparameters: Any,
) -> Objective:
    """Softened loss at a temperature per example, predicted from the logits.

    Also known as: CTKD (curriculum temperature for knowledge distillation), its Instance-T.

    As `curriculum_temperature`, with ``a = W₂ relu(W₁ [z_s; z_t] + b₁) + b₂``. Li et al., "Curriculum Temperature for
    Knowledge Distillation", AAAI 2023, section 3.3. No gradient reaches the logits through the temperature, which the
    student could otherwise choose to lower its loss.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teacher: path of the teacher's logits ``[..., classes]``.
      hidden_size: width of the hidden layer.
      loss: any loss with a ``temperature`` for each example, of the two paths.
      label_path: path of a third argument of the loss; None for two arguments.
      difficulty: λ, a number or a schedule of the step, such as `cosine_curriculum`.
      start: lowest temperature.
      span: range of temperatures above ``start``.
      weight: a number, or an optax schedule of the step.
      **hyperparameters: further keyword arguments of the loss, as for `jaxkd.term`.

    Returns:
      An `Objective` with the network as parameters. Its metrics include the mean ``temperature``.

    Raises:
      ValueError: a number is out of range; from ``init``: a path does not exist, or the logits' shapes differ.

    >>> objective = instance_temperature(hidden_size=4)
    >>> logits = {"logits": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    >>> variables = objective.init(jax.random.key(0), Context(logits, logits, {}, 0))
    >>> jax.tree.map(jnp.shape, variables.params)["first"]
    {'bias': (4,), 'kernel': (6, 4)}
    """
    sizes("instance_temperature", hidden_size=hidden_size)

    def init(key: Array, context: Context) -> Any:
        classes = same_shape("instance_temperature", {path: lookup(context, path) for path in (student, teacher)})[-1]
        first, second = jax.random.split(key)
        return {"first": dense_init(first, 2 * classes, hidden_size), "second": dense_init(second, hidden_size, 1)}

    def raw(params: Any, context: Context) -> Array:
        both = [
            mask_feature(context, jnp.asarray(lookup(context, path))).astype(jnp.float32) for path in (student, teacher)
        ]
        # An excluded class (-inf) enters as 0, since it would make the temperature NaN.
        x = jax.lax.stop_gradient(jnp.concatenate([jnp.where(jnp.isfinite(z), z, 0) for z in both], axis=-1))
        return dense(params["second"], jax.nn.relu(dense(params["first"], x)))[..., 0]

    made = _Parts("instance_temperature", init, raw, difficulty, start, span)
    return _objective(made, loss, _paths(student, teacher, label_path), weight=weight, **hyperparameters)


class _Parts(NamedTuple):
    """Parameters of an objective, and its temperature ``start + span · sigmoid(raw)``."""

    name: str
    init: Callable[[Array, Context], Any]
    raw: Callable[[Any, Context], Array]
    difficulty: float | Schedule
    start: float
    span: float


def _paths(student: str, teacher: str, label: str | None) -> tuple[str, ...]:
    return (student, teacher) if label is None else (student, teacher, label)


def _objective(made: _Parts, loss: Callable[..., Array], paths: tuple[str, ...], **options: Any) -> Objective:
    """Builds a term whose temperature is learned, against the student."""
    positive(made.name, start=made.start, span=made.span)
    if not callable(made.difficulty):
        finite(made.name, difficulty=made.difficulty)

    def init(key: Array, context: Context) -> ObjectiveVars:
        params = made.init(key, context)
        # An abstract evaluation raises the errors of the first step; no axis is mapped at initialization.
        jax.eval_shape(lambda p, c: apply(p, {}, c, None).value, params, context._replace(axis_name=None))
        return ObjectiveVars(params)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        raw = losses.reverse_gradient(made.raw(params, context), at_step(made.difficulty, context.step))
        temperature = made.start + made.span * jax.nn.sigmoid(raw)
        out = term(loss, *paths, temperature=temperature, **options).apply({}, state, context, key)
        fixed, count = jax.lax.stop_gradient(temperature), out.metrics[""].count
        if fixed.ndim:
            reported = masked_mean(fixed, mask_of_shape(context, fixed.shape))[1]
        else:
            reported = Mean(fixed * count, count)
        return out._replace(metrics={**out.metrics, "temperature": reported})

    return Objective(init, apply)
