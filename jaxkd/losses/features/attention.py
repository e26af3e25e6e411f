"""Attention losses: where, rather than with which channels, the teacher's feature map is active.

Feature maps are ``[batch, height, width, channels]``. Every function returns one value per example. Where a student's
and a teacher's map differ in spatial size, the larger is adaptive-average-pooled to the smaller; nothing else is ever
made to fit. This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["attention_transfer", "factor_transfer", "neuron_selectivity", "channel_kl"]


def attention_transfer(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    p: float | Float[Array, ""] = 2.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Attention transfer: ``mean (Q_s − Q_t)²`` over positions, ``Q = n(vec(mean_c |F|^p))``, ``n(x) = x/‖x‖₂``.

    Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2. The paper takes the norm of the
    difference; the authors' code, and this, the mean of its square over the positions, which the published weight of
    1000 goes with. Positions, not channels, are compared, so the channels may differ.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ.
      p: the power of the activations, > 0.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero map has no attention: Q is 0 there, with a zero gradient.

    Raises:
      ValueError: an input is not a floating-point feature map, the batches differ, or p is not positive.

    >>> peak = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(5.0)
    >>> attention_transfer(peak, jnp.ones((1, 2, 2, 8)))
    Array([0.25], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    if not isinstance(p, jax.core.Tracer) and p <= 0:
        raise ValueError(f"p: expected a positive power, got {p}.")
    (student, teacher), where = _keep(where, student, teacher)
    student, teacher = _match_size(student, teacher)
    values = jnp.mean((_attention(student, p) - _attention(teacher, p)) ** 2, axis=-1)
    return _drop(values, where)


def factor_transfer(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Factor transfer: ``mean |Q_s − Q_t|`` over positions, ``Q = n(vec(mean_c F²))``, ``n(x) = x/‖x‖₂``.

    Kim, Park & Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018. The maps
    are the factors: the teacher's from a paraphraser, the student's from a translator trained with it. The paper, and
    code that follows it, normalises the whole factor, channel by channel; this is the form of the common benchmarks,
    which compares the factors' attention, so that their channels may differ.

    Args:
      student: the student's factor ``[batch, height, width, channels]``.
      teacher: the teacher's, of the same batch; its channels, height and width may differ.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero map has no attention: Q is 0 there, with a zero gradient.

    Raises:
      ValueError: an input is not a floating-point feature map, or the batches differ.

    >>> peak = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(5.0)
    >>> factor_transfer(peak, jnp.ones((1, 2, 2, 8)))
    Array([0.5], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    (student, teacher), where = _keep(where, student, teacher)
    student, teacher = _match_size(student, teacher)
    student, teacher = _attention(student, 2), _attention(teacher, 2)
    # A student that agrees is to stay where it is. jnp.abs has slope 1 at 0; and the sign of a difference into which a
    # compiler has fused the divisions is that of a rounding error, which a comparison does not see.
    sign = jnp.where(student > teacher, 1, jnp.where(student < teacher, -1, 0))
    return _drop(jnp.mean(sign * (student - teacher), axis=-1), where)


def neuron_selectivity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Neuron selectivity transfer: the squared MMD between the student's and the teacher's channels.

    ``mean k(t_c, t_c') + mean k(s_c, s_c') − 2 mean k(s_c, t_c')`` over all pairs of channels, where a channel is the
    unit vector of its activations over the positions and ``k(a, b) = ⟨a, b⟩²``.

    Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, with the polynomial
    kernel of degree 2 and c = 0 that works best there. The term of the teacher alone has no gradient for the student
    but makes the value a distance; code without it can be negative.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero channel is the zero vector, with a zero gradient.

    Raises:
      ValueError: an input is not a floating-point feature map, or the batches differ.

    >>> left = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    >>> neuron_selectivity(left, left[:, :, ::-1])
    Array([2.], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    (student, teacher), where = _keep(where, student, teacher)
    student, teacher = (_channels(x) for x in _match_size(student, teacher))
    if student.shape[1] <= max(student.shape[2], teacher.shape[2]):
        # The kernel's feature is the matrix aaᵀ, so this is the distance of two means: fewer positions than channels.
        difference = _gram(student, student, "bpc,bqc->bpq") / student.shape[2]
        difference -= _gram(teacher, teacher, "bpc,bqc->bpq") / teacher.shape[2]
        return _drop(jnp.sum(difference**2, axis=(1, 2)), where)
    among = [_gram(a, b, "bpc,bpd->bcd") for a, b in ((teacher, teacher), (student, student), (student, teacher))]
    teachers, students, between = (jnp.mean(gram**2, axis=(1, 2)) for gram in among)
    return _drop(teachers + students - 2 * between, where)


def channel_kl(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels"],
    *,
    temperature: float | Float[Array, ""] = 4.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Channel-wise distillation: ``T²/C Σ_c KL(p_t,c ‖ p_s,c)``, ``p_c`` the softmax of ``F_c/T`` over the positions.

    Shu et al., "Channel-Wise Knowledge Distillation for Dense Prediction", ICCV 2021, section 3. The features may be
    activations (a 1 × 1 convolution brings the student to the teacher's channels) or a segmenter's logits. As in the
    authors' code the result is the mean over the channels; T is 4 for features in the paper.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch and channels; its height and width may differ.
      temperature: T > 0, a scalar.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, in nats times T².

    Raises:
      ValueError: an input is not a floating-point feature map, batch or channels differ, or T is not positive.

    >>> student, teacher = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1), jnp.array([3.0, 0.0]).reshape(1, 2, 1, 1)
    >>> channel_kl(student, teacher, temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    if student.shape[3] != teacher.shape[3]:
        raise ValueError(
            f"teacher: expected the {student.shape[3]} channels of the student's {list(student.shape)}, got "
            f"{list(teacher.shape)}. A 1 × 1 convolution maps one network's channels to the other's."
        )
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # NaN is not
        raise ValueError(f"temperature: expected a positive number, got {temperature}.")
    (student, teacher), where = _keep(where, student, teacher)
    student, teacher = _match_size(student, teacher)
    batch, height, width, channels = student.shape
    log_student, log_teacher = (
        jax.nn.log_softmax(x.reshape(batch, height * width, channels) / temperature, axis=1) for x in (student, teacher)
    )
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=1)
    return _drop(temperature**2 * jnp.mean(divergence, axis=-1), where)


def _attention(features: Array, p: float | Array) -> Array:
    """``[batch, height, width, channels]`` to a unit vector over positions, ``[batch, height · width]``."""
    if not isinstance(p, jax.core.Tracer) and p == 2:
        energy = features**2
    else:
        energy = jnp.where(features == 0, 0, jnp.abs(jnp.where(features == 0, 1, features)) ** p)
    batch, height, width, _ = features.shape
    attention = jnp.mean(energy, axis=-1).reshape(batch, height * width)
    square = jnp.sum(attention**2, axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))  # an all-zero map: sqrt has no slope at 0
    return attention / jnp.maximum(norm, 1e-12)


def _channels(features: Array) -> Array:
    """``[batch, height, width, channels]`` to ``[batch, height · width, channels]`` whose columns are unit vectors."""
    batch, height, width, channels = features.shape
    columns = features.reshape(batch, height * width, channels)
    square = jnp.sum(columns**2, axis=1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))  # an all-zero channel: sqrt has no slope at 0
    return columns / jnp.maximum(norm, 1e-12)


def _gram(a: Array, b: Array, axes: str) -> Array:
    return jnp.einsum(axes, a, b, precision=jax.lax.Precision.HIGHEST)


def _maps(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Two feature maps of one batch, in float32 or better."""
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    for name, x in (("student", student), ("teacher", teacher)):
        if x.ndim != 4:
            raise ValueError(f"{name}: expected a feature map [batch, height, width, channels], got {list(x.shape)}.")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"teacher: expected the student's batch of {student.shape[0]}, got {teacher.shape[0]}.")
    return student, teacher


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


def _upcast(name: str, feature: Array) -> Array:
    feature = jnp.asarray(feature)
    if not jnp.issubdtype(feature.dtype, jnp.floating) or feature.ndim < 2:
        raise ValueError(f"{name}: expected floating-point [batch, ...], got {feature.dtype}{list(feature.shape)}.")
    return feature.astype(jnp.promote_types(feature.dtype, jnp.float32))


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
