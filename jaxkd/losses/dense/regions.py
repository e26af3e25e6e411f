"""Region losses: the moments of the features in each region, and their affinities.

Maps are ``[batch, height, width, channels]``, regions are masks ``[batch, height, width, n]``, one for each class or
part; they may overlap and be empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["region_moments", "region_affinity"]


_MAPS = "maps [batch, height, width, channels]"


def region_moments(
    features: Float[Array, "batch height width channels"],
    regions: Bool[Array, "batch height width n"] | Float[Array, "batch height width n"],
) -> Float[Array, "batch n 3 channels"]:
    """Returns the mean, variance and skewness of each channel in each region.

    Mean μ, variance σ² and skewness ``E[((x − μ) / σ)³]`` over the positions of the region. Hou et al., "Inter-Region
    Affinity Distillation for Road Marking Segmentation", CVPR 2020, section 3, represents a region by them. The moments
    are those of the population (divided by the number of positions).

    Args:
      features: a feature map ``[batch, height, width, channels]``.
      regions: True at the positions of each region ``[batch, height, width, n]``, or a non-negative weight of each
        position.

    Returns:
      The three moments, in this order, of each region ``[batch, n, 3, channels]``. Those of an empty region are 0, and
      so is the skewness of constant values (σ up to 1e-12), such as a single position.

    Raises:
      ValueError: the features are not a floating-point map, or the regions are not masks of its size.

    >>> features, regions = jnp.array([0.0, 0.0, 3.0, 7.0]).reshape(1, 2, 2, 1), jnp.array([True, True, True, False])
    >>> region_moments(features, regions.reshape(1, 2, 2, 1)).ravel().round(4)
    Array([1.    , 2.    , 0.7071], dtype=float32)
    """
    features, regions = _checks.floating("features", features, _MAPS, rank=4), jnp.asarray(regions)
    floating = jnp.issubdtype(regions.dtype, jnp.floating)
    if not floating and regions.dtype != jnp.bool_:
        raise ValueError(f"regions: expected masks, bool or floating point, got {regions.dtype}{list(regions.shape)}.")
    _check_regions(regions, features)
    return _moments(features, regions.astype(jnp.promote_types(regions.dtype, features.dtype)) if floating else regions)


def region_affinity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    regions: Bool[Array, "batch height_r width_r n"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of the cosines between regions' moments.

    Also known as: IntRA-KD (inter-region affinity knowledge distillation).

    ``mean (C_s − C_t)²`` over moments and pairs of regions. ``C_r[i, j]`` is the cosine between the r-th moments of
    regions i and j, r of mean, variance and skewness as in `region_moments`: a graph of the regions' similarity, which
    does not depend on the number of channels. Hou et al., "Inter-Region Affinity Distillation for Road Marking
    Segmentation", CVPR 2020, section 3. The mean runs over the three moments and all ordered pairs of regions that are
    not empty, including each with itself, so that images with few classes have the same weight.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ.
      regions: True at the positions of each region ``[batch, height_r, width_r, n]``. They may be of any size, such as
        the image's: each map has its own moments, in which a position has the share of its window that a region
        covers as its weight; and where the map is finer, the nearest position's region. In the paper they are the
        labels' regions, widened by smoothing.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 without any region. A moment of norm up to 1e-12 (a skewness up to its
      rounding error) has cosine 0 with all others.

    Raises:
      ValueError: the batches differ, a dtype is not floating point, or the regions are not boolean masks.

    >>> student, teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]]), jnp.ones((1, 1, 2, 3))
    >>> region_affinity(student, teacher, jnp.eye(2, dtype=bool)[None, None]).round(4)  # the means: (0 − 1)² twice of 4
    Array([0.1667], dtype=float32)
    """
    student, teacher = (_checks.floating(n, x, _MAPS, rank=4) for n, x in (("student", student), ("teacher", teacher)))
    regions = jnp.asarray(regions)
    _checks.same_batch(student, teacher)
    if regions.dtype != jnp.bool_ or regions.ndim != 4 or regions.shape[0] != student.shape[0]:
        raise ValueError(
            f"regions: expected bool masks [{student.shape[0]}, height, width, n], got {regions.dtype}"
            f"{list(regions.shape)}."
        )
    where = _checks.mask_or_ones(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    regions = regions & where[:, None, None, None]
    # An empty region has the moments, and hence the cosines, 0 in both networks: only the count has to exclude it.
    count = _numerics.count(jnp.any(regions, axis=(1, 2)), axis=1, dtype=student.dtype)
    squares = (_affinity(student, regions) - _affinity(teacher, regions)) ** 2
    return jnp.sum(squares, axis=(1, 2, 3)) / (3 * count**2)


def _affinity(features: Array, regions: Array) -> Array:
    """Returns the cosines between the moments of the regions ``[batch, 3, n, n]``."""
    moments = _moments(features, _resized(regions, features))
    # The skewness of symmetric values is a rounding error, whose direction would be noise; it has no unit.
    least = jnp.array([1e-12, 1e-12, 64 * float(jnp.finfo(moments.dtype).eps)], moments.dtype)
    unit, _ = _numerics.direction(moments, least=least[None, None, :, None])
    return _numerics.einsum("birc,bjrc->brij", unit, unit)


def _resized(regions: Array, features: Array) -> Array:
    """Returns each region's share of a map's positions; masks, if of one size."""
    for axis in (1, 2):
        full, size = regions.shape[axis], features.shape[axis]
        if full > size:
            regions = _numerics.adaptive_mean(regions.astype(features.dtype), axis, size)
        elif full < size:
            regions = jnp.take(regions, jnp.arange(size) * full // size, axis=axis)
    return regions


def _moments(features: Array, regions: Array) -> Array:
    """Returns the moments, one region at a time: no ``[n, height, width, channels]``."""

    @jax.checkpoint
    def of_region(region: Array) -> Array:
        region = region[..., None]
        inside = region if region.dtype == jnp.bool_ else region > 0
        weight = region.astype(features.dtype)
        total = jnp.sum(weight, axis=(1, 2), keepdims=True)
        total = jnp.where(total > 0, total, 1)
        # The moments are taken around the largest value, so that the deviations of equal values are exactly 0. A mean
        # that is off by a rounding error would give them a skewness of order 1.
        top = jnp.max(jnp.where(inside, features, -jnp.inf), axis=(1, 2), keepdims=True)
        top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
        below = jnp.where(inside, features - top, 0)
        mean = jnp.sum(weight * below, axis=(1, 2), keepdims=True) / total
        centered = jnp.where(inside, below - mean, 0)
        variance = jnp.sum(weight * centered**2, axis=(1, 2), keepdims=True) / total
        varies = variance > 1e-24
        standard = jnp.where(varies, centered / jnp.sqrt(jnp.where(varies, variance, 1)), 0)
        skewness = (jnp.sum(weight * standard**3, axis=(1, 2), keepdims=True) / total)[:, 0, 0]
        some = jnp.any(inside, axis=(1, 2))
        return jnp.stack([jnp.where(some, (mean + top)[:, 0, 0], 0), variance[:, 0, 0], skewness], axis=1)

    return jnp.moveaxis(jax.lax.map(of_region, jnp.moveaxis(regions, -1, 0)), 0, 1)


def _check_regions(regions: Array, features: Array) -> None:
    if regions.ndim != 4 or regions.shape[:3] != features.shape[:3]:
        raise ValueError(
            f"regions: expected masks [batch, height, width, n] of the maps' {list(features.shape[:3])}, got "
            f"{list(regions.shape)}."
        )
