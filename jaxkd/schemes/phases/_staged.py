"""Staged training: one objective after another, as one distiller.

Many feature methods first initialize the student on the teacher's features and then train it on the task:

=====================  ======================================  ===============================================
method                 first                                   then
=====================  ======================================  ===============================================
FitNets                `objectives.hint`                       cross-entropy and soft targets
AB                     `objectives.boundary_connector`         cross-entropy (and soft targets)
FSP                    `losses.solution_flow`                  cross-entropy
FT                     `objectives.paraphraser`, without       cross-entropy and `objectives.factor_translator`
                       the student                             with the paraphraser of the first stage
pre-regression         `objectives.hint`, layer after layer    cross-entropy
=====================  ======================================  ===============================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core.train_state import optimizer_of_objective, strongly_typed
from jaxkd.distillers import distill
from jaxkd.schemes.phases._switch import starts_of, switch
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Distiller,
    Metrics,
    Model,
    Objective,
    ObjectiveVars,
    PyTree,
    Teacher,
    TrainState,
)


class Stage(NamedTuple):
    """One stage of `staged`.

    Attributes:
      objective: objective that the stage minimizes.
      optimizer: any optax transformation; its step count, and so its schedule, begins with the stage.
      steps: number of steps; None, for the last stage, until training ends.
      objective_optimizer: optax transformation of the objective's parameters; the same by default.
      student: False trains only the objective's parameters; the student does not change.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    steps: int | None = None
    objective_optimizer: optax.GradientTransformation | None = None
    student: bool = True


