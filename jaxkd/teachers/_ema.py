"""The mean teacher: the exponential moving average of the student."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import adapters
from jaxkd._core import checks, moving_average
from jaxkd._core.train_state import starting_from
from jaxkd.teachers._frozen import frozen
from jaxkd.types import Array, Batch, Model, PyTree, Teacher, Variables


def ema(model: Model, *, decay: moving_average.Decay = 0.999, train: bool = False, variables: Any = None) -> Teacher:
    """A teacher that is the exponential moving average of the student.

    Also known as: mean teacher.

    ``θ' ← decay · θ' + (1 − decay) · θ`` after every step: Tarvainen & Valpola, "Mean teachers are better role models",
    NeurIPS 2017, equation 1. The average begins at the initial student and includes floating-point state, such as
    BatchNorm statistics. It is stored in float32 or better; to compute in a narrower dtype, wrap the model in
    `jaxkd.wrappers.precision`.

    Args:
      model: the student's model, or another that takes its variables, with other taps or another precision.
      decay: a number in [0, 1], or a schedule of the number of previous updates, such as
        `jaxkd.distillers.ema_warmup`. 1 keeps the initial student, 0 gives the student of the previous step.
      train: evaluate it in training mode in each step, as in the paper; see `frozen`.
      variables: weights with which the average begins, in the student's structure, by default the initial student's.
        A pretrained student is `jaxkd.wrappers.pretrained`.

    Returns:
      A `Teacher` whose state is `Variables`.

    Raises:
      TypeError: the model is no `Model`, or the weights have no known form.
      ValueError: the decay is a number outside [0, 1]; from ``init``: the weights do not fit the student.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> teacher = ema(model, decay=0.75)
    >>> state = teacher.init(None, {}, Variables(jnp.eye(2)))
    >>> state = teacher.update(state, Variables(2 * jnp.eye(2)), 1)
    >>> teacher.apply(state, {"x": jnp.ones((1, 2))}, key=None)["logits"]
    Array([[1.25, 1.25]], dtype=float32)
    """
    checks.contract("ema, model", model, Model)
    moving_average.check_decay("ema", decay)
    given = None if variables is None else adapters.variables(variables)

    def init(key: Array | None, batch: Batch, student: Variables) -> PyTree:
        del key, batch
        if given is None:
            return moving_average.begin(student)
        return starting_from("ema, variables", given, jax.eval_shape(moving_average.begin, student))

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        return moving_average.follow(state, student, decay, jnp.asarray(step) - 1)

    return Teacher(init, frozen(model, Variables({}), train=train).apply, update)
