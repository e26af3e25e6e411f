"""Imitation of the teacher's features near objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxkd import dense, losses
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import positive, share, sizes
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._dense._boxes import in_cells
from jaxkd.objectives._features._alignment import align, align_init
from jaxkd.objectives._projection import with_projection
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule


def fine_grained_imitation(
    student: str,
    teacher: str,
    *,
    boxes_path: str = "batch/boxes",
    box_mask_path: str = "batch/box_mask",
    image_path: str = "batch/image",
    scales: Sequence[float] = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    threshold: float = 0.5,
    kernel_size: int = 3,
    weight: float | Array | Schedule = 0.01,
) -> Objective:
    """Half the mean squared difference of features where anchors overlap objects.

    Also known as: FGFI (fine-grained feature imitation), with its adaptation.

    ``1 / (2 N_p) Σ (a(F_s) − F_t)²`` over the N_p positions that have an anchor whose IoU with an object is greater
    than ψ times the largest IoU that the object has with the anchors of the map. Wang et al., "Distilling Object
    Detectors with Fine-Grained Feature Imitation", CVPR 2019, section 3: the adaptation a is a 3×3 convolution, for
    equal channels too, ψ = 0.5, and the authors' weight is 0.01. The authors' code divides by the positions of the
    whole batch; here each image has its own N_p, so that its value does not depend on the others.

    The anchors are those of this objective, so that the two detectors may have any: around the center of each cell of
    the map, boxes of the area of ``scale²`` cells for each scale, with each ratio of height to width.

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map; the larger map is pooled to the smaller.
      boxes_path: path of the objects' boxes ``[batch, n, 4]``, in pixels of the image.
      box_mask_path: path of their mask ``[batch, n]``, True for those that exist.
      image_path: path of the images, whose size over the map's is the size of its cells.
      scales: sides of the square anchors, in cells.
      ratios: heights of the anchors over their widths.
      threshold: ψ, from 0 to 1.
      kernel_size: side of the adaptation's kernel.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``{"align": {"kernel", "bias"}}``. An image without objects has the value 0.

    Raises:
      ValueError: a number is out of its range; or, from ``init``: a path does not exist, or shapes do not fit.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> objective = fine_grained_imitation("student/f", "teacher/f")
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> batch = {"image": jnp.zeros((2, 32, 32, 3)), "boxes": jnp.zeros((2, 5, 4)), "box_mask": jnp.ones((2, 5), bool)}
    >>> params = objective.init(jax.random.key(0), Context(feature(2, 8, 8, 4), feature(2, 8, 8, 4), batch, 0)).params
    >>> params["align"]["kernel"].shape
    (3, 3, 4, 4)
    """
    share("fine_grained_imitation", threshold=threshold)
    sizes("fine_grained_imitation", kernel_size=kernel_size)
    for name, values in (("scales", scales), ("ratios", ratios)):
        if not values:
            raise ValueError(f"fine_grained_imitation, {name}: expected at least one positive number, got none.")
        positive("fine_grained_imitation", **{f"{name}[{i}]": value for i, value in enumerate(values)})
    loss = term(losses.feature_imitation, student, teacher, "batch/imitation_mask", weight=weight)

    def init(key: Array, context: Context) -> ObjectiveVars:
        params, _ = align_init("fine_grained_imitation", key, context, student, teacher, kernel_size=kernel_size)
        return ObjectiveVars(params)

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        feature, target = align("fine_grained_imitation", params, context, student, teacher)
        height, width = feature.shape[1:3]
        around = dense.anchors((height, width), [1], [tuple(scales)], ratios).reshape(height, width, -1, 4)
        boxes, exist = in_cells(context, boxes_path, image_path, height, width), lookup(context, box_mask_path)
        mask = losses.imitation_mask(around, boxes, threshold=threshold, box_where=exist)
        return replace(context, {student: feature, teacher: target, "batch/imitation_mask": mask}), state

    return with_projection(init, change, loss)
