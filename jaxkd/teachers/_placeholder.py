"""A placeholder teacher, whose weights another part of the run trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd.teachers._frozen import frozen
from jaxkd.types import Array, Batch, Model, PyTree, Teacher, Variables


def placeholder(model: Model, *, train: bool = False) -> Teacher:
    """A frozen teacher that begins untrained, until a scheme replaces its weights.

    Its state has the structure of the model's `Variables` and is part of the train state, as with
    `jaxkd.teachers.frozen`. ``jaxkd.schemes.sequential`` replaces it by the weights of the phase that trained them;
    schemes of generations or tasks replace it by the previous student.

    Args:
      model: model from an adapter.
      train: evaluate it in training mode in each step; see `jaxkd.teachers.frozen`.

    Returns:
      A `Teacher` whose state is `Variables`, freshly initialized.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.zeros((2, 2)), lambda w, x: x @ w, inputs="x")
    >>> teacher = placeholder(model)
    >>> teacher.init(jax.random.key(0), {"x": jnp.ones((1, 2))}, None).params.shape
    (2, 2)
    """
    checks.contract("placeholder, model", model, Model)

    def init(key: Array, batch: Batch, student: Variables | None) -> PyTree:
        del student
        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), dict(batch))
        made: Variables = model.init(key, zeros)
        return jax.tree.map(jnp.asarray, made)

    inner = frozen(model, Variables({}), train=train)
    return Teacher(init, inner.apply, inner.update)
