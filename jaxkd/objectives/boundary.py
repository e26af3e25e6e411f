"""Activation boundaries: on which side of zero a neuron is, behind a learned connector."""

from __future__ import annotations

from typing import Any

from jaxkd import losses
from jaxkd.objectives.compose import Schedule, counted, lookup, replace, term
from jaxkd.objectives.layers import connector, connector_init
from jaxkd.objectives.mapped import mapped
from jaxkd.types import Array, Context, LossVars, Objective


def activation_boundary(
    student: str, teacher: str, *, margin: float = 1.0, weight: float | Array | Schedule = 1.0
) -> Objective:
    """Activation boundaries: ``Σ (s+m)²·1(s > −m, t ≤ 0) + (s−m)²·1(s ≤ m, t > 0)`` with ``s = r(F_s)``.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
    section 3. Both features are those *before* the ReLU. The connector r is a 1×1 convolution without a bias
    and a BatchNorm; in training it normalises by the statistics of the batch (the examples of its replica that count),
    in evaluation by running ones.

    In the paper this is a first stage, before the task is learned: train with it alone, and go on from that student
    with other objectives. The loss is a sum over the feature, so that its weight is small, around 1e-3, and
    deeper stages weigh more.

    Args:
      student: path of the student's feature ``[batch, ..., features]`` before its ReLU.
      teacher: path of the teacher's, of the same size; the channels may differ.
      margin: m, how far beyond its boundary a neuron has to be.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns ``{"kernel", "norm": {"scale", "bias"}}`` and remembers the running statistics
      ``{"mean", "var"}``.

    Raises:
      ValueError: when it is initialised: a path does not exist, or the features do not fit.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> objective = activation_boundary("student/f", "teacher/f", weight=1e-3)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 4, 4, 16), feature(2, 4, 4, 32), {}, 0)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), context).state)
    {'mean': (32,), 'var': (32,)}
    """
    loss = term(losses.activation_boundary, student, teacher, weight=weight, margin=margin)

    def init(key: Array, context: Context) -> LossVars:
        return connector_init(key, *(lookup(context, path).shape[-1] for path in (student, teacher)))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature = counted(context, lookup(context, student))
        feature, state = connector(params, state, feature, context, train=key is not None)
        return replace(context, {student: feature}), state

    return mapped(init, change, loss)
