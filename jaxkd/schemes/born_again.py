"""Born-again networks: each generation of an architecture is taught by the one before, and all are an ensemble."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxkd import adapters, teachers
from jaxkd.schemes.relay import Leg, handed, relay
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import distill
from jaxkd.types import Array, Batch, Context, Distiller, Metrics, Model, Objective, Teacher, TrainState

__all__ = ["born_again"]


def born_again(
    model: Model,
    objective: Objective,
    *,
    first: Objective,
    generations: int,
    steps: int,
    optimizer: optax.GradientTransformation,
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Generations of one architecture, each taught by the one before, as one distiller.

    Furlanello et al., "Born-Again Neural Networks", ICML 2018, section 3: generation 0 learns from the labels alone;
    generation k ≥ 1, initialised anew, from generation k − 1; ``BANE`` is the ensemble of all generations k ≥ 1, whose
    predictions are averaged, here as logits. With one generation it is the self-teacher of Yuan et al., "Revisiting
    Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, section 4 (Tf-KD_self).

    Args:
      model: the architecture.
      objective: of the generations with a teacher, which is the generation before.
      first: of generation 0; it reads no teacher.
      generations: how many follow generation 0.
      steps: of each generation but the last, which lasts until training ends.
      optimizer: of each generation; its schedule begins with it.
      loss_optimizer: for what the objectives learn; the same by default.
      metrics: what ``evaluate`` reports beside the objective's terms, for the generation at hand.
      train_metrics: what ``step`` reports beside them.

    Returns:
      A `Distiller`. ``adapters.member(state.student, "2")`` are the variables of generation 2. ``evaluate`` reports the
      generation at hand, and as ``ensemble/accuracy`` and so on the ensemble of those that are born again, of which the
      last may still be in training; before there is one it has a count of 0.

    Raises:
      ValueError: there are no generations, or no steps.

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
            loss_optimizer=loss_optimizer,
            metrics=metrics,
            train_metrics=train_metrics,
        )

    following = generation(teachers.awaited(model), objective)
    legs = {"0": Leg(generation(teachers.none(), first), steps)}
    for k in range(1, generations + 1):
        legs[str(k)] = Leg(following, steps if k < generations else None, handed(teacher=str(k - 1)))
    inner = relay(**legs)

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        found = inner.evaluate(state, batch)
        there = jnp.clip((state.step - 1) // steps, 0, generations)  # how many are born again
        together = _ensemble(state, batch, there)
        context = Context({"logits": together}, {}, batch, state.step, adapters.mapped_axis())
        said = metrics_lib.psum(metrics_lib.classification(context), context.axis_name)
        counted = {name: jax.tree.map(lambda x: jnp.where(there > 0, x, 0), mean) for name, mean in said.items()}
        return {**found, **{f"ensemble/{name}": mean for name, mean in counted.items()}}

    def _ensemble(state: TrainState, batch: Batch, there: Array) -> Array:
        """The mean of the logits of generations 1 to ``there``; those not born yet are not computed."""
        total: Array | None = None
        for k in range(1, generations + 1):
            variables = adapters.member(state.student, str(k))

            def logits(variables: object = variables) -> Array:
                given = {**batch, "step": state.step}
                found: Array = model.apply(variables, given, key=None, train=False)[0]["logits"]
                return found

            shape = jax.eval_shape(logits)
            one = jax.lax.cond(k <= there, logits, lambda shape=shape: jnp.zeros(shape.shape, shape.dtype))
            total = one if total is None else total + one
        assert total is not None
        return total / jnp.maximum(there, 1).astype(total.dtype)

    return Distiller(inner.init, inner.step, evaluate)
