"""Overhaul of feature distillation: a partial L2 between pre-ReLU features."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.objectives._compose import term
from jaxkd.objectives._projection import connected
from jaxkd.objectives._tokens import summed_over_tokens
from jaxkd.types import Array, Objective, Schedule


def overhaul_connector(
    student: str, teacher: str, margin: Array, *, weight: float | Array | Schedule = 1.0
) -> Objective:
    """Partial L2 distance between pre-ReLU features, behind a connector.

    Also known as: OFD (overhaul of feature distillation).

    ``Σ (r(F_s) − t')²·1(r(F_s) > t' or t' > 0)`` with ``t' = max(F_t, m)``. Heo et al., "A Comprehensive Overhaul of
    Feature Distillation", ICCV 2019, section 3. Both features are those *before* the ReLU: tap a stage's last BatchNorm
    or addition. The connector r is a 1×1 convolution without a bias and a BatchNorm, with running statistics in
    evaluation. The teacher runs in inference mode; popular code leaves its BatchNorm in training mode.

    The sum over the feature is large: the authors' code divides it by 1000, and the l-th of L stages by a further
    2^(L−l). Three stages are therefore ``combine(a=overhaul_connector(..., weight=1e-3 / 4), b=overhaul_connector(...,
    weight=1e-3 / 2), c=overhaul_connector(..., weight=1e-3))``.

    Args:
      student: path of the student's feature ``[batch, ..., features]`` before its ReLU.
      teacher: path of the teacher's feature before its ReLU, of the same size; the channels may differ.
      margin: expectation of each channel's negative values ``[channels]``: `jaxkd.losses.overhaul_margin` of the bias
        and the scale of the BatchNorm that outputs the teacher's feature (the last one of a residual block).
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``{"kernel", "norm": {"scale", "bias"}}`` and running statistics as state.

    Raises:
      ValueError: from ``init``: a path does not exist, or the features or the margin do not fit.

    With linen's variables of the teacher, for a feature that is the output of its BatchNorm ``"bn"``:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxkd.types import Context
    >>> teacher_variables = {"params": {"bn": {"bias": jnp.zeros(32), "scale": jnp.ones(32)}}}
    >>> norm = teacher_variables["params"]["bn"]
    >>> margin = losses.overhaul_margin(norm["bias"], norm["scale"])
    >>> objective = overhaul_connector("student/f", "teacher/f", margin, weight=1e-3)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 4, 4, 16), feature(2, 4, 4, 32), {}, 0)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), context).params)
    {'kernel': (16, 32), 'norm': {'bias': (32,), 'scale': (32,)}}
    """
    loss = term(summed_over_tokens(losses.overhaul), student, teacher, "batch/margin", weight=weight)
    return connected(loss, student, teacher, margin=margin)
