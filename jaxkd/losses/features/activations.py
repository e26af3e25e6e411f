"""Activation losses: student and teacher features compared element by element.

A feature is ``[batch, ..., channels]``, a map ``[batch, height, width, channels]``. Every function returns one value
per example, with the sum or the mean over a feature that the method was published with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = [
    "hint_mse",
    "activation_boundary",
    "overhaul",
    "overhaul_margin",
    "hierarchical_context",
    "gaussian_nll",
    "channel_weighted_mse",
    "channel_importance",
]


def hint_mse(
    student: Float[Array, "batch *feature"],
    teacher: Float[Array, "batch *feature"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of two features.

    Also known as: FitNets, hint regression.

    ``mean (F_s − F_t)²`` over all elements of an example's feature. Romero et al., "FitNets: Hints for Thin Deep Nets",
    ICLR 2015, equation 3, with the mean of popular code in place of the paper's ½ sum (a constant factor). Student and
    teacher need the same channels; `jaxkd.objectives.hint` learns a regressor between different ones.

    Args:
      student: a feature ``[batch, ...]``; a map ``[batch, height, width, channels]`` may differ in height and width.
      teacher: a feature of the same rank, batch and channels.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: batch, rank or channels differ, or a dtype is not floating point.

    >>> hint_mse(jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)))
    Array([1., 1.], dtype=float32)
    """
    student = _checks.floating("student", student, "features [batch, ...]", least_rank=2)
    teacher = _checks.floating("teacher", teacher, "features [batch, ...]", least_rank=2)
    if student.ndim == teacher.ndim == 4 and student.shape[::3] == teacher.shape[::3]:
        student, teacher = _numerics.match_size(student, teacher)
    advice = "maps may differ in height and width; jaxkd.objectives.hint learns a regressor between channels"
    _checks.same_shape(student, teacher, advice)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    values = jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))
    return _numerics.mask_values(values, where)


