"""Distillation as three pure functions: `distill`, and the parts of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches
from jaxkd._core.arrays.shardings import automatic
from jaxkd._core.axes import average_over_devices, mark_varying
from jaxkd._core.train_state import shape_of, strongly_typed
from jaxkd.metrics import join
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Distiller,
    Mean,
    Metrics,
    Model,
    Objective,
    ObjectiveOut,
    ObjectiveVars,
    Outputs,
    PyTree,
    Teacher,
    TrainState,
    Variables,
)


def distill(
    student: Model,
    teacher: Teacher,
    objective: Objective,
    *,
    optimizer: optax.GradientTransformation,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Composes a student, a teacher, an objective and an optimizer into a `Distiller`.

    This is offline distillation, and the step that schemes build on. One step evaluates the teacher once, outside the
    differentiated function; computes one gradient of the objective with respect to the student's parameters and the
    objective's own; and updates each under its optimizer label. Called under a mapped axis named `jaxkd.DATA_AXIS`,
    each device gets its share of the batch, and losses, gradients and metrics are those of the global batch.

    Args:
      student: model to train, from `jaxkd.adapters`.
      teacher: teacher from `jaxkd.teachers`.
      objective: objective from `jaxkd.combine`, `jaxkd.term` or `jaxkd.objectives`.
      optimizer: any optax transformation, for the student's parameters.
      objective_optimizer: optax transformation for the objective's parameters (regressors, discriminators); by default
        ``optimizer``, with a separate state.
      metrics: function of the `Context` that returns the metrics of `evaluate` beside the objective's terms.
      train_metrics: function of the `Context` that returns further metrics of `step`; by default there are none.

    Returns:
      A `Distiller`. ``init(key, batch)`` needs one training batch, or its shapes. ``step`` and ``evaluate`` are pure:
      they can be compiled and mapped with jit, pmap, shard_map, scan or vmap, or placed by `jaxkd.parallel`.

    Raises:
      ValueError: from ``init``: the objective reads an entry that student, teacher and batch do not provide.

    >>> import jaxkd
    >>> from jaxkd import losses
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(linear, Variables(jnp.ones((2, 3)).at[0, 0].set(5.0)))
    >>> objective = jaxkd.combine(kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits"))
    >>> kd = distill(linear, teacher, objective, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2))}
    >>> state = kd.init(jax.random.key(0), batch)
    >>> state, first = jax.jit(kd.step, donate_argnums=0)(state, batch)
    >>> state, second = jax.jit(kd.step, donate_argnums=0)(state, batch)
    >>> bool(second["loss"].sum < first["loss"].sum)
    True
    """
    optimizers = {STUDENT: optimizer, OBJECTIVE: objective_optimizer or optimizer}
    # Jitted here and not in `init`, so that the `init` of another seed compiles nothing.
    init_student = jax.jit(lambda key, batch: strongly_typed(student.init(key, batch)))
    init_optimizers = jax.jit(
        lambda params: strongly_typed({label: optimizers[label].init(params[label]) for label in params})
    )

    def init(key: Array, batch: Batch) -> TrainState:
        shapes = jax.tree.map(shape_of, dict(batch))
        run_key, student_key, teacher_key, objective_key = jax.random.split(automatic(key), 4)

        def forward(variables: Variables, teacher_state: PyTree, batch: Batch, key: Array) -> tuple[Any, Any]:
            taught = teacher.apply(teacher_state, _given(batch, jnp.int32(0)), key=key)
            return student.apply(variables, _given(batch, jnp.int32(0), taught), key=key, train=True)[0], taught

        # `init` depends on shapes only; zeros serve libraries that need values.
        variables = init_student(student_key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        teacher_state = automatic(teacher.init(teacher_key, shapes, variables))
        seen, taught = jax.eval_shape(forward, variables, teacher_state, shapes, run_key)
        context = Context(seen, taught, shapes, jax.ShapeDtypeStruct((), jnp.int32))
        learned = ObjectiveVars(*strongly_typed(tuple(objective.init(objective_key, context))))
        opt_state = init_optimizers({STUDENT: variables.params, OBJECTIVE: learned.params})
        return TrainState(variables, teacher_state, learned, opt_state, jnp.zeros((), jnp.int32), run_key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        axis_name = axes.mapped_axis()
        student_key, teacher_key, objective_key = step_keys(state, axis_name)
        taught = teacher_outputs(teacher, state, batch, teacher_key)
        trained = mark_varying({STUDENT: state.student.params, OBJECTIVE: state.objective.params}, axis_name)
        keys = (student_key, objective_key)
        forward = forward_fn(student, objective, state, batch, taught, keys=keys, axis_name=axis_name)

        def loss(trained: PyTree) -> tuple[Array, Any]:
            out, context, new_state = forward(trained)
            extra = train_metrics(context) if train_metrics else {}
            reported = join({"loss": _total(out.value, context)}, _named(out.metrics), extra)
            return out.value, (new_state, out.state, reported)

        (_, (student_state, objective_state, reported)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        if axis_name is not None:
            grads, student_state = average_over_devices((grads, student_state), axis_name)
            objective_state = average_over_devices(objective_state, axis_name, unchanged=state.objective.state)
            reported = metrics_lib.psum(reported, axis_name)
        # Student and objective have separate optimizers, whose states carry the labels of their parameters.
        old = {STUDENT: state.student.params, OBJECTIVE: state.objective.params}
        params, opt_state = {}, {}
        for label, transformation in optimizers.items():
            updates, opt_state[label] = transformation.update(grads[label], state.opt_state[label], old[label])
            params[label] = optax.apply_updates(old[label], updates)
        variables = Variables(params[STUDENT], student_state)
        return TrainState(
            variables,
            teacher.update(state.teacher, variables, state.step + 1),
            ObjectiveVars(params[OBJECTIVE], objective_state),
            opt_state,
            state.step + 1,
            state.key,
        ), reported

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        axis_name = axes.mapped_axis()
        taught = teacher.apply(state.teacher, _given(batch, state.step), key=None)
        outputs, _ = student.apply(state.student, _given(batch, state.step, taught), key=None, train=False)
        context = Context(outputs, taught, batch, state.step, axis_name)
        out = objective.apply(state.objective.params, state.objective.state, context, None)
        reported = join({"loss": _total(out.value, context)}, _named(out.metrics), metrics(context))
        return reported if axis_name is None else metrics_lib.psum(reported, axis_name)

    return Distiller(init, step, evaluate)


def _given(batch: Batch, step: Any, taught: Outputs | None = None) -> Batch:
    """Adds the step and, for a student, the teacher's outputs to a batch.

    Most models read neither of the two. A student whose additional outputs depend on the teacher does, such as an input
    gradient for the teacher's predicted class, or a feature into which the teacher's is mixed.
    """
    return {**batch, "step": step} if taught is None else {**batch, "step": step, "teacher": taught}


def teacher_outputs(teacher: Teacher, state: TrainState, batch: Batch, key: Array | None) -> Outputs:
    """Returns the teacher's outputs in a step, with gradients stopped."""
    taught: Outputs = jax.lax.stop_gradient(teacher.apply(state.teacher, _given(batch, state.step), key=key))
    return taught


def forward_fn(
    student: Model,
    objective: Objective,
    state: TrainState,
    batch: Batch,
    taught: Outputs,
    *,
    keys: tuple[Array, Array],
    axis_name: str | None,
) -> Callable[[PyTree], tuple[ObjectiveOut, Context, PyTree]]:
    """Returns the function that a step differentiates.

    It maps ``{label: params}`` to ``(out, context, new student state)``.
    """

    def forward(trained: PyTree) -> tuple[ObjectiveOut, Context, PyTree]:
        variables = Variables(trained[STUDENT], state.student.state)
        outputs, new_state = student.apply(variables, _given(batch, state.step, taught), key=keys[0], train=True)
        context = Context(outputs, taught, batch, state.step, axis_name)
        return objective.apply(trained[OBJECTIVE], state.objective.state, context, keys[1]), context, new_state

    return forward


def step_keys(state: TrainState, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Returns the PRNG keys of a step for student, teacher and objective.

    They are functions of the run's key, the step and, for student and teacher, the device. The objective's key is
    equal on all devices, because its draws for an example must not depend on the number of devices.
    """
    shared = key = jax.random.fold_in(state.key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    student_key, teacher_key, _ = jax.random.split(key, 3)
    return student_key, teacher_key, jax.random.split(shared, 3)[2]


def _total(value: Array, context: Context) -> Mean:
    """Returns the weighted total as a metric that counts examples.

    On a mapped axis, ``value`` is this device's share, and the mean of the shares is the total. The sum is therefore
    ``value`` times the mean count over the devices, which differs from this device's count where devices hold
    different numbers of unmasked examples.
    """
    mask, axis_name = batches.example_mask(context.batch), context.axis_name
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    if mask is None:
        count = jnp.asarray(next(iter(context.student.values())).shape[0], value.dtype)
    else:
        count = jnp.sum(mask, dtype=value.dtype)
    return Mean(value * (count if axis_name is None else jax.lax.pmean(count, axis_name)), count)


def _named(metrics: Metrics) -> Metrics:
    """Names the metric of a single term, which has no name without `combine`."""
    return {name or OBJECTIVE: mean for name, mean in metrics.items()}
