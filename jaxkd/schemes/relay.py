"""Several distillations one after the other, each with what the earlier ones left: one run, one state, one program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import adapters, checks
from jaxkd.schemes.phases import starts_of, switch
from jaxkd.types import Array, Batch, Distiller, LossVars, Metrics, PyTree, TrainState, Variables

__all__ = ["Begin", "Leg", "handed", "relay"]

Begin = Callable[[TrainState, Mapping[str, TrainState]], TrainState]
"""Makes the state that a leg begins with: of its state as it was initialised, and of the finished legs' by name."""


class Leg(NamedTuple):
    """One leg of a `relay`.

    Attributes:
      kd: what is trained, any distiller.
      steps: how long; None, for the last leg, until training ends.
      begin: what it takes over from the legs before; nothing by default. `handed` makes the usual ones.
    """

    kd: Distiller
    steps: int | None = None
    begin: Begin | None = None


def relay(**legs: Leg) -> Distiller:
    """Distillations in their order, each of which may begin with what earlier ones learned, as one distiller.

    A teacher and then its student; generations of one architecture; a chain of assistants; an expert for a new task and
    then the network that knows both. Each leg is a distiller with its own models, objective and optimizer. The leg is a
    function of the step, so a run that is interrupted anywhere goes on there; and a leg counts its own steps, so that
    schedules begin with it. An evaluation is of the leg that made the last step.

    Args:
      **legs: by name, in their order; all but the last have a number of steps.

    Returns:
      A `Distiller`. The state holds every leg's: ``adapters.member(state.student, NAME)`` are the variables of one
      leg's student; what is not at work is not computed with, and takes its memory. Metrics are those of the leg at
      hand and its number, ``leg``.

    Raises:
      ValueError: there are no legs, a name holds a slash, or a leg's length does not make sense; and from ``init``, if
        what ``begin`` makes is no state of its leg.

    >>> import jaxkd, optax
    >>> from jaxkd import losses
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> first = jaxkd.distill(linear, jaxkd.teachers.none(), ce, optimizer=optax.sgd(0.1))
    >>> second = jaxkd.distill(linear, jaxkd.teachers.awaited(linear), kl, optimizer=optax.sgd(0.1))
    >>> kd = relay(teacher=Leg(first, steps=2), student=Leg(second, begin=handed(teacher="teacher")))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 0])}
    >>> state = kd.init(jax.random.key(0), batch)
    >>> for _ in range(3):
    ...     state, metrics = jax.jit(kd.step, donate_argnums=0)(state, batch)
    >>> float(metrics["leg"].sum), bool((state.teacher["student"].params == state.student.params["teacher"]).all())
    (1.0, True)
    """
    if slashed := [name for name in legs if "/" in name]:
        raise ValueError(f"relay: expected names that hold no slash, got {slashed}.")
    names = list(legs)
    starts = starts_of([leg.steps for leg in legs.values()], "relay, leg")[: len(legs)]

    def init(key: Array, batch: Batch) -> TrainState:
        made = {name: leg.kd.init(_own_key(key, i), batch) for i, (name, leg) in enumerate(legs.items())}
        for i, name in enumerate(names):
            _check_begin(name, legs[name], made[name], {earlier: made[earlier] for earlier in names[:i]})
        return TrainState(
            Variables({n: s.student.params for n, s in made.items()}, {n: s.student.state for n, s in made.items()}),
            {name: state.teacher for name, state in made.items()},
            LossVars({n: s.loss.params for n, s in made.items()}, {n: s.loss.state for n, s in made.items()}),
            {name: state.opt_state for name, state in made.items()},
            jnp.zeros((), jnp.int32),
            made[names[0]].key,
        )

    def part(i: int, whole: TrainState, key: Array) -> TrainState:
        """The state as a leg knows it."""
        name = names[i]
        loss = LossVars(whole.loss.params[name], whole.loss.state[name])
        return TrainState(
            adapters.member(whole.student, name),
            whole.teacher[name],
            loss,
            whole.opt_state[name],
            whole.step - starts[i],
            key,
        )

    def enter(i: int, whole: TrainState) -> TrainState:
        fresh, begin = part(i, whole, _own_key(whole.key, i)), legs[names[i]].begin
        if begin is None:
            return fresh
        done = {name: part(j, whole, _own_key(whole.key, j)) for j, name in enumerate(names[:i])}
        # Keys stay as they are, and are left out: a branch of `cond` on them is a copy more.
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
            adapters.replace_member(whole.student, name, new.student),
            put(whole.teacher, new.teacher),
            LossVars(put(whole.loss.params, new.loss.params), put(whole.loss.state, new.loss.state)),
            put(whole.opt_state, new.opt_state),
            whole.step + 1,
            whole.key,
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def taken(i: int) -> Callable[..., tuple[TrainState, Metrics]]:
            def take(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
                new, found = legs[names[i]].kd.step(enter(i, state), batch)
                return leave(i, state, new), found

            return take

        result: tuple[TrainState, Metrics] = switch(
            state.step, state, batch, [taken(i) for i in range(len(legs))], starts, "leg"
        )
        return result

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        def seen(i: int) -> Callable[..., tuple[None, Metrics]]:
            return lambda state, batch: (None, legs[names[i]].kd.evaluate(part(i, state, state.key), batch))

        # After a leg's last step it is that leg which one wants to know of, not the next one, which has not begun.
        last = jnp.maximum(state.step - 1, 0)
        return switch(last, state, batch, [seen(i) for i in range(len(legs))], starts, "leg")[1]

    return Distiller(init, step, evaluate)


def handed(*, student: str | None = None, teacher: str | None = None, within: str | None = None) -> Begin:
    """What a leg takes over: the student that an earlier leg trained, as its own student, its teacher, or both.

    Args:
      student: the leg whose student this one goes on with; None for a freshly initialised one.
      teacher: the leg whose student is the teacher's `Variables`, as of `jaxkd.teachers.awaited`; None leaves it.
      within: where the teacher's state has several parts, as that of `jaxkd.teachers.ensemble`, the member that takes
        its place.

    Returns:
      A function for `Leg`.

    Raises:
      ValueError: when it is used: there is no such leg before this one, or no such part.

    >>> states = [TrainState(Variables(n), None, LossVars(), {}, 0, None) for n in range(2)]
    >>> handed(teacher="first")(states[1], {"first": states[0]}).teacher
    Variables(params=0, state={})
    """

    def begin(fresh: TrainState, done: Mapping[str, TrainState]) -> TrainState:
        for name in (student, teacher):
            if name is not None:
                checks.known(name, list(done), "handed, leg")
        if student is not None:
            fresh = fresh._replace(student=done[student].student)
        if teacher is not None:
            taught: PyTree = done[teacher].student
            if within is not None:
                checks.known(within, list(fresh.teacher), "handed, member of the teacher")
                taught = {**fresh.teacher, within: taught}
            fresh = fresh._replace(teacher=taught)
        return fresh

    return begin


def _own_key(key: Array, i: int) -> Array:
    """Each leg's key; the first one's is the run's, so that a relay of one leg is that leg."""
    return jax.random.fold_in(key, i) if i else key


def _check_begin(name: str, leg: Leg, fresh: TrainState, done: Mapping[str, TrainState]) -> None:
    if leg.begin is None:
        return
    if not done:
        raise ValueError(f"relay, leg {name!r}, begin: expected None, as no leg is before this one.")
    made = jax.eval_shape(lambda fresh, done: leg.begin(fresh, done), fresh, dict(done))  # type: ignore[misc]

    def described(state: TrainState) -> dict[str, str]:
        found = jax.tree_util.tree_leaves_with_path(state._replace(step=0, key=0))
        return {jax.tree_util.keystr(path): checks.shape(x) for path, x in found if hasattr(x, "shape")}

    expected, got = described(fresh), described(made)
    if different := [path for path in expected.keys() | got.keys() if expected.get(path) != got.get(path)]:
        first = sorted(different)[0]
        raise ValueError(
            f"relay, leg {name!r}, begin: expected a state of this leg, but {first} is {got.get(first, 'absent')} and "
            f"should be {expected.get(first, 'absent')} ({len(different)} differ). Is it handed a model of another "
            "architecture?"
        )
