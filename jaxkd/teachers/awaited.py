"""A teacher whose weights are still to come: another part of the run trains them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.teachers.frozen import frozen
from jaxkd.types import Array, Batch, Model, PyTree, Teacher, Variables


def awaited(model: Model, *, train: bool = False) -> Teacher:
    """A frozen teacher that begins untrained, until a scheme puts weights in its place.

    Its state is `Variables` of the model's form, in the train state like those of `jaxkd.teachers.frozen`. They are
    what ``jaxkd.schemes.relay`` hands over from the leg that trained them, and what a scheme replaces by the student
    of a generation or a task before.

    Args:
      model: from an adapter.
      train: runs it in training mode in each step; see `jaxkd.teachers.frozen`.

    Returns:
      A `Teacher` whose state is `Variables`, freshly initialised.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.zeros((2, 2)), lambda w, x: x @ w, inputs="x")
    >>> teacher = awaited(model)
    >>> teacher.init(jax.random.key(0), {"x": jnp.ones((1, 2))}, None).params.shape
    (2, 2)
    """

    def init(key: Array, batch: Batch, student: Variables | None) -> PyTree:
        del student
        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), dict(batch))
        made: Variables = model.init(key, zeros)
        return jax.tree.map(jnp.asarray, made)

    inner = frozen(model, Variables({}), train=train)
    return Teacher(init, inner.apply, inner.update)
