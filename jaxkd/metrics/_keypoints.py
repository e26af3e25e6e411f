"""Metrics of key points: `keypoints`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxkd import dense
from jaxkd._core import batches, checks
from jaxkd.metrics._derived import derived, mean_of_present
from jaxkd.types import Context, Derived, Mean, Metrics, Outputs

if TYPE_CHECKING:
    from jaxtyping import Array


def keypoints(
    context: Context,
    *,
    radius: float,
    reference: str | tuple[int, int],
    joint_names: Sequence[str] | None = None,
) -> Metrics:
    """Share of the joints that are found within a distance, by joint and in mean.

    Also known as: PCK (percentage of correct key points).

    A joint is correct if ``|predicted − true| ≤ r · length`` with a reference length of each example. Yang &
    Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", TPAMI 2013. Each joint is merged over
    batches and devices before the mean over joints is taken.

    Args:
      context: predictions of both models, ``points`` ``[batch, joints, 2]`` in pixels or ``heatmaps`` ``[batch, height,
        width, joints]``, of which `jaxkd.dense.peaks` gives the points; and the batch's ``points`` and ``point_mask``
        ``[batch, joints]``, False for joints to leave out. With heatmaps, the batch's ``image`` tells their stride.
      radius: r > 0, the largest distance as a share of the reference length, such as 0.2.
      reference: the length. ``"extent"`` is the longer side of the bounding box of the included true points, a pair of
        joints their distance (such as a shoulder and the opposite hip, for the torso), ``"image"`` the longer side of
        the image, and ``"batch/NAME"`` an entry ``[batch]``. Examples whose length is 0 or unknown are left out.
      joint_names: name of each joint; by default its number.

    Returns:
      ``pck/NAME`` of each joint; ``pck``, their mean, without joints that no example has; and ``teacher_pck`` of a
      teacher with such outputs.

    Raises:
      ValueError: an entry is missing or of another shape, there is no such reference, or the radius is not positive.

    >>> batch = {"points": jnp.array([[[0.0, 0.0], [0.0, 10.0]]]), "point_mask": jnp.ones((1, 2), bool)}
    >>> context = Context({"points": jnp.array([[[0.0, 1.0], [3.0, 10.0]]])}, {}, batch, step=0)
    >>> from jaxkd.metrics import compute
    >>> compute(keypoints(context, radius=0.2, reference="extent", joint_names=("head", "neck")))
    {'pck': 0.5, 'pck/head': 1.0, 'pck/neck': 0.0}
    """
    if not radius > 0:
        raise ValueError(f"keypoints, radius: expected a positive share of the reference length, got {radius}.")
    true, where = _truth(context)
    length = _length(context, reference, true, where)
    where &= (length > 0)[:, None]
    names = [*map(str, range(true.shape[1]))] if joint_names is None else list(joint_names)
    if len(set(names)) != true.shape[1] or len(names) != true.shape[1]:
        raise ValueError(
            f"keypoints, joint_names: expected a different name for each of {true.shape[1]} joints, got {names}."
        )

    def correct(outputs: Outputs) -> Mean:
        distance = _distance(_predicted(outputs, context), true)
        right = where & (distance <= radius * length[:, None])
        return Mean(*(jnp.sum(x, axis=0, dtype=jnp.float32) for x in (right, where)))

    each = correct(context.student)
    found: dict[str, Mean | Derived] = {"pck": derived(mean_of_present, each)}
    if {"points", "heatmaps"} & context.teacher.keys():
        found["teacher_pck"] = derived(mean_of_present, correct(context.teacher))
    return found | {f"pck/{name}": Mean(each.sum[i], each.count[i]) for i, name in enumerate(names)}


def _truth(context: Context) -> tuple[Array, Array]:
    """Returns the true points, zeros where the mask is False, and the mask."""
    true, where = (jnp.asarray(batches.lookup(context, f"batch/{name}")) for name in ("points", "point_mask"))
    if true.ndim != 3 or true.shape[-1] != 2 or where.shape != true.shape[:2] or where.dtype != bool:
        raise ValueError(
            "keypoints: expected the batch's points [batch, joints, 2] and point_mask bool[batch, joints], got "
            f"{checks.shape(true)} and {checks.shape(where)}."
        )
    examples = batches.example_mask(context.batch)
    where = where if examples is None else where & examples[:, None]
    return jnp.where(where[..., None], true.astype(jnp.float32), 0), where


def _length(context: Context, reference: str | tuple[int, int], true: Array, where: Array) -> Array:
    """Returns the reference length of each example, 0 where it has none."""
    if reference == "image":
        image = batches.lookup(context, "batch/image")
        return jnp.full(len(true), float(max(image.shape[1:3])))
    if reference == "extent":
        inside = where[..., None]
        sides = jnp.max(jnp.where(inside, true, -jnp.inf), axis=1) - jnp.min(jnp.where(inside, true, jnp.inf), axis=1)
        return jnp.maximum(jnp.max(sides, axis=-1), 0)  # -inf without points
    if isinstance(reference, str):
        if not reference.startswith("batch/"):
            raise ValueError(
                "keypoints, reference: expected 'extent', 'image', 'batch/NAME' or a pair of joints, got "
                f"{reference!r}."
            )
        length = jnp.asarray(batches.lookup(context, reference))
        if length.shape != true.shape[:1]:
            raise ValueError(f"{reference}: expected a length [batch], [{len(true)}], got {checks.shape(length)}.")
        return length.astype(jnp.float32)
    if len(reference) != 2 or not all(0 <= joint < true.shape[1] for joint in reference):
        raise ValueError(f"keypoints, reference: expected two of {true.shape[1]} joints, got {reference}.")
    a, b = reference
    return jnp.where(where[:, a] & where[:, b], _distance(true[:, a], true[:, b]), 0)


def _predicted(outputs: Outputs, context: Context) -> Array:
    """Returns a model's points in pixels."""
    true = context.batch["points"]
    if "points" in outputs:
        points = outputs["points"]
    else:
        checks.known("heatmaps", checks.shapes(outputs), "keypoints, output")
        heatmaps, image = outputs["heatmaps"], batches.lookup(context, "batch/image")
        height, width = heatmaps.shape[1:3]
        size = jnp.array([image.shape[2] / width, image.shape[1] / height])  # of a position, in pixels
        points = dense.peaks(heatmaps, stride=1.0).points * size[None, None]
    if points.shape != true.shape:
        raise ValueError(f"keypoints: expected points {list(true.shape)} of the model, got {checks.shape(points)}.")
    return points.astype(jnp.float32)


def _distance(a: Array, b: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(a - b), axis=-1))
