"""Hint loss of FitNets, with a learned regressor between the features."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.batches import lookup
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import mask_feature, tokens_as_rows
from jaxkd.objectives.layers import kernel_init
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule


def hint(student: str, teacher: str, *, weight: float | Array | Schedule = 1.0) -> Objective:
    """Mean squared error between the regressed student feature and the teacher's.

    Also known as: FitNets.

    ``mean (r(F_s) − F_t)²``. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3. The regressor r
    is linear, with a bias, and follows from the two shapes:

    =============================================  ==============================================================
    student's feature                              regressor
    =============================================  ==============================================================
    ``[batch, ..., features]``                     linear map of the features
    map of the teacher's size                      1×1 convolution
    map r times as large                           convolution of stride r and size 2r − 1
    larger map, not a multiple or to one position  unpadded convolution, as in the paper
    smaller map                                    transposed convolution of the same stride and size
    any of the teacher's shape                     none: the features are compared directly
    =============================================  ==============================================================

    Under a mask over tokens, the mean is over the tokens that it includes.

    Args:
      student: path of the student's feature, such as ``"student/stage2"``.
      teacher: path of the teacher's feature.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``{"kernel", "bias"}``, or none where the shapes agree.

    Raises:
      ValueError: from ``init``: a path does not exist, or no regressor fits the two shapes.

    >>> objective = hint("student/f", "teacher/f")
    >>> features = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(features(2, 8, 8, 16), features(2, 4, 4, 32), {}, 0)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), context).params)
    {'bias': (32,), 'kernel': (3, 3, 16, 32)}
    """

    def init(key: Array, context: Context) -> ObjectiveVars:
        feature, target = lookup(context, student), lookup(context, teacher)
        if feature.shape == target.shape:
            return ObjectiveVars()
        shape = _plan(feature.shape, target.shape).kernel
        return ObjectiveVars(kernel_init(key, shape))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        if params:
            # Padding must not reach the regressor's gradient.
            feature, target = mask_feature(context, lookup(context, student)), lookup(context, teacher)
            context = replace(context, {student: _regress(params, feature, target.shape)})
        return tokens_as_rows(context, student, teacher), state

    return with_projection(init, change, term(losses.hint_mse, student, teacher, weight=weight))


class _Plan(NamedTuple):
    """Kernel shape, strides and padding of a regressor; rank 2 is a linear map."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    transposed: bool = False


def _plan(source: tuple[int, ...], target: tuple[int, ...]) -> _Plan:
    """Chooses the regressor between two feature shapes."""
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
            "hint: expected maps that differ in size in one direction, got a student's map larger on one axis and "
            f"smaller on the other: {list(source)} for the student, {list(target)} for the teacher. Tap another layer."
        )
    axes = []
    for s, t in sizes:
        large, small = max(s, t), min(s, t)
        ratio, rest = divmod(large, small)
        # With stride r, a kernel of size 2r − 1 and padding r − 1 yields large / r positions. Where the ratio is not an
        # integer only the paper's unpadded form fits; it is also used for a single position, since part of a padded
        # kernel would only ever see padding.
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
        # As a matrix product, a 1×1 convolution is faster on every backend, and under vmap over seeds.
        return feature @ kernel.reshape(kernel.shape[-2:]) + params["bias"].reshape((1,) * (feature.ndim - 1) + (-1,))
    strides, padding, dilation = plan.strides, plan.padding, (1,) * len(plan.strides)
    if plan.transposed:
        # The transpose of the forward convolution: zeros dilate the input by the stride, and padding that the forward
        # convolution adds on a side is removed from that of a full convolution, k − 1.
        sizes = zip(plan.kernel, feature.shape[1:3], target[1:3], plan.strides, plan.padding, strict=False)
        padding = tuple((k - 1 - low, t - (s - 1) * step - 1 + low) for k, s, t, step, (low, _) in sizes)
        strides, dilation = dilation, strides
    regressed = jax.lax.conv_general_dilated(
        feature, kernel, strides, padding, lhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return regressed + params["bias"].reshape(1, 1, 1, -1)
