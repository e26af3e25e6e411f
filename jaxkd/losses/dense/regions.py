"""Region losses: the statistics of the features in each region of an image, and how alike the regions are.

Maps are ``[batch, height, width, channels]``, regions are masks ``[batch, height, width, n]``, one for each class or
part; they may overlap and be empty. This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["region_moments", "region_affinity"]


def region_moments(
    features: Float[Array, "batch height width channels"],
    regions: Bool[Array, "batch height width n"] | Float[Array, "batch height width n"],
) -> Float[Array, "batch n 3 channels"]:
    """Mean μ, variance σ² and skewness ``E[((x − μ) / σ)³]`` of each channel over the positions of each region.

    Hou et al., "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020, section 3: what stands
    for a region there. The moments are those of the population (divided by the number of positions).

    Args:
      features: a feature map ``[batch, height, width, channels]``.
      regions: True at the positions of each region ``[batch, height, width, n]``, or a weight of each position, not
        negative.

    Returns:
      The three moments, in this order, of each region ``[batch, n, 3, channels]``. Those of an empty region are 0, and
      so is the skewness of values that do not vary (a σ up to 1e-12), such as that of one position.

    Raises:
      ValueError: the features are no floating-point map, or the regions no masks of its size.

    >>> features, regions = jnp.array([0.0, 0.0, 3.0, 7.0]).reshape(1, 2, 2, 1), jnp.array([True, True, True, False])
    >>> region_moments(features, regions.reshape(1, 2, 2, 1)).ravel().round(4)
    Array([1.    , 2.    , 0.7071], dtype=float32)
    """
    features, regions = _upcast("features", features), jnp.asarray(regions)
    floating = jnp.issubdtype(regions.dtype, jnp.floating)
    if not floating and regions.dtype != jnp.bool_:
        raise ValueError(f"regions: expected masks, bool or floating point, got {regions.dtype}{list(regions.shape)}.")
    _check_regions(regions, features)
    return _moments(features, regions.astype(jnp.promote_types(regions.dtype, features.dtype)) if floating else regions)


def region_affinity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels_t"],
    regions: Bool[Array, "batch height width n"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Inter-region affinity (IntRA-KD): ``mean (C_s − C_t)²`` over moments and pairs of regions.

    ``C_r[i, j]`` is the cosine between the r-th moments of regions i and j, r of mean, variance and skewness as in
    `region_moments`: a graph of how alike the regions are, which does not depend on the number of channels. Hou et
    al., "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020, section 3. The mean runs over
    the three moments and all ordered pairs of regions that are not empty, each with itself included, so that images
    with few classes weigh no less.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same height and width; its channels may differ.
      regions: True at the positions of each region ``[batch, height, width, n]``. The paper's are those of the labels,
        widened by smoothing.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 without any region. A moment of zeros (of a norm up to 1e-12, a skewness up
      to its rounding) has cosine 0 with all.

    Raises:
      ValueError: batch, height or width differ, a dtype is not floating point, or the regions are no bool masks.

    >>> student, teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]]), jnp.ones((1, 1, 2, 3))
    >>> region_affinity(student, teacher, jnp.eye(2, dtype=bool)[None, None]).round(4)  # the means: (0 − 1)² twice of 4
    Array([0.1667], dtype=float32)
    """
    student, teacher, regions = _upcast("student", student), _upcast("teacher", teacher), jnp.asarray(regions)
    if student.shape[:3] != teacher.shape[:3]:
        raise ValueError(
            f"teacher: expected the student's [batch, height, width] {list(student.shape[:3])}, got "
            f"{list(teacher.shape[:3])} of {list(teacher.shape)}. The regions are positions of both maps; resize one."
        )
    if regions.dtype != jnp.bool_:
        raise ValueError(f"regions: expected bool masks, got {regions.dtype}{list(regions.shape)}.")
    _check_regions(regions, student)
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_ or where.shape != student.shape[:1]:
            raise ValueError(
                f"where: expected bool{list(student.shape[:1])}, True for what counts, got {where.dtype}"
                f"{list(where.shape)}."
            )
        student, teacher, regions = (jnp.where(where[:, None, None, None], x, 0) for x in (student, teacher, regions))
        regions = regions.astype(bool)
    some = jnp.any(regions, axis=(1, 2))
    # The moments of an empty region are 0, and so are its cosines in both networks: only the count has to leave it out.
    squares = (_affinity(student, regions) - _affinity(teacher, regions)) ** 2
    return jnp.sum(squares, axis=(1, 2, 3)) / (3 * jnp.maximum(jnp.sum(some, axis=1), 1).astype(squares.dtype) ** 2)


def _affinity(features: Array, regions: Array) -> Array:
    """Cosines between the regions ``[batch, 3, n, n]``."""
    moments = _moments(features, regions)
    square = jnp.sum(moments**2, axis=-1, keepdims=True)
    # A skewness has no unit; of symmetric values, it is 0 but for rounding errors, whose direction would be noise.
    least = jnp.array([1e-12, 1e-12, 64 * float(jnp.finfo(moments.dtype).eps)], moments.dtype)
    none = square <= least[None, None, :, None] ** 2
    unit = jnp.where(none, 0, moments / jnp.sqrt(jnp.where(none, 1, square)))
    return jnp.einsum("birc,bjrc->brij", unit, unit, precision=jax.lax.Precision.HIGHEST)


def _moments(features: Array, regions: Array) -> Array:
    """One region at a time, and again in the backward pass: no ``[n, height, width, channels]`` array exists."""

    @jax.checkpoint
    def of(region: Array) -> Array:
        region = region[..., None]
        inside = region if region.dtype == jnp.bool_ else region > 0
        weight = region.astype(features.dtype)
        total = jnp.sum(weight, axis=(1, 2), keepdims=True)
        total = jnp.where(total > 0, total, 1)
        # Moments around the largest value first: the mean of equal values may be off by a rounding, which for the
        # skewness would be a deviation as large as σ itself.
        top = jnp.max(jnp.where(inside, features, -jnp.inf), axis=(1, 2), keepdims=True)
        top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
        below = jnp.where(inside, features - top, 0)
        mean = jnp.sum(weight * below, axis=(1, 2), keepdims=True) / total
        centred = jnp.where(inside, below - mean, 0)
        variance = jnp.sum(weight * centred**2, axis=(1, 2), keepdims=True) / total
        varies = variance > 1e-24
        standard = jnp.where(varies, centred / jnp.sqrt(jnp.where(varies, variance, 1)), 0)
        skewness = (jnp.sum(weight * standard**3, axis=(1, 2), keepdims=True) / total)[:, 0, 0]
        some = jnp.any(inside, axis=(1, 2))
        return jnp.stack([jnp.where(some, (mean + top)[:, 0, 0], 0), variance[:, 0, 0], skewness], axis=1)

    return jnp.moveaxis(jax.lax.map(of, jnp.moveaxis(regions, -1, 0)), 0, 1)


def _check_regions(regions: Array, features: Array) -> None:
    if regions.ndim != 4 or regions.shape[:3] != features.shape[:3]:
        raise ValueError(
            f"regions: expected masks [batch, height, width, n] of the maps' {list(features.shape[:3])}, got "
            f"{list(regions.shape)}."
        )


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim != 4:
        raise ValueError(
            f"{name}: expected a floating-point map [batch, height, width, channels], got {x.dtype}{list(x.shape)}."
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
