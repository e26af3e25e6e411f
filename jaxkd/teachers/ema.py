"""The mean teacher: the student's own moving average teaches it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxkd import averaging
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Teacher, Variables


def ema(model: Model, *, decay: averaging.Decay = 0.999, train: bool = False) -> Teacher:
    """The exponential moving average of the student: ``θ' ← decay · θ' + (1 − decay) · θ`` after every step.

    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, equation 1. The average begins as the
    initial student. Floating-point state, such as BatchNorm statistics, is averaged too. It is kept in float32 or
    better; with a model from `jaxkd.adapters.precision` it computes in less.

    Args:
      model: the student's model, or another that takes its variables: other taps, another precision.
      decay: a number in [0, 1], or a schedule of the updates made before, such as `jaxkd.averaging.rising_decay`. 1
        teaches with the initial student for ever, 0 with the student of the last step.
      train: runs it in training mode in each step, with dropout and batch statistics, as in the paper. What that would
        change in its state is dropped. Evaluations are in inference mode all the same.

    Returns:
      A `Teacher` whose state is `Variables`.

    Raises:
      ValueError: the decay is a number outside of [0, 1].

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> teacher = ema(model, decay=0.75)
    >>> state = teacher.init(None, {}, Variables(jnp.eye(2)))
    >>> state = teacher.update(state, Variables(2 * jnp.eye(2)), 1)
    >>> teacher.apply(state, {"x": jnp.ones((1, 2))}, key=None)["logits"]
    Array([[1.25, 1.25]], dtype=float32)
    """
    averaging.check_decay("ema", decay)

    def init(key: Array | None, batch: Batch, student: Variables) -> PyTree:
        del key, batch
        return averaging.begin(student)

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        training = train and key is not None  # an evaluation has no key, and wants none
        return model.apply(state, batch, key=key if training else None, train=training)[0]

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        return averaging.follow(state, student, decay, jnp.asarray(step) - 1)

    return Teacher(init, apply, update)
