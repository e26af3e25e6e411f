"""Overhaul of feature distillation: a partial L2 between pre-ReLU features, behind a learned connector."""

from __future__ import annotations

from typing import Any

from jaxkd import losses
from jaxkd.objectives.compose import Schedule, counted, lookup, replace, term
from jaxkd.objectives.layers import connector, connector_init
from jaxkd.objectives.mapped import mapped
from jaxkd.types import Array, Context, LossVars, Objective


def overhaul(student: str, teacher: str, margin: Array, *, weight: float | Array | Schedule = 1.0) -> Objective:
    """Overhaul of feature distillation: ``Σ (r(F_s) − t')²·1(r(F_s) > t' or t' > 0)``, ``t' = max(F_t, m)``.

    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3. Both features are
    those *before* the ReLU: tap the last BatchNorm of a stage, or the addition of its last block. The connector r is a
    1×1 convolution without a bias and a BatchNorm; in training it normalises by the statistics of the batch (the
    examples of its replica that count), in evaluation by running ones. The teacher runs in inference mode here, as
    everywhere in this library; in popular code its BatchNorm is left in training mode.

    The sum over the feature is large: the authors' code divides by 1000, and the l-th of L stages by 2^(L−l) besides.
    So three stages are ``combine(a=overhaul(..., weight=1e-3 / 4), b=overhaul(..., weight=1e-3 / 2),
    c=overhaul(..., weight=1e-3))``.

    Args:
      student: path of the student's feature ``[batch, ..., features]`` before its ReLU.
      teacher: path of the teacher's, of the same size; the channels may differ.
      margin: the channels' expectation where they are negative, ``[channels]``: `jaxkd.losses.overhaul_margin` of the
        bias and the scale of the BatchNorm that the teacher's feature comes from (of a residual block, the last one).
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns ``{"kernel", "norm": {"scale", "bias"}}`` and remembers the running statistics
      ``{"mean", "var"}``.

    Raises:
      ValueError: when it is initialised: a path does not exist, or features or margin do not fit.

    From linen's variables of the teacher, for a feature that is the output of its BatchNorm ``"bn"``:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> teacher_variables = {"params": {"bn": {"bias": jnp.zeros(32), "scale": jnp.ones(32)}}}
    >>> norm = teacher_variables["params"]["bn"]
    >>> objective = overhaul("student/f", "teacher/f", losses.overhaul_margin(norm["bias"], norm["scale"]), weight=1e-3)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 4, 4, 16), feature(2, 4, 4, 32), {}, 0)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), context).params)
    {'kernel': (16, 32), 'norm': {'bias': (32,), 'scale': (32,)}}
    """
    loss = term(losses.overhaul, student, teacher, "batch/margin", weight=weight)

    def init(key: Array, context: Context) -> LossVars:
        return connector_init(key, *(lookup(context, path).shape[-1] for path in (student, teacher)))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature = counted(context, lookup(context, student))
        feature, state = connector(params, state, feature, context, train=key is not None)
        return replace(context, {student: feature, "batch/margin": margin}), state

    return mapped(init, change, loss)
