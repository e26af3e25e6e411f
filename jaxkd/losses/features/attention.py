"""Attention losses: where a feature map is active, rather than in which channels.

Where the maps of student and teacher differ in spatial size, the larger is adaptive-average-pooled to the smaller;
other sizes have to fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

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
    """Mean squared difference of normalized spatial attention maps.

    Also known as: AT (attention transfer).

    ``mean (Q_s − Q_t)²`` over positions, ``Q = n(vec(mean_c |F|^p))``, ``n(x) = x/‖x‖₂``. Zagoruyko & Komodakis,
    "Paying More Attention to Attention", ICLR 2017, equation 2. The paper takes the norm of the difference; the
    authors' code, and this, takes the mean of its square over the positions, which the published weight of 1000 belongs
    to. Positions, not channels, are compared, so the channels may differ.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ.
      p: power of the activations, > 0.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero map has no attention: Q and its gradient are 0 there.

    Raises:
      ValueError: an input is not a floating-point feature map, the batches differ, or p is not positive.

    >>> peak = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(5.0)
    >>> attention_transfer(peak, jnp.ones((1, 2, 2, 8)))
    Array([0.25], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    _checks.positive("p", p)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    student, teacher = _numerics.match_size(student, teacher)
    values = jnp.mean((_attention(student, p) - _attention(teacher, p)) ** 2, axis=-1)
    return _numerics.mask_values(values, where)


def factor_transfer(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean absolute difference of the normalized attention of two factors.

    Also known as: FT (factor transfer).

    ``mean |Q_s − Q_t|`` over positions, ``Q = n(vec(mean_c F²))``, ``n(x) = x/‖x‖₂``. Kim, Park & Kwak, "Paraphrasing
    Complex Network: Network Compression via Factor Transfer", NeurIPS 2018. The maps are the factors: the teacher's
    from a paraphraser, the student's from a translator trained with it. The paper, and code that follows it, normalizes
    the whole factor, channel by channel; this is the form of the common benchmarks, which compares the factors'
    attention, so that their channels may differ.

    Args:
      student: the student's factor ``[batch, height, width, channels]``.
      teacher: the teacher's factor, of the same batch; its channels, height and width may differ.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero map has no attention: Q and its gradient are 0 there.

    Raises:
      ValueError: an input is not a floating-point feature map, or the batches differ.

    >>> peak = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(5.0)
    >>> factor_transfer(peak, jnp.ones((1, 2, 2, 8)))
    Array([0.5], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    student, teacher = _numerics.match_size(student, teacher)
    student, teacher = _attention(student, 2), _attention(teacher, 2)
    # A student equal to its teacher must have no gradient. jnp.abs has slope 1 at 0, and where a compiler fuses the
    # normalization into the difference, the sign is that of a rounding error; a comparison is exact.
    sign = jnp.where(student > teacher, 1, jnp.where(student < teacher, -1, 0))
    return _numerics.mask_values(jnp.mean(sign * (student - teacher), axis=-1), where)


def neuron_selectivity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared maximum mean discrepancy between the channels of two maps.

    Also known as: NST (neuron selectivity transfer), MMD with a polynomial kernel.

    ``mean k(t_c, t_c') + mean k(s_c, s_c') − 2 mean k(s_c, t_c')`` over all pairs of channels, where a channel is the
    unit vector of its activations over the positions and ``k(a, b) = ⟨a, b⟩²``. Huang & Wang, "Like What You Like:
    Knowledge Distill via Neuron Selectivity Transfer", 2017, with the polynomial kernel of degree 2 and c = 0 that
    works best there. The term of the teacher alone has no gradient for the student but makes the value a distance; code
    without it can be negative.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero channel stays the zero vector, with gradient 0.

    Raises:
      ValueError: an input is not a floating-point feature map, or the batches differ.

    >>> left = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    >>> neuron_selectivity(left, left[:, :, ::-1])
    Array([2.], dtype=float32)
    """
    student, teacher = _maps(student, teacher)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    student, teacher = (_channels(x) for x in _numerics.match_size(student, teacher))
    if student.shape[1] <= max(student.shape[2], teacher.shape[2]):
        # The kernel is the inner product of the matrices aaᵀ, so the MMD is the distance between their means. With
        # fewer positions than channels, these are smaller than the Gram matrices of the channels.
        difference = _numerics.einsum("bpc,bqc->bpq", student, student) / student.shape[2]
        difference -= _numerics.einsum("bpc,bqc->bpq", teacher, teacher) / teacher.shape[2]
        return _numerics.mask_values(jnp.sum(difference**2, axis=(1, 2)), where)
    among = [
        _numerics.einsum("bpc,bpd->bcd", a, b) for a, b in ((teacher, teacher), (student, student), (student, teacher))
    ]
    teachers, students, between = (jnp.mean(gram**2, axis=(1, 2)) for gram in among)
    return _numerics.mask_values(teachers + students - 2 * between, where)


def channel_kl(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels"],
    *,
    temperature: float | Float[Array, ""] = 4.0,
    where: Bool[Array, " batch"] | Bool[Array, "batch height width"] | None = None,
) -> Float[Array, " batch"]:
    """KL divergence between each channel's softmax over the positions.

    Also known as: CWD (channel-wise distillation).

    ``T²/C Σ_c KL(p_t,c ‖ p_s,c)``, ``p_c`` the softmax of ``F_c/T`` over the positions. Shu et al., "Channel-Wise
    Knowledge Distillation for Dense Prediction", ICCV 2021, section 3. The features may be activations (a 1 × 1
    convolution maps the student's to the teacher's channels) or a segmenter's logits. As in the authors' code the
    result is the mean over the channels; T is 4 for features in the paper. The authors' weight for logits is 3 at
    T = 4; mmrazor's configurations have T = 1 with 5 for logits and 10 for a pyramid of features.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch and channels; its height and width may differ. A position that is
        ``-inf`` for both adds nothing.
      temperature: T > 0, a scalar.
      where: mask, True for the examples to include ``[batch]``, or for the student's positions ``[batch, height,
        width]``, such as those that are not void. Each softmax is over the included positions; where the student's map
        is pooled, over the windows that are included as a whole.

    Returns:
      One value per example ``[batch]``, in nats times T². It is infinite where the student excludes a position that
      the teacher does not, with finite gradients.

    Raises:
      ValueError: an input is not a floating-point feature map, batch or channels differ, there is one position, or T is
        not positive.

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
    scale = _checks.temperature(temperature, student.dtype)
    where = _checks.mask(where, student.shape[:1], finer=student.shape[:3])
    student, teacher, where = _pooled_scores(student, teacher, where)
    advice = "hint_mse compares pooled features, soft_target_kl logits"
    _checks.several("student", student, student.shape[-1], "positions", advice)
    softened = (_numerics.soften(x, scale) for x in (teacher, student))
    return _numerics.mask_values(scale**2 * jnp.mean(_numerics.softmax_kl_finite(*softened), axis=-1), where)


def _pooled_scores(student: Array, teacher: Array, where: Array | None) -> tuple[Array, Array, Array | None]:
    """Returns maps of one size ``[batch, channels, positions]``, and the mask.

    A masked position is excluded as one of ``-inf`` is. An average of which one value is ``-inf`` is ``-inf``; the
    windows' weights of 0 would make it NaN elsewhere. A sum of several ``finfo.min``, a mask, would overflow.
    """
    least = _numerics.lowest(student.dtype)
    student, teacher, where, positions = _numerics.mask_maps(where, student, teacher)
    excluded = _numerics.match_size(*((x == -jnp.inf).astype(x.dtype) for x in (student, teacher)))
    finite = _numerics.match_size(*(jnp.where(x == -jnp.inf, 0, jnp.maximum(x, least)) for x in (student, teacher)))
    maps = [jnp.where(share > 0, -jnp.inf, x) for share, x in zip(excluded, finite, strict=True)]
    if positions is not None:
        maps = [jnp.where(positions[..., None], x, -jnp.inf) for x in maps]
    student, teacher = (jnp.moveaxis(x, 3, 1) for x in maps)
    batch, channels, height, width = student.shape
    return student.reshape(batch, channels, height * width), teacher.reshape(batch, channels, height * width), where


def _attention(features: Array, p: float | Array) -> Array:
    """Returns attention as unit vectors over positions ``[batch, height · width]``."""
    if not isinstance(p, jax.core.Tracer) and p == 2:
        energy = features**2
    else:
        energy = jnp.where(features == 0, 0, jnp.abs(jnp.where(features == 0, 1, features)) ** p)
    batch, height, width, _ = features.shape
    return _numerics.unit(jnp.mean(energy, axis=-1).reshape(batch, height * width))


def _channels(features: Array) -> Array:
    """Returns ``[batch, height · width, channels]`` whose columns are unit vectors."""
    batch, height, width, channels = features.shape
    return _numerics.unit(features.reshape(batch, height * width, channels), axis=1)


def _maps(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Returns two feature maps of one batch in float32 or better."""
    form = "maps [batch, height, width, channels]"
    student, teacher = (
        _checks.floating("student", student, form, rank=4),
        _checks.floating("teacher", teacher, form, rank=4),
    )
    _checks.same_batch(student, teacher)
    return student, teacher
