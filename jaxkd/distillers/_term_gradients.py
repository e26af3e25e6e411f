"""Gradients of an objective's terms: norms and pairwise cosines as metrics."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from jaxkd._core import axes, checks
from jaxkd._core.axes import average_over_devices, mark_varying
from jaxkd.distillers._distill import forward_fn, step_keys, teacher_outputs
from jaxkd.metrics import join
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Distiller,
    Mean,
    Metrics,
    Model,
    Objective,
    PyTree,
    Teacher,
    TrainState,
)


def term_gradients(
    kd: Distiller, student: Model, teacher: Teacher, objective: Objective, *, every: int = 1
) -> Distiller:
    """Returns a distiller that also reports the terms' gradients ``gᵢ = ∇ wᵢ Lᵢ``.

    ``grad_norm/a`` is ``‖g_a‖`` of the weighted term a, by the student's parameters; ``grad_cosine/a,b`` is
    ``⟨g_a, g_b⟩ / (‖g_a‖ ‖g_b‖)``, with a pair in alphabetical order. Gradients are those of the global batch, before
    the optimizer. Terms are those of `jaxkd.combine`; a term that is itself a `combine` is reported by its own terms,
    ``grad_norm/a/b``.

    A step that reports costs additional forward passes (which the compiler may merge with those of the step), one
    backward pass per term, and memory for all gradients at once; other steps cost nothing more. Training is unchanged.

    Args:
      kd: distiller of this student, teacher and objective, which may have been wrapped already, for instance by
        `with_ema`. Apply `preprocess`, which transforms batches, after this.
      student: student of ``kd``.
      teacher: teacher of ``kd``.
      objective: objective of ``kd``.
      every: steps between two reports, starting with step 0. In other steps, the metrics have a count of 0.

    Returns:
      A `Distiller`. The cosine with a gradient of 0 has a count of 0.

    Raises:
      ValueError: ``every`` is not positive.

    >>> import jaxkd, optax
    >>> from jaxkd import losses
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.ones((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(model, jaxkd.Variables(jnp.eye(2, 3)))
    >>> objective = jaxkd.combine(
    ...     ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label"),
    ...     kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=2.0),
    ... )
    >>> kd = jaxkd.distill(model, teacher, objective, optimizer=optax.sgd(0.1))
    >>> kd = term_gradients(kd, model, teacher, objective, every=10)
    >>> batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    >>> _, metrics = kd.step(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in sorted(metrics) if name.startswith("grad")]
    ['grad_cosine/ce,kd', 'grad_norm/ce', 'grad_norm/kd']
    >>> float(metrics["grad_cosine/ce,kd"].sum) > 0.99
    True
    """
    checks.contract("term_gradients, kd", kd, Distiller)
    checks.contract("term_gradients, student", student, Model)
    checks.contract("term_gradients, teacher", teacher, Teacher)
    checks.contract("term_gradients, objective", objective, Objective)
    if every < 1:
        raise ValueError(f"term_gradients, every: expected a positive number of steps, got {every}.")

    def measured(state: TrainState, batch: Batch) -> Metrics:
        axis_name = axes.mapped_axis()
        student_key, teacher_key, objective_key = step_keys(state, axis_name)
        taught = teacher_outputs(teacher, state, batch, teacher_key)
        keys = (student_key, objective_key)
        forward = forward_fn(student, objective, state, batch, taught, keys=keys, axis_name=axis_name)

        def terms(params: PyTree) -> dict[str, Array]:
            out, _, _ = forward({STUDENT: params, OBJECTIVE: state.objective.params})
            return dict(out.terms) or {OBJECTIVE: out.value}

        # One forward pass for all terms; each pull-back with a one-hot cotangent gives one term's gradient.
        values, pull_back = jax.vjp(terms, mark_varying(state.student.params, axis_name))
        gradients = {}
        for name in values:
            one_hot = {other: jnp.full_like(value, other == name) for other, value in values.items()}
            (gradients[name],) = pull_back(one_hot)
        return _norms_and_cosines(gradients if axis_name is None else average_over_devices(gradients, axis_name))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if every == 1:
            gradients = measured(state, batch)
        else:
            shapes = jax.eval_shape(measured, state, batch)
            empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            gradients = jax.lax.cond(state.step % every == 0, lambda: measured(state, batch), lambda: empty)
        new, metrics = kd.step(state, batch)
        return new, join(metrics, gradients)

    return Distiller(kd.init, step, kd.evaluate)


def _norms_and_cosines(gradients: dict[str, PyTree]) -> Metrics:
    """Returns the norms of all gradients and the cosines of all pairs."""
    leaves = {
        name: [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in jax.tree.leaves(gradient)]
        for name, gradient in gradients.items()
    }

    def product(a: str, b: str) -> Array:
        products = [jnp.sum(x * y) for x, y in zip(leaves[a], leaves[b], strict=True)]
        return sum(products[1:], products[0]) if products else jnp.zeros(())

    norms = {name: jnp.sqrt(product(name, name)) for name in leaves}
    one = jnp.ones((), jnp.float32)
    reported = {f"grad_norm/{name}": Mean(norm, one) for name, norm in norms.items()}
    for a, b in itertools.combinations(sorted(leaves), 2):
        scale = norms[a] * norms[b]
        cosine = jnp.where(scale > 0, product(a, b) / jnp.where(scale > 0, scale, 1), 0)
        reported[f"grad_cosine/{a},{b}"] = Mean(cosine, (scale > 0).astype(jnp.float32))
    return reported
