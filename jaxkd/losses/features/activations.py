"""Activation losses: the student's activations are to be the teacher's, one by one.

A feature is ``[batch, ..., channels]``, a map ``[batch, height, width, channels]``. Every function returns one value
per example, with the sum or the mean over a feature that the method was published with. This file needs only jax and
can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

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
    """Hint regression: ``mean (F_s − F_t)²`` over all elements of an example's feature.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, with the mean of popular code in place
    of the paper's ½ sum (a constant factor). The student's feature has the teacher's channels here;
    `jaxkd.objectives.hint` learns the regressor that makes it so.

    Args:
      student: a feature ``[batch, ...]``; a map ``[batch, height, width, channels]`` may differ in height and width.
      teacher: a feature of the same rank, batch and channels.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: batch, rank or channels differ, or a dtype is not floating point.

    >>> hint_mse(jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)))
    Array([1., 1.], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.ndim == teacher.ndim == 4 and student.shape[::3] == teacher.shape[::3]:
        student, teacher = _match_size(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)} (the height and width of a map may differ), "
            f"got {list(teacher.shape)}. jaxkd.objectives.hint learns a regressor between different channels."
        )
    (student, teacher), where = _keep(where, student, teacher)
    values = jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))
    return _drop(values, where)


def activation_boundary(
    student: Float[Array, "batch *feature"],
    teacher: Float[Array, "batch *feature"],
    *,
    margin: float | Float[Array, ""] = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Activation boundaries: ``Σ (s+m)²·1(s > −m, t ≤ 0) + (s−m)²·1(s ≤ m, t > 0)`` over an example's feature.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
    section 3: where the teacher's neuron is off the student's is to be below −m, where it is on above m. Both
    features are those before the ReLU. The sum is that of the authors' code, which then divides by the batch and, for
    its own networks, by a constant; re-implementations that take the mean are smaller by the size of the feature.

    Args:
      student: a feature before the activation function ``[batch, ...]``.
      teacher: the same of the teacher; only its sign counts, so that it has no gradient.
      margin: m, how far from 0 the student has to be, at least 0.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. A student that equals its teacher still pays for what is within the margin.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or the margin is negative.

    >>> activation_boundary(jnp.array([[0.5, -3.0, 0.5, 3.0]]), jnp.array([[-1.0, -1.0, 1.0, 1.0]]))
    Array([2.5], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    _same_shape("teacher", teacher, "student", student)
    if not isinstance(margin, jax.core.Tracer) and not margin >= 0:
        raise ValueError(f"margin: expected at least 0, got {margin}.")
    (student, teacher), where = _keep(where, student, teacher)
    off = jnp.maximum(student + margin, 0)
    on = jnp.minimum(student - margin, 0)
    values = jnp.sum(jnp.where(teacher > 0, on, off) ** 2, axis=tuple(range(1, student.ndim)))
    return _drop(values, where)


def overhaul(
    student: Float[Array, "batch *feature channels"],
    teacher: Float[Array, "batch *feature channels"],
    margin: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Partial L2 behind a margin ReLU: ``Σ (s−t')²·1(s > t' or t' > 0)`` with ``t' = max(t, m)``, over a feature.

    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3: what the teacher's
    ReLU would cut off is a bound from above for the student, not a target. Both features are those before the ReLU,
    the student's behind a 1 × 1 convolution with batch normalisation. As in the authors' code, which then weights
    the layers by powers of ½ and divides by the batch and by 1000.

    Args:
      student: a feature before the activation function ``[batch, ..., channels]``.
      teacher: the same of the teacher.
      margin: m of each channel, from `overhaul_margin`: ``[channels]``, or of the features' rank with 1 on every other
        axis. The gradient that it and the teacher get is the formula's.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: shapes differ, the margin is not one per channel, or a dtype is not floating point.

    >>> overhaul(jnp.array([[2.0, -3.0, 0.0]]), jnp.array([[1.0, -1.0, -1.0]]), jnp.full(3, -0.5))
    Array([1.25], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    _same_shape("teacher", teacher, "student", student)
    margin = _per_channel("margin", margin, student)
    (student, teacher), where = _keep(where, student, teacher)
    target = jnp.maximum(teacher, margin)
    difference = jnp.where((student > target) | (target > 0), student - target, 0)
    return _drop(jnp.sum(difference**2, axis=tuple(range(1, student.ndim))), where)


def overhaul_margin(mean: Float[Array, " channels"], std: Float[Array, " channels"]) -> Float[Array, " channels"]:
    """The margin of `overhaul`: a Gaussian's expectation below 0, ``E[x | x < 0] = μ − σ φ(μ/σ)/Φ(−μ/σ)``.

    Heo et al. 2019, the margin ReLU of section 3, solved for the output of a batch normalisation, whose bias is μ and
    whose scale is σ. As in the authors' code the margin is −3σ where ``Φ(−μ/σ) ≤ 0.001``: the channel is hardly ever
    negative there, and the quotient one of two small numbers.

    Args:
      mean: the teacher's batch normalisation's bias ``[channels]``.
      std: its scale ``[channels]``, whose absolute value is σ.

    Returns:
      The margins ``[channels]``, none of them positive. σ = 0 gives the limit, min(μ, 0).

    Raises:
      ValueError: the shapes differ, or a dtype is not floating point.

    >>> overhaul_margin(jnp.array([0.0, 4.0, -2.0]), jnp.array([1.0, 1.0, 0.0])).round(4)
    Array([-0.7979, -3.    , -2.    ], dtype=float32)
    """
    mean, std = _upcast("mean", mean, rank=1), _upcast("std", std, rank=1)
    _same_shape("std", std, "mean", mean)
    std = std * jnp.sign(std)  # jnp.abs has slope 1 at 0
    # Below −40σ the correction is less than any float; above 4σ Φ is below 0.001. Outside there is no quotient to take.
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
    """Hierarchical context loss: `hint_mse` of the maps and of their averages in 4 × 4, 2 × 2 and one window.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.4. The paper has a picture of it;
    weights and levels are those of the authors' code: the map has weight 1, each level pooled from a larger map half
    the weight of the one before, and the sum is divided by that of the weights. A level that is not below the height,
    which alone decides, is left out and takes no weight: 8 rows have the weights 1, ½, ¼, ⅛, 4 rows 1, ½, ¼, and one
    row only 1.

    Args:
      student: a feature map ``[batch, height, width, channels]``, fused from the stages below.
      teacher: a feature map of the same shape.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: an input is not a floating-point feature map, or shapes differ.

    >>> hierarchical_context(jnp.eye(2).reshape(1, 2, 2, 1), jnp.zeros((1, 2, 2, 1))).round(4)
    Array([0.4167], dtype=float32)
    """
    student, teacher = _upcast("student", student, rank=4), _upcast("teacher", teacher, rank=4)
    _same_shape("teacher", teacher, "student", student)
    (student, teacher), where = _keep(where, student, teacher)
    difference = student - teacher  # averages are linear: pooled once, not once for each network
    height, weights = student.shape[1], 1.0
    values = jnp.mean(difference**2, axis=(1, 2, 3))
    for index, level in enumerate(level for level in (4, 2, 1) if level < height):
        pooled = _adaptive_mean(_adaptive_mean(difference, 1, level), 2, level)
        values += 0.5 ** (index + 1) * jnp.mean(pooled**2, axis=(1, 2, 3))
        weights += 0.5 ** (index + 1)
    return _drop(values / weights, where)


def gaussian_nll(
    mean: Float[Array, "batch *feature channels"],
    target: Float[Array, "batch *feature channels"],
    variance: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Variational information distillation: the mean of ``½ [(μ−t)²/σ² + log σ²]`` over an example's feature.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, section 2: the
    negative log-likelihood, up to a constant, of the teacher's feature under a Gaussian around what is predicted from
    the student's. Its variance, one per channel, is meant to be trained with the student, as ``softplus(a) + 1e-5`` in
    the authors' code; a variance that never moves leaves a scaled mean squared error. The paper sums over a feature
    where popular code, and this, has the mean.

    Args:
      mean: μ, the prediction from the student's feature ``[batch, ..., channels]``.
      target: the teacher's feature, of the same shape.
      variance: σ² of each channel, ``[channels]`` or of the features' rank with 1 on every other axis. It has to be
        positive; at 0 a Gaussian has no density, and the result is infinite or NaN.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats per element; negative where the variance is small and right.

    Raises:
      ValueError: shapes differ, the variance is not one per channel, or a dtype is not floating point.

    >>> gaussian_nll(jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 0.0]]), jnp.array([4.0, 1.0])).round(4)
    Array([0.5966], dtype=float32)
    """
    mean, target = _upcast("mean", mean), _upcast("target", target)
    _same_shape("target", target, "mean", mean)
    variance = _per_channel("variance", variance, mean)
    (mean, target), where = _keep(where, mean, target)
    likelihood = ((mean - target) ** 2 / variance + jnp.log(variance)) / 2
    return _drop(jnp.mean(likelihood, axis=tuple(range(1, mean.ndim))), where)


def channel_weighted_mse(
    student: Float[Array, "batch *feature channels"],
    teacher: Float[Array, "batch *feature channels"],
    weights: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Channel-weighted features: ``Σ_c w_c ‖F_s,c − F_t,c‖²``, the norm over a channel's positions.

    Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks", ICLR 2019,
    section 3. The authors' code halves the sum and multiplies it by the channels over the positions.

    Args:
      student: a feature ``[batch, ..., channels]``.
      teacher: the same feature of the network that the student started from.
      weights: of each channel, from `channel_importance`: ``[channels]`` or of the features' rank with 1 on every
        other axis.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: shapes differ, the weights are not one per channel, or a dtype is not floating point.

    >>> channel_weighted_mse(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.array([0.75, 0.25]))
    Array([1.75], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    _same_shape("teacher", teacher, "student", student)
    weights = _per_channel("weights", weights, student)
    (student, teacher), where = _keep(where, student, teacher)
    return _drop(jnp.sum(weights * (student - teacher) ** 2, axis=tuple(range(1, student.ndim))), where)


def channel_importance(losses_without: Float[Array, " channels"], loss: Float[Array, ""]) -> Float[Array, " channels"]:
    """The weights of `channel_weighted_mse`: ``softmax(L_{without c} − L)`` over the channels.

    Li et al. 2019, section 3: a channel matters by how much the task's loss rises when its filter is set to zero. A
    softmax does not see L, which is subtracted from all. The authors' code leaves it out and takes the softmax of the
    losses standardised over the channels and divided by 5.

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
    losses_without = _upcast("losses_without", losses_without, rank=1)
    loss = jnp.asarray(loss, losses_without.dtype)
    if loss.ndim:
        raise ValueError(f"loss: expected the one loss with all channels, a scalar, got {list(loss.shape)}.")
    return jax.nn.softmax(losses_without - loss)


def _match_size(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Pools, on each axis, the larger map to the smaller."""
    for axis in (1, 2):
        size = min(student.shape[axis], teacher.shape[axis])
        student, teacher = _adaptive_mean(student, axis, size), _adaptive_mean(teacher, axis, size)
    return student, teacher


def _adaptive_mean(x: Array, axis: int, size: int) -> Array:
    """Means over windows ⌊iN/n⌋ to ⌈(i+1)N/n⌉ along one axis, as PyTorch's adaptive average pooling has them."""
    full = x.shape[axis]
    if full == size:
        return x
    if full % size == 0:
        return jnp.mean(x.reshape(*x.shape[:axis], size, full // size, *x.shape[axis + 1 :]), axis=axis + 1)
    bounds = [(i * full // size, -(-(i + 1) * full // size)) for i in range(size)]
    windows = [[(start <= j < stop) / (stop - start) for j in range(full)] for start, stop in bounds]
    pooled = jnp.tensordot(jnp.array(windows, x.dtype), x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(pooled, 0, axis)


def _upcast(name: str, feature: Array, rank: int | None = None) -> Array:
    """To float32 or better. `rank`: 4 for a map, 1 for one number per channel; else at least ``[batch, ...]``."""
    feature = jnp.asarray(feature)
    fits = feature.ndim >= 2 if rank is None else feature.ndim == rank
    if not jnp.issubdtype(feature.dtype, jnp.floating) or not fits:
        shape = {None: "[batch, ...]", 1: "[channels]", 4: "[batch, height, width, channels]"}[rank]
        raise ValueError(f"{name}: expected floating-point {shape}, got {feature.dtype}{list(feature.shape)}.")
    return feature.astype(jnp.promote_types(feature.dtype, jnp.float32))


def _same_shape(name: str, array: Array, other: str, expected: Array) -> None:
    if array.shape != expected.shape:
        raise ValueError(
            f"{name}: expected the shape {list(expected.shape)} of {other}, got {list(array.shape)}. Nothing is "
            "broadcast; a regressor or a pooling in front of the loss makes them equal."
        )


def _per_channel(name: str, array: Array, feature: Array) -> Array:
    """One number per channel, in the feature's rank."""
    array = jnp.asarray(array)
    expanded = (1,) * (feature.ndim - 1) + feature.shape[-1:]
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.shape not in (feature.shape[-1:], expanded):
        raise ValueError(
            f"{name}: expected floating-point {list(feature.shape[-1:])}, one for each channel of the features "
            f"{list(feature.shape)}, got {array.dtype}{list(array.shape)}."
        )
    return array.reshape(expanded).astype(jnp.promote_types(array.dtype, jnp.float32))


def _keep(where: Array | None, *features: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Zeros the examples that do not count before anything nonlinear can see them."""
    if where is None:
        return features, None
    where = jnp.asarray(where)
    shape = features[0].shape[:1]
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"where: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return tuple(jnp.where(jnp.expand_dims(where, tuple(range(1, x.ndim))), x, 0) for x in features), where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