def staged(
    student: Model,
    teacher: Teacher,
    *stages: Stage,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Staged distillation: each stage trains the same student on its own objective.

    Romero et al., "FitNets", ICLR 2015, section 2.3, and similar methods. Each stage has its own optimizer, which is
    initialized with the student's parameters at that step; schedules count the steps of their stage, which is a
    function of the step, so that an interrupted run resumes in it. Parameters and state of the objectives are shared by
    name: if two stages both have a term ``hint``, the second stage trains the regressor of the first one further.
    Parameters of an earlier stage that have the name of a later stage's state are copied into it when that stage
    begins. So FT's paraphraser is trained by ``combine(ft=combine(paraphraser=paraphraser("teacher/f")))`` and used by
    ``combine(ft=factor_translator("student/f", "teacher/f"))``.

    Args:
      student: model to train.
      teacher: teacher from `jaxkd.teachers`.
      *stages: stages in their order; all but the last have a number of steps.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the objective's terms.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. Its state contains every stage's optimizer state, ``opt_state["0"]`` and so on. Metrics are those
      of the current stage and its number, ``stage``; those of other stages have a count of 0.

    Raises:
      ValueError: there are no stages, or a length is invalid; from ``init``: two stages share a name for parameters of
        different shapes.

    >>> import jaxkd
    >>> from jaxkd import losses
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(linear, jaxkd.Variables(jnp.ones((2, 3)).at[0, 0].set(5.0)))
    >>> hint = jaxkd.combine(hint=jaxkd.objectives.hint("student/logits", "teacher/logits"))
    >>> kd = jaxkd.combine(kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits"))
    >>> fitnets = staged(linear, teacher, Stage(hint, optax.adam(1e-2), steps=2), Stage(kd, optax.sgd(0.1)))
    >>> state = fitnets.init(jax.random.key(0), {"x": jnp.ones((4, 2))})
    >>> step = jax.jit(fitnets.step, donate_argnums=0)
    >>> for _ in range(3):
    ...     state, metrics = step(state, {"x": jnp.ones((4, 2))})
    >>> float(metrics["stage"].sum), float(metrics["hint"].count), float(metrics["kd"].count)
    (1.0, 0.0, 4.0)
    """
    starts = starts_of([stage.steps for stage in stages], "staged, stage")[: len(stages)]
    distillers = [
        distill(
            student,
            teacher,
            stage.objective,
            optimizer=stage.optimizer,
            objective_optimizer=stage.objective_optimizer,
            metrics=metrics,
            train_metrics=train_metrics,
        )
        for stage in stages
    ]

    def optimizers(i: int, params: Mapping[str, PyTree]) -> PyTree:
        one = stages[i]
        chosen = {STUDENT: one.optimizer, OBJECTIVE: optimizer_of_objective(one.optimizer, one.objective_optimizer)}
        return strongly_typed({label: chosen[label].init(params[label]) for label in (STUDENT, OBJECTIVE)})

    def init(key: Array, batch: Batch) -> TrainState:
        made = [kd.init(key if not i else jax.random.fold_in(key, i), batch) for i, kd in enumerate(distillers)]
        params, state = made[0].objective
        for i, other in enumerate(made[1:], 1):
            params = _merge(params, other.objective.params, f"staged, stage {i}, parameters")
            state = _merge(state, other.objective.state, f"staged, stage {i}, state")
        _copy_in(state, params)
        opt_state = {
            str(i): optimizers(i, {STUDENT: made[0].student.params, OBJECTIVE: _part(params, one.objective.params)})
            for i, one in enumerate(made)
        }
        return made[0]._replace(objective=ObjectiveVars(params, state), opt_state=opt_state)

    def enter(i: int, whole: TrainState, batch: Batch) -> TrainState:
        """Returns the state of stage `i`."""
        shape = jax.eval_shape(distillers[i].init, whole.key, batch).objective
        own = ObjectiveVars(_part(whole.objective.params, shape.params), _part(whole.objective.state, shape.state))
        opt_state = whole.opt_state[str(i)]
        if i:  # an optimizer's state may contain parameters, so it is initialized with those of the stage's first step
            params = {STUDENT: whole.student.params, OBJECTIVE: own.params}
            objective_state, opt_state = jax.lax.cond(
                whole.step == starts[i],
                lambda: (_copy_in(own.state, whole.objective.params), optimizers(i, params)),
                lambda: (own.state, whole.opt_state[str(i)]),
            )
            own = own._replace(state=objective_state)
        key = jax.random.fold_in(whole.key, i) if i else whole.key
        return TrainState(whole.student, whole.teacher, own, opt_state, whole.step - starts[i], key)

    def leave(i: int, whole: TrainState, part: TrainState) -> TrainState:
        """Returns the whole state after a step of stage `i`."""
        own = ObjectiveVars(*(_put(old, new) for old, new in zip(whole.objective, part.objective, strict=True)))
        return TrainState(
            part.student if stages[i].student else whole.student,
            part.teacher,
            own,
            {**whole.opt_state, str(i): part.opt_state},
            whole.step + 1,
            whole.key,
        )

    def step_in(i: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        part, metrics = distillers[i].step(enter(i, state, batch), batch)
        return leave(i, state, part), metrics

    def evaluate_in(i: int, state: TrainState, batch: Batch) -> tuple[None, Metrics]:
        return None, distillers[i].evaluate(enter(i, state, batch), batch)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        branches = [functools.partial(step_in, i) for i in range(len(stages))]
        return switch(state.step, state, batch, branches, starts, "stage")

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        branches = [functools.partial(evaluate_in, i) for i in range(len(stages))]
        return switch(state.step, state, batch, branches, starts, "stage")[1]

    return Distiller(init, step, evaluate)


def _merge(old: PyTree, new: PyTree, what: str) -> PyTree:
    """Returns both trees' entries by name; of those that both have, the old ones."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        both = {name: _merge(old[name], new[name], f"{what}, {name!r}") for name in old.keys() & new.keys()}
        return {**new, **old, **both}
    shapes = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree) for tree in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{what}: an earlier stage has other shapes under this name. Give the terms different names in "
            "jaxkd.combine, or make them the same."
        )
    return old


def _part(tree: PyTree, like: PyTree) -> PyTree:
    """Returns the entries of `tree` that `like` has too."""
    if isinstance(tree, Mapping) and isinstance(like, Mapping):
        return {name: _part(tree[name], like[name]) for name in like}
    return tree


def _copy_in(state: PyTree, params: PyTree, what: str = "") -> PyTree:
    """Returns `state` with the entries that `params` has replaced by them."""
    if isinstance(state, Mapping) and isinstance(params, Mapping):
        return {
            name: _copy_in(value, params[name], f"{what}/{name}" if what else name) if name in params else value
            for name, value in state.items()
        }
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (state, params)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"staged, {what!r}: one stage learns {shapes[1]} under this name, another remembers {shapes[0]}. Give the "
            "terms different names in jaxkd.combine, or make them the same."
        )
    return params


def _put(tree: PyTree, part: PyTree) -> PyTree:
    """Returns `tree` with the entries that `part` has replaced by them."""
    if isinstance(tree, Mapping) and isinstance(part, Mapping):
        return {name: _put(value, part[name]) if name in part else value for name, value in tree.items()}
    return part
