"""Activation boundaries: a hinge loss on the sign of each neuron."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.objectives._checks import not_negative
from jaxkd.objectives._compose import term
from jaxkd.objectives._projection import connected
from jaxkd.objectives._tokens import summed_over_tokens
from jaxkd.types import Array, Objective, Schedule


def boundary_connector(
    student: str, teacher: str, *, margin: float = 1.0, weight: float | Array | Schedule = 1.0
) -> Objective:
    """Squared hinge loss on the signs of pre-activations, behind a connector.

    Also known as: AB (activation boundaries).

    ``Σ (s+m)²·1(s > −m, t ≤ 0) + (s−m)²·1(s ≤ m, t > 0)`` with ``s = r(F_s)``. Heo et al., "Knowledge Transfer via
    Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019, section 3. Both features are those
    *before* the ReLU. The connector r is a 1×1 convolution without a bias and a BatchNorm, with running statistics in
    evaluation.

    In the paper this is a first stage (`jaxkd.schemes.staged`), before the task is learned. The loss is a sum over the
    feature, so its weight is small, around 1e-3, and deeper stages have larger weights.

    Args:
      student: path of the student's feature ``[batch, ..., features]`` before its ReLU.
      teacher: path of the teacher's feature before its ReLU, of the same size; the channels may differ.
      margin: m ≥ 0, the required distance of a pre-activation from zero.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``{"kernel", "norm": {"scale", "bias"}}`` and running statistics as state.

    Raises:
      ValueError: from ``init``: a path does not exist, or the features do not fit.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxkd.types import Context
    >>> objective = boundary_connector("student/f", "teacher/f", weight=1e-3)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 4, 4, 16), feature(2, 4, 4, 32), {}, 0)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), context).state)
    {'mean': (32,), 'var': (32,)}
    """
    not_negative("boundary_connector", margin=margin)
    loss = summed_over_tokens(losses.activation_boundary)
    return connected(term(loss, student, teacher, weight=weight, margin=margin), student, teacher)
