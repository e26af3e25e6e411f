"""FitNets' hint: a feature loss that learns the regressor from the student's feature to the teacher's."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.objectives.compose import Schedule, counted, lookup, replace, term
from jaxkd.types import Array, Context, LossOut, LossVars, Objective


def hint(student: str, teacher: str, *, weight: float | Array | Schedule = 1.0) -> Objective:
    """Hint regression ``mean (r(F_s) − F_t)²`` with its learned regressor r.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3. The regressor is what the two shapes
    ask for, linear, with a bias:

    =============================================  ==============================================================
    the student's feature                          the regressor
    =============================================  ==============================================================
    ``[batch, ..., features]``                     a linear map of the features
    a map as large as the teacher's                a 1×1 convolution
    larger, r times                                a convolution of stride r and size 2r − 1
    larger, not a multiple, or to one position     an unpadded convolution, as in the paper
    smaller                                        the same, transposed
    the teacher's shape already                    none: the features are compared as they are
    =============================================  ==============================================================

    Args:
      student: path of the student's feature, such as ``"student/stage2"``.
      teacher: path of the teacher's.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns ``{"kernel", "bias"}``, or nothing where the shapes agree.

    Raises:
      ValueError: when it is initialised: a path does not exist, or no regressor fits the two shapes.

    >>> objective = hint("student/f", "teacher/f")
    >>> features = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(features(2, 8, 8, 16), features(2, 4, 4, 32), {}, 0)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), context).params)
    {'bias': (32,), 'kernel': (3, 3, 16, 32)}
    """
    loss = term(losses.hint_mse, student, teacher, weight=weight)

    def regressed(params: Any, context: Context) -> Context:
        # What a padded example holds must not reach the regressor's gradient.
        feature, target = counted(context, lookup(context, student)), lookup(context, teacher)
        return replace(context, {student: _regress(params, feature, target.shape)})

    def init(key: Array, context: Context) -> LossVars:
        feature, target = lookup(context, student), lookup(context, teacher)
        if feature.shape == target.shape:
            return LossVars()
        kernel = _plan(feature.shape, target.shape).kernel
        params = {
            "kernel": jax.nn.initializers.lecun_normal()(key, kernel, jnp.float32),
            "bias": jnp.zeros(kernel[-1], jnp.float32),
        }
        alone = context._replace(axis_name=None)
        jax.eval_shape(lambda p, c: loss.apply({}, {}, regressed(p, c), None).value, params, alone)
        return LossVars(params)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        return loss.apply({}, state, regressed(params, context) if params else context, key)

    return Objective(init, apply)


class _Plan(NamedTuple):
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    transposed: bool = False


def _plan(source: tuple[int, ...], target: tuple[int, ...]) -> _Plan:
    """The regressor between two feature shapes."""
    if len(source) != len(target) or len(source) < 2 or (len(source) != 4 and source[:-1] != target[:-1]):
        raise ValueError(
            f"hint: expected two features that differ in channels, or maps [batch, height, width, channels] that may "
            f"differ in size too; got {list(source)} for the student and {list(target)} for the teacher."
        )
    channels = (source[-1], target[-1])
    if len(source) != 4:
        return _Plan(channels)
    sizes = list(zip(source[1:3], target[1:3], strict=True))
    if any(s < t for s, t in sizes) and any(s > t for s, t in sizes):
        raise ValueError(
            f"hint: no regressor between maps that are larger on one axis and smaller on the other: {list(source)} for "
            f"the student, {list(target)} for the teacher. Tap another layer."
        )
    axes = []
    for s, t in sizes:
        large, small = max(s, t), min(s, t)
        ratio, rest = divmod(large, small)
        # Size 2r − 1 with padding r − 1 keeps the output at large / r; without a ratio, only the paper's form fits, and
        # for a single position it is the one without weights on padding alone.
        axes.append((large - small + 1, 1, 0) if rest or small == 1 else (2 * ratio - 1, ratio, ratio - 1))
    return _Plan(
        (axes[0][0], axes[1][0], *channels),
        (axes[0][1], axes[1][1]),
        tuple((padding, padding) for _, _, padding in axes),
        transposed=any(s < t for s, t in sizes),
    )


def _regress(params: Any, feature: Array, target: tuple[int, ...]) -> Array:
    plan = _plan(feature.shape, target)
    kernel, feature = params["kernel"], feature.astype(jnp.float32)
    if all(size == 1 for size in plan.kernel[:-2]) and not plan.transposed and set(plan.strides) <= {1}:
        # A 1×1 convolution is a matrix product, which every backend (and vmap over seeds) does better.
        return feature @ kernel.reshape(kernel.shape[-2:]) + params["bias"].reshape((1,) * (feature.ndim - 1) + (-1,))
    numbers = ("NHWC", "HWIO", "NHWC")
    if plan.transposed:
        # The forward form's transpose: the input spread out by the stride, and its padding turned inside out.
        padding = [
            (k - 1 - low, t - (s - 1) * stride - 1 + low)
            for k, s, t, stride, (low, _) in zip(
                plan.kernel, feature.shape[1:3], target[1:3], plan.strides, plan.padding, strict=False
            )
        ]
        mapped = jax.lax.conv_general_dilated(
            feature, kernel, (1, 1), padding, lhs_dilation=plan.strides, dimension_numbers=numbers
        )
    else:
        mapped = jax.lax.conv_general_dilated(feature, kernel, plan.strides, plan.padding, dimension_numbers=numbers)
    return mapped + params["bias"].reshape(1, 1, 1, -1)
