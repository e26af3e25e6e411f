"""Knowledge flow: a falling share of the teachers' layers in the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core import batches
from jaxkd._core.model_calls import model_batch
from jaxkd.distillers import distill
from jaxkd.objectives import term
from jaxkd.types import (
    TAUGHT,
    Array,
    Batch,
    Context,
    Distiller,
    Metrics,
    Model,
    Objective,
    Schedule,
    Teacher,
    Variables,
)


def dependence_loss(*, weight: float | Array | Schedule) -> Objective:
    """``−Σ log s₀`` over the mixed layers, 0 where the student is independent.

    Liu, Peng & Schwing, "Knowledge Flow", ICLR 2019, section 3; s₀ is the student's share of a mix. The weight should
    rise in the course of training, as ``optax.linear_schedule(0.0, 1.0, steps)``. Once the schedule of the flow is 0,
    so is this loss.

    Args:
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters, for `jaxkd.combine`.

    >>> context = Context({"dependence_loss": jnp.ones(2)}, {}, {}, 0)
    >>> dependence_loss(weight=0.5).apply({}, {}, context, None).value
    Array(0.5, dtype=float32)
    """

    def dependence(values: Array) -> Array:
        return values

    return term(dependence, "student/dependence_loss", weight=weight)


def report_dependence(context: Context) -> Metrics:
    """Returns the teachers' share, ``dependence``, and that of each mix.

    >>> report_dependence(Context({"dependence": jnp.full(2, 0.25), "logits": jnp.ones((2, 3))}, {}, {}, 0))
    {'dependence': Mean(sum=Array(0.5, dtype=float32), count=Array(2., dtype=float32))}
    """
    mask = batches.example_mask(context.batch)
    return {
        name: metrics_lib.from_values(value, mask)
        for name, value in context.student.items()
        if name == "dependence" or name.startswith("dependence/")
    }


def _both(context: Context) -> Metrics:
    return {**metrics_lib.classification(context), **report_dependence(context)}


def knowledge_flow(
    student: Model,
    teacher: Teacher,
    objective: Objective,
    *,
    optimizer: optax.GradientTransformation,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = _both,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = report_dependence,
) -> Distiller:
    """Distillation of a student into which the teachers' layers are mixed.

    Liu, Peng & Schwing, "Knowledge Flow: Improve Upon Your Teachers", ICLR 2019. The student learns the task with the
    teachers' features mixed into its layers, and becomes independent of them through the dependence loss and by the
    flow's schedule, which ends at 0. Mixing weights and maps train with the student, under its optimizer. The objective
    may contain any other terms. The paper's loss that keeps the student near earlier parameters is omitted.

    ``evaluate`` runs the student with the share of the current step: with the teachers at first, without them in the
    end. Then ``jaxkd.wrappers.extract_student(state.student)`` are the variables of ``jaxkd.adapters.linen(module)``.

    Args:
      student: model from `jaxkd.wrappers.with_flow`.
      teacher: teacher from `jaxkd.teachers`, whose outputs the mixes name; an ``ensemble`` for several teachers.
      objective: objective from `jaxkd.combine`, with a `dependence_loss`.
      optimizer: any optax transformation, for the parameters of the student and of the flow.
      objective_optimizer: optax transformation of what the objective learns; the same by default.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the terms. The default is that of
        `jaxkd.distill`, and `report_dependence`.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms; `report_dependence` by
        default.

    Raises:
      ValueError: from ``init``: student, teacher and objective do not fit.

    >>> import flax.linen as nn, jaxkd
    >>> from jaxkd import losses
    >>> from jaxkd.wrappers import FlowEdge, with_flow, extract_student
    >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
    >>> wide = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    >>> large = jaxkd.adapters.linen(wide, taps={"hidden": "layers_0"}, inputs="x")
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 0])}
    >>> teacher = jaxkd.teachers.frozen(large, large.init(jax.random.key(1), batch))
    >>> edges = {"hidden": FlowEdge("layers_0", ["hidden"])}
    >>> student = with_flow(module, edges, optax.linear_schedule(1.0, 0.0, 2), inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> objective = jaxkd.combine(ce=ce, alone=dependence_loss(weight=0.1))
    >>> kd = knowledge_flow(student, teacher, objective, optimizer=optax.sgd(0.1), train_metrics=None)
    >>> state = kd.init(jax.random.key(0), batch)
    >>> step = jax.jit(kd.step)
    >>> for _ in range(2):
    ...     state, metrics = step(state, batch)
    >>> kd.evaluate(state, batch)["dependence/hidden"].sum
    Array(0., dtype=float32)
    >>> plain = jaxkd.adapters.linen(module, inputs="x")
    >>> plain.apply(extract_student(state.student), batch, key=None, train=False)[0]["logits"].shape
    (4, 3)
    """

    def init(key: Array, batch: Batch) -> Variables:
        def teacher_outputs(key: Array, batch: Batch) -> Any:
            return teacher.apply(teacher.init(key, batch, None), model_batch(batch, jnp.int32(0)), key=key)

        # The maps of the flow need the shapes of the teacher's outputs, before any student exists.
        try:
            shapes = jax.eval_shape(teacher_outputs, key, dict(batch))
        except Exception as error:
            error.add_note(
                "knowledge_flow: the teacher needs outputs that do not depend on the student, as jaxkd.teachers.frozen "
                "and an ensemble of frozen teachers have."
            )
            raise
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))
        return student.init(key, {**batch, TAUGHT: zeros})

    return distill(
        Model(init, student.apply),
        teacher,
        objective,
        optimizer=optimizer,
        objective_optimizer=objective_optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
