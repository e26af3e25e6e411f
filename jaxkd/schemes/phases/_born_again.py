"""Generations of one architecture, each taught by the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics as metrics_lib
from jaxkd import teachers, wrappers
from jaxkd._core import axes
from jaxkd._core.model_calls import model_batch
from jaxkd.distillers import distill
from jaxkd.schemes.phases._sequential import Phase, inherit, sequential
from jaxkd.types import Array, Batch, Context, Distiller, Metrics, Model, Objective, Teacher, TrainState


def born_again(
    model: Model,
    objective: Objective,
    *,
    first: Objective,
    generations: int,
    steps: int,
    optimizer: optax.GradientTransformation,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Born-again networks: each generation is taught by the one before.

    Also known as: BAN (born-again networks).

    Furlanello et al., "Born-Again Neural Networks", ICML 2018, section 3. Generation 0 learns from the labels alone;
    generation k ≥ 1 is initialized anew and learns from generation k − 1. The ensemble (BANE) averages the predictions
    of all generations k ≥ 1, here their logits. With one generation this is the self-teacher of Yuan et al.,
    "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, section 4 (Tf-KD_self).

    Args:
      model: model of every generation.
      objective: objective of the generations k ≥ 1, whose teacher is the generation before.
      first: objective of generation 0; it reads no teacher.
      generations: number of generations after generation 0.
      steps: number of steps of each generation but the last, which lasts until training ends.
      optimizer: any optax transformation, for each generation; its schedule begins with it.
      objective_optimizer: optax transformation of the objectives' parameters; the same by default.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the terms of the current generation.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, "2")`` are the variables of generation 2. ``evaluate`` reports
      the current generation, and under ``ensemble/...`` the ensemble of all generations k ≥ 1 that have begun, the last
      of which may still be in training. Before generation 1, these metrics have a count of 0.

    Raises:
      ValueError: the number of generations or of steps is not positive.

    >>> import jaxkd
    >>> from jaxkd import losses
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = born_again(linear, kl, first=ce, generations=2, steps=10, optimizer=optax.sgd(0.1))
    >>> state = kd.init(jax.random.key(0), {"x": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 0])})
    >>> sorted(state.student.params)
    ['0', '1', '2']
    """
    if generations < 1:
        raise ValueError(f"born_again, generations: expected at least 1 after generation 0, got {generations}.")
    if steps < 1:
        raise ValueError(f"born_again, steps: expected at least 1, got {steps}.")

    def generation(teacher: Teacher, objective: Objective) -> Distiller:
        return distill(
            model,
            teacher,
            objective,
            optimizer=optimizer,
            objective_optimizer=objective_optimizer,
            metrics=metrics,
            train_metrics=train_metrics,
        )

    following = generation(teachers.placeholder(model), objective)
    phases = {"0": Phase(generation(teachers.none(), first), steps)}
    for k in range(1, generations + 1):
        phases[str(k)] = Phase(following, steps if k < generations else None, inherit(teacher=str(k - 1)))
    inner = sequential(**phases)

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        metrics = inner.evaluate(state, batch)
        count = jnp.clip((state.step - 1) // steps, 0, generations)  # generations k ≥ 1 that have begun
        logits = _ensemble(state, batch, count)
        context = Context({"logits": logits}, {}, batch, state.step, axes.mapped_axis())
        ensemble = metrics_lib.psum(metrics_lib.classification(context), context.axis_name)
        counted = {name: jax.tree.map(lambda x: jnp.where(count > 0, x, 0), mean) for name, mean in ensemble.items()}
        return {**metrics, **{f"ensemble/{name}": mean for name, mean in counted.items()}}

    def _ensemble(state: TrainState, batch: Batch, count: Array) -> Array:
        """Returns the mean logits of generations 1 to `count`; later ones are skipped."""
        total: Array | None = None
        for k in range(1, generations + 1):
            variables = wrappers.get_member(state.student, str(k))

            def logits_of(variables: object = variables) -> Array:
                return model.apply(variables, model_batch(batch, state.step), key=None, train=False)[0]["logits"]

            shape = jax.eval_shape(logits_of)
            one = jax.lax.cond(k <= count, logits_of, lambda shape=shape: jnp.zeros(shape.shape, shape.dtype))
            total = one if total is None else total + one
        assert total is not None
        return total / jnp.maximum(count, 1).astype(total.dtype)

    return Distiller(inner.init, inner.step, evaluate)
