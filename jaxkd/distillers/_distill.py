"""Distillation as three pure functions: `distill`, and the parts of its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches, checks
from jaxkd._core.arrays.shardings import automatic, explaining_axes
from jaxkd._core.axes import average_over_devices, mark_varying
from jaxkd._core.model_calls import model_batch
from jaxkd._core.train_state import optimizer_of_objective, params_of, shape_of, strongly_typed
from jaxkd.metrics import join, report, total_of
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Derived,
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
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
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
        ``optimizer``, with a separate state. Labels and masks made for the student's parameters do not fit these.
      metrics: function of the `Context`, or several, that return the metrics of ``evaluate`` beside the objective's
        terms: those of `jaxkd.metrics` for the task, or your own.
      train_metrics: functions of the `Context` that return further metrics of ``step``; by default there are none.

    Returns:
      A `Distiller`. ``init(key, batch)`` needs one training batch, or its shapes. ``step`` and ``evaluate`` are pure:
      they can be compiled and mapped with jit, pmap, shard_map, scan or vmap, or placed by `jaxkd.parallel`.

    Raises:
      TypeError: an argument is something else, such as a module for a model, a model for a teacher, a dict or a bare
        loss for an objective, ``optax.adam`` uncalled; the message tells how it is made.
      ValueError: from ``init``: the objective reads an entry that student, teacher and batch do not provide; the batch
        has an entry of `jaxkd.types.RESERVED`; the objective has parameters that ``optimizer`` would not train, and no
        ``objective_optimizer``.

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
    checks.contract("distill, student", student, Model)
    checks.contract("distill, teacher", teacher, Teacher)
    checks.contract("distill, objective", objective, Objective)
    checks.optimizer("distill, optimizer", optimizer)
    if objective_optimizer is not None:
        checks.optimizer("distill, objective_optimizer", objective_optimizer)
    optimizers = {STUDENT: optimizer, OBJECTIVE: optimizer_of_objective(optimizer, objective_optimizer)}
    # Jitted here and not in `init`, so that the `init` of another seed compiles nothing.
    init_student = jax.jit(lambda key, batch: strongly_typed(student.init(key, batch)))
    init_optimizers = jax.jit(
        lambda params: strongly_typed({label: optimizers[label].init(params[label]) for label in params})
    )

    def init(key: Array, batch: Batch) -> TrainState:
        checks.key("init, key", key)
        checks.batch("init, batch", batch)
        shapes = jax.tree.map(shape_of, dict(batch))
        run_key, student_key, teacher_key, objective_key = jax.random.split(automatic(key), 4)

        def forward(variables: Variables, teacher_state: PyTree, batch: Batch, key: Array) -> tuple[Any, Any]:
            try:
                taught = teacher.apply(teacher_state, model_batch(batch, jnp.int32(0)), key=key)
            except Exception as error:  # such as Flax's, for weights of another model
                error.add_note("in the teacher, with its own weights")
                raise
            taught, _ = batches.split_unseen(taught, batch)
            return student.apply(variables, model_batch(batch, jnp.int32(0), taught), key=key, train=True)[0], taught

        # `init` depends on shapes only; zeros serve libraries that need values.
        variables = init_student(student_key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        teacher_state = automatic(teacher.init(teacher_key, shapes, variables))
        seen, taught = jax.eval_shape(forward, variables, teacher_state, shapes, run_key)
        entries = {**shapes, **_known_entries(batch)}
        params = jax.tree.map(shape_of, (variables.params, params_of(teacher_state)))
        context = Context(seen, taught, entries, jax.ShapeDtypeStruct((), jnp.int32), None, *params)
        learned = ObjectiveVars(*strongly_typed(tuple(objective.init(objective_key, context))))
        opt_state = init_optimizers({STUDENT: variables.params, OBJECTIVE: learned.params})
        return TrainState(variables, teacher_state, learned, opt_state, jnp.zeros((), jnp.int32), run_key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.state("step, state", state)
        checks.batch("step, batch", batch)
        axis_name = axes.mapped_axis()
        student_key, teacher_key, objective_key = step_keys(state, axis_name)
        taught, unseen = _checked_outputs(teacher, state, batch, teacher_key)
        trained = mark_varying({STUDENT: state.student.params, OBJECTIVE: state.objective.params}, axis_name)
        keys = (student_key, objective_key)
        forward = forward_fn(student, objective, state, batch, taught, keys=keys, axis_name=axis_name)

        def loss(trained: PyTree) -> tuple[Array, Any]:
            out, context, new_state = forward(trained)
            extra = report(train_metrics or (), context)
            reported = join({"loss": _total(out, context)}, _named(out.metrics), extra)
            return out.value, (new_state, out.state, reported)

        (_, (student_state, objective_state, reported)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        reported = join(reported, unseen)
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
        checks.state("evaluate, state", state)
        checks.batch("evaluate, batch", batch)
        axis_name = axes.mapped_axis()
        taught, unseen = _checked_outputs(teacher, state, batch, None)
        outputs, _ = student.apply(state.student, model_batch(batch, state.step, taught), key=None, train=False)
        params = state.student.params, params_of(state.teacher)
        context = Context(outputs, taught, batch, state.step, axis_name, *params)
        try:
            out = objective.apply(state.objective.params, state.objective.state, context, None)
        except ValueError as error:  # most often an entry that the training batches alone have
            error.add_note("in the evaluation, whose batches need every entry that the objective reads")
            raise
        reported = join({"loss": _total(out, context)}, _named(out.metrics), report(metrics, context), unseen)
        return reported if axis_name is None else metrics_lib.psum(reported, axis_name)

    return Distiller(init, explaining_axes(step), explaining_axes(evaluate))


def teacher_outputs(teacher: Teacher, state: TrainState, batch: Batch, key: Array | None) -> Outputs:
    """Returns the teacher's outputs in a step, with gradients stopped."""
    return _checked_outputs(teacher, state, batch, key)[0]


