"""Interactive distillation: examples that continue from step to step, such as episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import axes, batches, checks, train_state, tree_paths
from jaxkd._core.train_state import strongly_typed
from jaxkd.schemes.sequences._examples import keys_of, replace, stored
from jaxkd.types import Array, Batch, Distiller, Metrics, PyTree, TrainState

_SLOT = "carried"
_STREAM = 0x17AC  # folded into the key, so that the keys differ from those of the wrapped distiller
_BEGIN = 0xBE61

Advance = Callable[..., tuple[Mapping[str, Any], PyTree]]


def interactive(kd: Distiller, begin: Callable[[Array], PyTree], advance: Advance) -> Distiller:
    """On-policy distillation of examples that continue from step to step.

    Each row of the batch belongs to something that continues, such as an environment, a game or a stream, whose state
    the run carries. Before each step, ``advance`` moves the rows on with the present student and returns what they
    went through as the entries of the batch; then the wrapped distiller takes its step on them, with any objective. A
    student that acts, and a teacher that is asked what it would have done, is the setting of Ross et al., "A Reduction
    of Imitation Learning and Structured Prediction to No-Regret Online Learning", AISTATS 2011, without the collection
    of all earlier examples, and that of policy distillation on the student's states. A teacher that acts is that of
    Rusu et al., "Policy Distillation", ICLR 2016. No gradient passes through ``advance``.

    What is carried is in ``opt_state["carried"]``, so that a resumed run continues bit for bit. What a row gets depends
    on the run's key, the step and the row's place among the unmasked rows of the batch, and so not on the devices,
    each of which advances its own rows and holds the state of all.

    Args:
      kd: any distiller whose teacher can be evaluated on new examples, not a cached one.
      begin: function ``keys -> carried``: from a PRNG key for each row ``[batch]``, the states at the beginning, any
        pytree of arrays ``[batch, ...]``. PRNG keys are not carried; every call gets new ones.
      advance: function ``(student, teacher, carried, batch, *, keys) -> (entries, carried)``: from the student's
        `Variables`, the teacher's state (of `jaxkd.teachers.frozen` its `Variables`), the states, the batch and a PRNG
        key for each row, the entries of the examples ``[batch, ...]`` and the states after them. It treats each row
        separately and computes in inference mode. If an episode ends, it begins another one in the same row; steps
        that do not count are excluded by the entry ``mask``.

    Returns:
      A `Distiller`. The batch of ``init`` has the rows that are carried, and the entries that the models and the
      objective read; only the shapes matter where ``advance`` returns them. ``evaluate`` is that of ``kd``, on the
      batch that it is given.

    Raises:
      TypeError: ``begin`` or ``advance`` is not a function.
      ValueError: from ``init`` and ``step``: what is carried has not a row for each example, or holds PRNG keys, or
        changes its structure or a shape; an entry does not fit that of the batch; a batch has more rows than ``init``
        had.

    >>> import optax, jaxkd
    >>> table = jaxkd.adapters.plain(lambda key, x: jnp.zeros((4, 2)), lambda w, x: w[x], inputs="place")
    >>> right = jaxkd.teachers.frozen(table, jaxkd.Variables(jnp.tile(jnp.array([0.0, 3.0]), (4, 1))))
    >>> loss = jaxkd.term(jaxkd.losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
    >>> def advance(student, teacher, place, batch, *, keys):  # a walk of two steps on a ring of 4 places
    ...     places = [place]
    ...     for number in range(2):
    ...         own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    ...         action = jax.vmap(jax.random.categorical)(own, student.params[places[-1]])
    ...         places.append((places[-1] + 2 * action - 1) % 4)
    ...     return {"place": jnp.stack(places[:2], axis=1)}, places[2]
    >>> kd = jaxkd.distill(table, right, loss, optimizer=optax.sgd(4.0))
    >>> kd = interactive(kd, lambda keys: jnp.zeros(len(keys), jnp.int32), advance)
    >>> batch = {"place": jnp.zeros((8, 2), jnp.int32)}  # shapes alone matter
    >>> state, step = kd.init(jax.random.key(0), batch), jax.jit(kd.step)
    >>> for _ in range(40):
    ...     state, metrics = step(state, batch)
    >>> (state.student.params[:, 1] > state.student.params[:, 0]).tolist()
    [True, True, True, True]
    """
    checks.contract("interactive, kd", kd, Distiller)
    for name, function in {"begin": begin, "advance": advance}.items():
        if not callable(function):
            raise TypeError(f"interactive, {name}: expected a function, got {checks.kind(function)}.")
    # Jitted here and not in `init`, so that the `init` of another seed compiles nothing.
    first = jax.jit(lambda keys: strongly_typed(jax.lax.stop_gradient(begin(keys))))

    def init(key: Array, batch: Batch) -> TrainState:
        state, size = kd.init(key, batch), batches.batch_size(batch)
        carried = first(keys_of(jax.random.fold_in(state.key, _BEGIN), jnp.arange(size)))
        for x in jax.tree.leaves(carried):
            if x.shape[:1] != (size,) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
                raise ValueError(
                    f"interactive, begin: expected arrays [batch, ...] with a row for each of the {size} keys, got "
                    f"{checks.shape(x)}. What is carried holds no PRNG keys: `advance` gets a new one in every step."
                )
        # Raises for what does not fit.
        jax.eval_shape(advanced, state, carried, dict(batch))
        return train_state.put(state, _SLOT, carried, "interactive")

    def advanced(state: TrainState, carried: PyTree, batch: Batch) -> tuple[dict[str, Any], PyTree]:
        """Returns the batch of what the rows went through, and the states after it."""
        axis_name, size, included = axes.mapped_axis(), batches.batch_size(batch), batches.example_mask(batch)
        capacity = len(jax.tree.leaves(carried)[0]) if jax.tree.leaves(carried) else size
        rows = size if axis_name is None else size * jax.lax.axis_size(axis_name)
        if included is None and rows > capacity:
            raise ValueError(f"interactive: expected at most the {capacity} rows that `init` had, got {rows}.")
        places = axes.positions(included, size, axis_name)
        key = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
        own = jax.tree.map(lambda x: x.at[places].get(mode="clip"), carried)
        given = jax.lax.stop_gradient((state.student, state.teacher, own, dict(batch)))
        made, after = jax.lax.stop_gradient(advance(*given, keys=keys_of(key, places)))
        _check_carried(own, after)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, own)
        kept = places if included is None else jnp.where(included, places, capacity)
        chosen = jnp.ones(size, bool) if included is None else included
        return replace("interactive", batch, made, chosen, every=True), stored(carried, after, kept, axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.batch("interactive, batch", batch)
        inner, carried = train_state.take(state, _SLOT, "interactive")
        whole, carried = advanced(inner, carried, batch)
        new, metrics = kd.step(inner, whole)
        return train_state.put(new, _SLOT, carried, "interactive"), metrics

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(train_state.take(state, _SLOT, "interactive")[0], batch)

    return Distiller(init, step, evaluate)


def _check_carried(before: PyTree, after: PyTree) -> None:
    """Raises unless the states after a step fit those before it, so that all steps are one program."""
    old, new = (tree_paths.named(tree) for tree in (before, after))
    for name in {**old, **new}:
        fits = name in old and name in new and jnp.shape(old[name]) == jnp.shape(new[name])
        if not fits or jnp.promote_types(old[name].dtype, jnp.asarray(new[name]).dtype) != old[name].dtype:
            had, got = (checks.shape(tree[name]) if name in tree else "nothing" for tree in (old, new))
            raise ValueError(
                f"interactive, advance: expected to get back what is carried, {name or 'an array'} {had}, got {got}. "
                "The states have the shapes and dtypes that `begin` gave them, with a row for each key."
            )
