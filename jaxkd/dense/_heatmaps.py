"""Heatmaps of points: drawn from coordinates, and read by their peaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from jaxkd._core import checks

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

SUBPIXEL = ("quarter", "parabola", "none")


class Peaks(NamedTuple):
    """The highest value of each heatmap.

    Attributes:
      points: the positions ``(x, y)`` in pixels of the image ``[..., joints, 2]``.
      scores: the values there ``[..., joints]``.
    """

    points: Float[Array, "*batch joints 2"]
    scores: Float[Array, "*batch joints"]


def draw_heatmaps(
    points: Float[Array, "*batch joints 2"],
    size: tuple[int, int],
    sigma: float = 1.0,
    *,
    stride: float = 4.0,
    joint_where: Bool[Array, "*batch joints"] | None = None,
) -> Float[Array, "*batch height width joints"]:
    """Draws a Gaussian around each point, with the value 1 at the point.

    ``exp(−‖c − p/stride‖² / 2σ²)`` at the center c = (j + ½, i + ½) of the position (i, j). Tompson et al., "Joint
    Training of a Convolutional Network and a Graphical Model for Human Pose Estimation", NeurIPS 2014, section 3.1. A
    point between the centers keeps its fraction, so that the highest position has less than 1.

    Args:
      points: positions ``(x, y)`` in pixels of the image ``[..., joints, 2]``.
      size: height and width of the heatmaps.
      sigma: standard deviation of the Gaussian, in positions of the heatmap.
      stride: pixels of the image between two positions.
      joint_where: mask, True for the joints to include ``[..., joints]``; the heatmap of any other is zero.

    Returns:
      Heatmaps ``[..., height, width, joints]``, float32.

    Raises:
      ValueError: the points or their mask have another shape, or a number is not positive.

    >>> draw_heatmaps(jnp.array([[6.0, 2.0]]), (2, 3))[..., 0].round(3)  # of the second position of the first row
    Array([[0.607, 1.   , 0.607],
           [0.368, 0.607, 0.368]], dtype=float32)
    """
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"points: expected positions [..., joints, 2], got {checks.shape(points)}.")
    if joint_where is not None and (joint_where.shape != points.shape[:-1] or joint_where.dtype != bool):
        raise ValueError(
            f"joint_where: expected bool{list(points.shape[:-1])}, a mask of the points, got "
            f"{checks.shape(joint_where)}."
        )
    if min(sigma, stride, *size) <= 0:
        raise ValueError(f"sigma, stride, size: expected positive numbers, got {sigma}, {stride}, {tuple(size)}.")
    points = points.astype(jnp.float32)
    if joint_where is not None:  # before any arithmetic: an unknown point may be NaN
        points = jnp.where(joint_where[..., None], points, 0)

    def profile(axis: int, length: int) -> Array:
        centers = jnp.expand_dims(jnp.arange(length) + 0.5, tuple(range(points.ndim - 1)))
        return jnp.exp(-jnp.square(centers - points[..., axis, None] / stride) / (2 * sigma**2))

    x, y = profile(0, size[1]), profile(1, size[0])
    if joint_where is not None:
        x = jnp.where(joint_where[..., None], x, 0)
    return jnp.einsum("...jh,...jw->...hwj", y, x)


def peaks(
    heatmaps: Float[Array, "*batch height width joints"], *, stride: float = 4.0, subpixel: str = "quarter"
) -> Peaks:
    """Returns the points of the highest values of heatmaps.

    The first of equal values counts. Between positions, in each direction:

    ============  ==================================================================================================
    ``quarter``   a quarter of a position toward the higher of the two neighbors; Newell, Yang & Deng, "Stacked
                  Hourglass Networks for Human Pose Estimation", ECCV 2016
    ``parabola``  the maximum of the parabola through the logarithms of the three values, which is exact for a
                  Gaussian; Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation",
                  CVPR 2020, by direction and without their smoothing
    ``none``      the center of the highest position
    ============  ==================================================================================================

    A highest position at the edge is not shifted across that edge's direction.

    Args:
      heatmaps: heatmaps ``[..., height, width, joints]``.
      stride: pixels of the image between two positions.
      subpixel: the shift between positions.

    Returns:
      `Peaks`: points in pixels of the image, whose first pixel has its center at (0.5, 0.5), and scores; float32.

    Raises:
      ValueError: the heatmaps have fewer than three axes, or there is no such shift.

    >>> found = peaks(draw_heatmaps(jnp.array([[9.0, 14.5]]), (8, 8)), subpixel="parabola")
    >>> found.points.round(3), found.scores.round(3)
    (Array([[ 9. , 14.5]], dtype=float32), Array([0.962], dtype=float32))
    """
    if heatmaps.ndim < 3:
        raise ValueError(f"heatmaps: expected [..., height, width, joints], got {checks.shape(heatmaps)}.")
    checks.known(subpixel, SUBPIXEL, "peaks, subpixel")
    height, width = heatmaps.shape[-3:-1]
    maps = jnp.moveaxis(heatmaps.astype(jnp.float32), -1, -3)  # [..., joints, height, width]
    flat = maps.reshape(*maps.shape[:-2], height * width)
    best = jnp.argmax(flat, axis=-1)
    scores = jnp.take_along_axis(flat, best[..., None], axis=-1)[..., 0]
    row, column = best // width, best % width

    def shift(position: Array, step: int, length: int) -> Array:
        inside = (position > 0) & (position < length - 1)
        before, after = (
            jnp.take_along_axis(flat, jnp.where(inside, best + move, best)[..., None], axis=-1)[..., 0]
            for move in (-step, step)
        )
        if subpixel == "none":
            return jnp.zeros_like(scores)
        if subpixel == "quarter":
            return 0.25 * jnp.sign(after - before)
        low, top, high = (jnp.log(jnp.maximum(value, 1e-10)) for value in (before, scores, after))
        curvature = 2 * top - low - high
        return jnp.where(curvature > 0, (high - low) / (2 * jnp.where(curvature > 0, curvature, 1)), 0)

    x, y = column + 0.5 + shift(column, 1, width), row + 0.5 + shift(row, width, height)
    return Peaks(stride * jnp.stack([x, y], axis=-1), scores)