def _checked_outputs(teacher: Teacher, state: TrainState, batch: Batch, key: Array | None) -> tuple[Outputs, Metrics]:
    """Also returns the metric of the examples that a cached teacher saw otherwise."""
    outputs = teacher.apply(state.teacher, model_batch(batch, state.step), key=key)
    taught: tuple[Outputs, Metrics] = jax.lax.stop_gradient(batches.split_unseen(outputs, batch))
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
        outputs, new_state = student.apply(variables, model_batch(batch, state.step, taught), key=keys[0], train=True)
        params = trained[STUDENT], jax.lax.stop_gradient(params_of(state.teacher))
        context = Context(outputs, taught, batch, state.step, axis_name, *params)
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


def _known_entries(batch: Batch) -> dict[str, np.ndarray]:
    """Returns integer vectors and masks whose values are known, to check indices."""
    return {
        name: np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in batch.items()
        if isinstance(x, (np.ndarray, jax.Array))
        and not isinstance(x, jax.core.Tracer)
        and ((jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 1) or x.dtype == bool)
        and getattr(x, "is_fully_addressable", True)
    }


def _total(out: ObjectiveOut, context: Context) -> Mean | Derived:
    """Returns the sum of the weighted terms as a metric.

    Each has the count of its own metric. Merged over any batches, the total is therefore the sum of what the terms
    report, times their weights. On a mapped axis, a term is this device's share, and the mean of the shares is the
    global one. Its sum is therefore the share times the mean count over the devices, which differs from this device's
    count where devices hold different numbers of unmasked values.
    """
    values, counts = [], []
    for name, value in (out.terms or {"": out.value}).items():
        values.append(value.astype(jnp.promote_types(value.dtype, jnp.float32)))
        # An objective without a metric of its own value is a mean over the examples.
        count = out.metrics[name].count if name in out.metrics else batches.count_examples(context.batch)
        counts.append(jnp.asarray(count, values[-1].dtype))
    shared = counts
    if context.axis_name is not None:
        shared = list(jax.lax.pmean(jnp.stack(counts), context.axis_name))
    sums = [value * count for value, count in zip(values, shared, strict=True)]
    return total_of(*map(Mean, sums, counts))


def _named(metrics: Metrics) -> Metrics:
    """Names the metric of a single term, which has no name without `combine`."""
    return {name or OBJECTIVE: mean for name, mean in metrics.items()}
