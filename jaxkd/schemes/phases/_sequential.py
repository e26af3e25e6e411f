"""Several distillations one after another: one run, one state, one compiled step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import wrappers
from jaxkd._core import checks
from jaxkd._core.tree_paths import by_path
from jaxkd.schemes.phases._switch import starts_of, switch
from jaxkd.types import Array, Batch, Distiller, Metrics, ObjectiveVars, PyTree, TrainState, Variables

Begin = Callable[[TrainState, Mapping[str, TrainState]], TrainState]
"""``(fresh, done) -> state``: from a phase's initialized state and the states of earlier phases by name, the state with
which the phase begins."""


class Phase(NamedTuple):
    """One phase of a `sequential`.

    Attributes:
      kd: any distiller.
      steps: number of steps; None, for the last phase, until training ends.
      begin: function that makes the phase's initial state from the states of earlier phases, such as `inherit`.
    """

    kd: Distiller
    steps: int | None = None
    begin: Begin | None = None


def sequential(**phases: Phase) -> Distiller:
    """Runs distillers one after another; each may begin with earlier results.

    Examples are a teacher and then its student, generations of one architecture, or an expert for a new task and then
    the network that combines both. Each phase has its own models, objective and optimizer, and counts its own steps, so
    that schedules begin with it. The phase is a function of the step, so that an interrupted run resumes in the same
    phase. ``evaluate`` uses the phase of the last step.

    Args:
      **phases: phases by name, in their order; all but the last have a number of steps.

    Returns:
      A `Distiller`. The state contains the states of all phases: ``wrappers.get_member(state.student, NAME)`` are the
      variables of one phase's student. Inactive phases take memory but no computation. Metrics are those of the current
      phase and its number, ``phase``.

    Raises:
      ValueError: there are no phases, a name contains a slash, or a length is invalid; from ``init``: ``begin`` returns
        a state that does not fit its phase.

    >>> import jaxkd, optax
    >>> from jaxkd import losses
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> first = jaxkd.distill(linear, jaxkd.teachers.none(), ce, optimizer=optax.sgd(0.1))
    >>> second = jaxkd.distill(linear, jaxkd.teachers.placeholder(linear), kl, optimizer=optax.sgd(0.1))
    >>> kd = sequential(teacher=Phase(first, steps=2), student=Phase(second, begin=inherit(teacher="teacher")))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 0])}
    >>> state = kd.init(jax.random.key(0), batch)
    >>> for _ in range(3):
    ...     state, metrics = jax.jit(kd.step, donate_argnums=0)(state, batch)
    >>> float(metrics["phase"].sum), bool((state.teacher["student"].params == state.student.params["teacher"]).all())
    (1.0, True)
    """
    if slashed := [name for name in phases if "/" in name]:
        raise ValueError(f"sequential: expected names without a slash, got {slashed}.")
    names = list(phases)
    starts = starts_of([phase.steps for phase in phases.values()], "sequential, phase")[: len(phases)]

    def init(key: Array, batch: Batch) -> TrainState:
        checks.key("init, key", key)
        made = {name: phase.kd.init(_own_key(key, i), batch) for i, (name, phase) in enumerate(phases.items())}
        for i, name in enumerate(names):
            _check_begin(name, phases[name], made[name], {earlier: made[earlier] for earlier in names[:i]})
        return TrainState(
            Variables({n: s.student.params for n, s in made.items()}, {n: s.student.state for n, s in made.items()}),
            {name: state.teacher for name, state in made.items()},
            ObjectiveVars(
                {n: s.objective.params for n, s in made.items()}, {n: s.objective.state for n, s in made.items()}
            ),
            {name: state.opt_state for name, state in made.items()},
            jnp.zeros((), jnp.int32),
            made[names[0]].key,
        )

    def part(i: int, whole: TrainState, key: Array) -> TrainState:
        """Returns the state of phase `i`, with the step counted from its start."""
        name = names[i]
        return TrainState(
            wrappers.get_member(whole.student, name),
            whole.teacher[name],
            ObjectiveVars(whole.objective.params[name], whole.objective.state[name]),
            whole.opt_state[name],
            whole.step - starts[i],
            key,
        )

    def enter(i: int, whole: TrainState) -> TrainState:
        fresh, begin = part(i, whole, _own_key(whole.key, i)), phases[names[i]].begin
        if begin is None:
            return fresh
        done = {name: part(j, whole, _own_key(whole.key, j)) for j, name in enumerate(names[:i])}
        # Keys do not change, and stay outside: `cond` would copy them.
        begun: TrainState = jax.lax.cond(
            whole.step == starts[i],
            lambda: begin(fresh, done)._replace(key=None, step=fresh.step),
            lambda: fresh._replace(key=None),
        )
        return begun._replace(key=fresh.key)

    def leave(i: int, whole: TrainState, new: TrainState) -> TrainState:
        name = names[i]

        def put(tree: Mapping[str, PyTree], own: PyTree) -> dict[str, PyTree]:
            return {**tree, name: own}

        return TrainState(
            wrappers.set_member(whole.student, name, new.student),
            put(whole.teacher, new.teacher),
            ObjectiveVars(
                put(whole.objective.params, new.objective.params), put(whole.objective.state, new.objective.state)
            ),
            put(whole.opt_state, new.opt_state),
            whole.step + 1,
            whole.key,
        )

    def step_in(i: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = phases[names[i]].kd.step(enter(i, state), batch)
        return leave(i, state, new), metrics

    def evaluate_in(i: int, state: TrainState, batch: Batch) -> tuple[None, Metrics]:
        return None, phases[names[i]].kd.evaluate(part(i, state, state.key), batch)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        branches = [functools.partial(step_in, i) for i in range(len(phases))]
        return switch(state.step, state, batch, branches, starts, "phase")

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        # Between two phases, the earlier one is evaluated: the next one has not begun.
        last, branches = jnp.maximum(state.step - 1, 0), [functools.partial(evaluate_in, i) for i in range(len(phases))]
        return switch(last, state, batch, branches, starts, "phase")[1]

    return Distiller(init, step, evaluate)


def inherit(*, student: str | None = None, teacher: str | None = None, within: str | None = None) -> Begin:
    """Builds the ``begin`` of a `Phase` that takes over an earlier student.

    Args:
      student: name of the phase whose student this phase trains further; None for a freshly initialized one.
      teacher: name of the phase whose student becomes the teacher's `Variables`, as in `jaxkd.teachers.placeholder`;
        None leaves the teacher unchanged.
      within: for a teacher with several members, such as `jaxkd.teachers.ensemble`, the member that is replaced.

    Raises:
      ValueError: when the function is called: no earlier phase or no member has this name.

    >>> states = [TrainState(Variables(n), None, ObjectiveVars(), {}, 0, None) for n in range(2)]
    >>> inherit(teacher="first")(states[1], {"first": states[0]}).teacher
    Variables(params=0, state={})
    """

    def begin(fresh: TrainState, done: Mapping[str, TrainState]) -> TrainState:
        for name in (student, teacher):
            if name is not None:
                checks.known(name, list(done), "inherit, phase")
        if student is not None:
            fresh = fresh._replace(student=done[student].student)
        if teacher is not None:
            taught: PyTree = done[teacher].student
            if within is not None:
                checks.known(within, list(fresh.teacher), "inherit, member of the teacher")
                taught = {**fresh.teacher, within: taught}
            fresh = fresh._replace(teacher=taught)
        return fresh

    return begin


def _own_key(key: Array, i: int) -> Array:
    """Returns the key of phase `i`."""
    # The first phase has the run's key, so that a sequence of one phase equals its distiller.
    return jax.random.fold_in(key, i) if i else key


def _check_begin(name: str, phase: Phase, fresh: TrainState, done: Mapping[str, TrainState]) -> None:
    if phase.begin is None:
        return
    if not done:
        raise ValueError(f"sequential, phase {name!r}, begin: expected None for the first phase.")
    made = jax.eval_shape(lambda fresh, done: phase.begin(fresh, done), fresh, dict(done))  # type: ignore[misc]

    def described(state: TrainState) -> dict[str, str]:
        leaves = by_path(state._replace(step=0, key=0))
        return {path: checks.shape(x) for path, x in leaves.items() if hasattr(x, "shape")}

    expected, got = described(fresh), described(made)
    if different := [path for path in expected.keys() | got.keys() if expected.get(path) != got.get(path)]:
        first = sorted(different)[0]
        raise ValueError(
            f"sequential, phase {name!r}, begin: expected a state of this phase, with {first} of "
            f"{expected.get(first, 'absent')}, got {got.get(first, 'absent')} ({len(different)} differ). A model "
            "that is handed over needs the architecture of this phase's."
        )