def activation_boundary(
    student: Float[Array, "batch *feature"],
    teacher: Float[Array, "batch *feature"],
    *,
    margin: float | Float[Array, ""] = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared hinge loss that moves neurons to the teacher's side of the boundary.

    Also known as: AB (activation boundaries).

    ``Σ (s+m)²·1(s > −m, t ≤ 0) + (s−m)²·1(s ≤ m, t > 0)`` over an example's feature. Heo et al., "Knowledge Transfer
    via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019, section 3: the student's neuron is
    pushed below −m where the teacher's is off, and above m where it is on. Both features are taken before the ReLU. The
    sum is that of the authors' code, which then divides by the batch and, for its own networks, by a constant;
    re-implementations that take the mean are smaller by the size of the feature.

    Args:
      student: a feature before the activation function ``[batch, ...]``.
      teacher: the teacher's feature before its activation function; only its sign is used, so that it has no gradient.
      margin: m, distance from 0 that the student has to reach, at least 0.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. It is positive for a student equal to its teacher if activations lie within the
      margin.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or the margin is negative.

    >>> activation_boundary(jnp.array([[0.5, -3.0, 0.5, 3.0]]), jnp.array([[-1.0, -1.0, 1.0, 1.0]]))
    Array([2.5], dtype=float32)
    """
    student, teacher = _pair(student, teacher)
    _checks.not_negative("margin", margin)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    off = jnp.maximum(student + margin, 0)
    on = jnp.minimum(student - margin, 0)
    values = jnp.sum(jnp.where(teacher > 0, on, off) ** 2, axis=tuple(range(1, student.ndim)))
    return _numerics.mask_values(values, where)


def overhaul(
    student: Float[Array, "batch *feature channels"],
    teacher: Float[Array, "batch *feature channels"],
    margin: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Partial squared distance to the teacher's feature behind a margin ReLU.

    Also known as: OFD (overhaul of feature distillation).

    ``Σ (s−t')²·1(s > t' or t' > 0)`` with ``t' = max(t, m)``, over a feature. Heo et al., "A Comprehensive Overhaul of
    Feature Distillation", ICCV 2019, section 3: where the teacher's ReLU would be off, the teacher is an upper bound
    and no target. Both features are taken before the ReLU, the student's after a 1 × 1 convolution with batch
    normalization. The authors' code then weights the layers by powers of ½ and divides by the batch and by 1000.

    Args:
      student: a feature before the activation function ``[batch, ..., channels]``.
      teacher: the teacher's feature before its activation function.
      margin: m of each channel, from `overhaul_margin`: ``[channels]``, or of the features' rank with 1 on every other
        axis. It and the teacher have the gradients of the formula.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: shapes differ, the margin is not one per channel, or a dtype is not floating point.

    >>> overhaul(jnp.array([[2.0, -3.0, 0.0]]), jnp.array([[1.0, -1.0, -1.0]]), jnp.full(3, -0.5))
    Array([1.25], dtype=float32)
    """
    student, teacher = _pair(student, teacher)
    margin = _per_channel("margin", margin, student)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    target = jnp.maximum(teacher, margin)
    difference = jnp.where((student > target) | (target > 0), student - target, 0)
    return _numerics.mask_values(jnp.sum(difference**2, axis=tuple(range(1, student.ndim))), where)


def overhaul_margin(mean: Float[Array, " channels"], std: Float[Array, " channels"]) -> Float[Array, " channels"]:
    """Returns the margins of `overhaul`: the expectation of a negative Gaussian.

    ``E[x | x < 0] = μ − σ φ(μ/σ)/Φ(−μ/σ)``. Heo et al. 2019, the margin ReLU of section 3, solved for the output of a
    batch normalization, whose bias is μ and whose scale is σ. As in the authors' code the margin is −3σ where ``Φ(−μ/σ)
    ≤ 0.001``: such a channel is hardly ever negative, and the quotient would be one of two tiny numbers.

    Args:
      mean: bias of the teacher's batch normalization ``[channels]``.
      std: scale of the batch normalization ``[channels]``, whose absolute value is σ.

    Returns:
      The margins ``[channels]``, none of them positive. σ = 0 gives the limit, min(μ, 0).

    Raises:
      ValueError: the shapes differ, or a dtype is not floating point.

    >>> overhaul_margin(jnp.array([0.0, 4.0, -2.0]), jnp.array([1.0, 1.0, 0.0])).round(4)
    Array([-0.7979, -3.    , -2.    ], dtype=float32)
    """
    mean, std = (_checks.floating(name, x, "[channels]", rank=1) for name, x in (("mean", mean), ("std", std)))
    _checks.same_shape(mean, std, "both are of one batch normalization", name="std", other="mean")
    std = std * jnp.sign(std)  # jnp.abs has slope 1 at 0
    # Below −40σ the correction underflows; above 4σ, Φ is below 0.001. The quotient is taken only in between.
    inside = (mean > -40 * std) & (mean < 4 * std)
    ratio = jnp.where(inside, mean, 0) / jnp.where(inside, std, 1)
    density = jnp.exp(-(ratio**2) / 2) / (2 * jnp.pi) ** 0.5
    below = jax.scipy.special.ndtr(-ratio)
    correction = std * density / jnp.where(below > 0.001, below, 1)
    return jnp.where(inside & (below > 0.001), mean - correction, jnp.where(mean < 0, mean, -3 * std))


def hierarchical_context(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of two maps and of their averages on coarser grids.

    Also known as: HCL (hierarchical context loss), ReviewKD.

    It is `hint_mse` of the maps and of their averages in 4 × 4, 2 × 2 and one window. Chen et al., "Distilling
    Knowledge via Knowledge Review", CVPR 2021, section 3.4. The paper gives it as a figure; weights and levels are
    those of the authors' code: the map has weight 1, each level pooled from a larger map half the weight of the
    previous one, and the sum is divided by the sum of the weights. A level that is not smaller than the height, the
    only size compared, is skipped: 8 rows have the weights 1, ½, ¼, ⅛, 4 rows 1, ½, ¼, and one row only 1.

    Args:
      student: a feature map ``[batch, height, width, channels]``, fused from deeper stages.
      teacher: a feature map of the same shape.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: an input is not a floating-point feature map, or shapes differ.

    >>> hierarchical_context(jnp.eye(2).reshape(1, 2, 2, 1), jnp.zeros((1, 2, 2, 1))).round(4)
    Array([0.4167], dtype=float32)
    """
    student, teacher = _pair(student, teacher, "maps [batch, height, width, channels]", rank=4)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    difference = student - teacher  # averages are linear: pooling the difference pools both maps at once
    height, weights = student.shape[1], 1.0
    values = jnp.mean(difference**2, axis=(1, 2, 3))
    for index, level in enumerate(level for level in (4, 2, 1) if level < height):
        pooled = _numerics.adaptive_mean(_numerics.adaptive_mean(difference, 1, level), 2, level)
        values += 0.5 ** (index + 1) * jnp.mean(pooled**2, axis=(1, 2, 3))
        weights += 0.5 ** (index + 1)
    return _numerics.mask_values(values / weights, where)


def gaussian_nll(
    mean: Float[Array, "batch *feature channels"],
    target: Float[Array, "batch *feature channels"],
    variance: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Negative log-likelihood of the teacher's feature under a Gaussian.

    Also known as: VID (variational information distillation).

    The mean of ``½ [(μ−t)²/σ² + log σ²]`` over an example's feature. Ahn et al., "Variational Information Distillation
    for Knowledge Transfer", CVPR 2019, section 2: the negative log-likelihood, up to a constant, of the teacher's
    feature under a Gaussian around a prediction from the student's. Its variance, one per channel, is meant to be
    trained with the student, as ``softplus(a) + 1e-5`` in the authors' code; with a constant variance the loss is a
    scaled mean squared error. The paper sums over a feature where popular code, and this, has the mean.

    Args:
      mean: μ, the prediction from the student's feature ``[batch, ..., channels]``.
      target: the teacher's feature, of the same shape.
      variance: σ² of each channel, ``[channels]`` or of the features' rank with 1 on every other axis. It has to be
        positive; at 0 a Gaussian has no density, and the result is infinite or NaN.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats per element; negative where the variance is small and fits.

    Raises:
      ValueError: shapes differ, the variance is not one per channel, or a dtype is not floating point.

    >>> gaussian_nll(jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 0.0]]), jnp.array([4.0, 1.0])).round(4)
    Array([0.5966], dtype=float32)
    """
    mean, target = _pair(mean, target, names=("mean", "target"))
    variance = _per_channel("variance", variance, mean)
    where = _checks.mask(where, mean.shape[:1])
    mean, target = _numerics.mask_inputs(where, mean, target)
    likelihood = ((mean - target) ** 2 / variance + jnp.log(variance)) / 2
    return _numerics.mask_values(jnp.mean(likelihood, axis=tuple(range(1, mean.ndim))), where)


def channel_weighted_mse(
    student: Float[Array, "batch *feature channels"],
    teacher: Float[Array, "batch *feature channels"],
    weights: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of two features, weighted by channel.

    Also known as: DELTA.

    ``Σ_c w_c ‖F_s,c − F_t,c‖²``, the norm over a channel's positions. Li et al., "DELTA: Deep Learning Transfer using
    Feature Map with Attention for Convolutional Networks", ICLR 2019, section 3. The authors' code halves the sum and
    multiplies it by the channels over the positions.

    Args:
      student: a feature ``[batch, ..., channels]``.
      teacher: the same feature of the network that initialized the student.
      weights: weight of each channel, from `channel_importance`: ``[channels]`` or of the features' rank with 1 on
        every other axis.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: shapes differ, the weights are not one per channel, or a dtype is not floating point.

    >>> channel_weighted_mse(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.array([0.75, 0.25]))
    Array([1.75], dtype=float32)
    """
    student, teacher = _pair(student, teacher)
    weights = _per_channel("weights", weights, student)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    return _numerics.mask_values(jnp.sum(weights * (student - teacher) ** 2, axis=tuple(range(1, student.ndim))), where)


def channel_importance(losses_without: Float[Array, " channels"], loss: Float[Array, ""]) -> Float[Array, " channels"]:
    """Returns the weights of `channel_weighted_mse` from the effect of each channel.

    ``softmax(L_{without c} − L)`` over the channels. Li et al. 2019, section 3: a channel matters by how much the
    task's loss rises when its filter is set to zero. The softmax does not depend on L, which shifts all entries. The
    authors' code omits it and takes the softmax of the losses standardized over the channels and divided by 5.

    Args:
      losses_without: the task's loss without each channel ``[channels]``.
      loss: the task's loss with all of them, a scalar.

    Returns:
      The weights ``[channels]``, which sum to 1.

    Raises:
      ValueError: the losses are not floating point or not one per channel, or `loss` is not a scalar.

    >>> channel_importance(jnp.log(jnp.array([1.0, 3.0])), 0.0).round(4)
    Array([0.25, 0.75], dtype=float32)
    """
    losses_without = _checks.floating("losses_without", losses_without, "[channels]", rank=1)
    loss = jnp.asarray(loss, losses_without.dtype)
    if loss.ndim:
        raise ValueError(f"loss: expected the one loss with all channels, a scalar, got {list(loss.shape)}.")
    return jax.nn.softmax(losses_without - loss)


def _pair(
    student: Array,
    teacher: Array,
    form: str = "features [batch, ...]",
    *,
    rank: int | None = None,
    names: tuple[str, str] = ("student", "teacher"),
) -> tuple[Array, Array]:
    """Returns two features of one shape in float32 or better."""
    least = 2 if rank is None else 0
    student, teacher = (
        _checks.floating(name, x, form, rank=rank, least_rank=least)
        for name, x in zip(names, (student, teacher), strict=True)
    )
    advice = "a regressor or a pooling before the loss makes the shapes equal"
    _checks.same_shape(student, teacher, advice, name=names[1], other=f"the {names[0]}")
    return student, teacher


def _per_channel(name: str, array: Array, feature: Array) -> Array:
    """Returns one number per channel, in the feature's rank."""
    array = jnp.asarray(array)
    expanded = (1,) * (feature.ndim - 1) + feature.shape[-1:]
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.shape not in (feature.shape[-1:], expanded):
        raise ValueError(
            f"{name}: expected floating-point {list(feature.shape[-1:])}, one for each channel of the features "
            f"{list(feature.shape)}, got {array.dtype}{list(array.shape)}."
        )
    return _checks.widen(array.reshape(expanded))
