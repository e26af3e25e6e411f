"""Average precision of detections over a whole set, on the host."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd._core.checks import require


def average_precision(
    detections: Mapping[str, Any] | Iterable[Any],
    truth: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    *,
    class_names: Sequence[str] | None = None,
    max_detections: int = 100,
) -> dict[str, float]:
    """Average precision of boxes as COCO defines it, by pycocotools.

    Also known as: mAP (mean average precision).

    Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014: the mean over classes of the area under the
    curve of precision over recall, at 101 recalls, where the detections of a class are matched with its boxes in the
    order of their scores. The mean over ten least overlaps, 0.5, 0.55, ..., 0.95, is the set's average precision.
    Images without objects count: their detections are wrong ones.

    Args:
      detections: ``boxes`` ``[images, m, 4]`` as ``(x0, y0, x1, y1)``, ``scores`` and integer ``labels`` ``[images,
        m]``, and ``mask`` ``[images, m]``, False for padding, a dict or `jaxkd.dense.Detections`; or such batches, as
        from `jaxkd.training.predict`. Other entries are ignored.
      truth: ``boxes`` ``[images, n, 4]``, ``box_label`` and ``box_mask`` ``[images, n]`` of the same images in the same
        order, as `jaxkd.data.dense.arrays` gives them; or such batches. A batch's ``mask`` ``[images]`` leaves out the
        rows that fill it up.
      class_names: name of each class; by default its number.
      max_detections: largest number of detections of an image and class, those with the highest scores.

    Returns:
      ``ap``, the mean over classes and overlaps; ``ap50`` and ``ap75``, that of one least overlap; ``ap/NAME`` for each
      class. All are shares from 0 to 1. A class without any box is left out of the means, and its own value is NaN.

    Raises:
      ValueError: an array is missing, has another shape, or holds values that are not finite; the numbers of images
        differ; a label has no name.
      ImportError: pycocotools is not installed.

    >>> true = {"boxes": np.array([[[0, 0, 8, 8]]]), "box_label": np.array([[0]]), "box_mask": np.array([[True]])}
    >>> found = {"boxes": np.array([[[0, 0, 8, 6]]]), "scores": np.array([[0.9]]), "labels": np.array([[0]])}
    >>> average_precision(found | {"mask": np.array([[True]])}, true)["ap"]  # right for 0.5, 0.55, ..., 0.75
    0.6
    """
    if max_detections < 1:
        raise ValueError(f"average_precision, max_detections: expected at least 1, got {max_detections}.")
    found = _joined("detections", detections, "labels", "mask", "scores")
    true = _joined("truth", truth, "box_label", "box_mask", None)
    if found.images != true.images:
        raise ValueError(
            f"average_precision: expected detections for each of the {true.images} images of the truth, got "
            f"{found.images}. training.predict leaves out the rows that fill up a batch, and so does a truth of "
            "batches with their masks; both need the order of the set (shuffle=False)."
        )
    classes = 1 + max(int(boxes.label.max(initial=-1)) for boxes in (found, true))
    if class_names is not None and classes > len(class_names):
        raise ValueError(
            f"average_precision, class_names: expected a name for each of {classes} classes, got {class_names}."
        )
    names = [*map(str, range(classes))] if class_names is None else list(class_names)
    precision = _precision(found, true, len(names), max_detections)
    absent = (precision < 0).all(axis=(0, 1))
    by_overlap = precision.mean(axis=1)
    by_overlap[:, absent] = np.nan
    each = by_overlap.mean(axis=0)

    def mean(values: np.ndarray) -> float:
        return float(values[~absent].mean()) if not absent.all() else float("nan")

    means = {"ap": mean(each), "ap50": mean(by_overlap[0]), "ap75": mean(by_overlap[5])}
    return means | {f"ap/{name}": float(value) for name, value in zip(names, each, strict=True)}


class _Boxes(NamedTuple):
    """The boxes of a set that a mask includes, one after another.

    Attributes:
      images: number of images.
      image: number of each box's image ``[boxes]``.
      boxes: float64 ``[boxes, 4]``.
      label: class of each ``[boxes]``.
      score: score of each ``[boxes]``; ones for those of the truth.
    """

    images: int
    image: np.ndarray
    boxes: np.ndarray
    label: np.ndarray
    score: np.ndarray


def _joined(name: str, given: Any, label: str, mask: str, score: str | None) -> _Boxes:
    """Joins the boxes of a set, which may come in batches."""
    keys = ["boxes", label, mask, *([] if score is None else [score])]
    given = given._asdict() if hasattr(given, "_asdict") else given  # such as `jaxkd.dense.Detections`
    images, found = 0, []
    for part in [given] if isinstance(given, Mapping) else given:
        if missing := [key for key in keys if key not in part]:
            raise ValueError(f"average_precision, {name}: expected {keys}, got {sorted(part)} without {missing}.")
        arrays = [np.asarray(part[key]) for key in keys]
        size = arrays[0].shape[:2]
        if arrays[0].shape != (*size, 4) or any(x.shape != size for x in arrays[1:]) or len(size) < 2:
            raise ValueError(
                f"average_precision, {name}: expected boxes [images, n, 4] and the others [images, n], got "
                f"{ {key: list(x.shape) for key, x in zip(keys, arrays, strict=True)} }."
            )
        if score is None and "mask" in part:
            arrays = [x[np.asarray(part["mask"], bool)] for x in arrays]
        image, place = np.nonzero(arrays[2])
        found.append([image + images, *(x[image, place] for x in arrays)])
        images += len(arrays[0])
    if not images:
        raise ValueError(f"average_precision, {name}: expected at least one image, got none.")
    image, boxes, labels, _, *scores = (np.concatenate(column) for column in zip(*found, strict=True))
    values = scores[0] if scores else np.ones(len(boxes))
    if wrong := int((~np.isfinite(boxes).all(axis=1) | ~np.isfinite(values)).sum()):
        raise ValueError(f"average_precision, {name}: {wrong} of {len(boxes)} boxes or scores are not finite.")
    if labels.size and (labels.min() < 0 or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(
            f"average_precision, {name}: expected integer classes from 0 on, got {labels.dtype} from {labels.min()} on."
        )
    return _Boxes(images, image, boxes.astype(np.float64), labels, values.astype(np.float64))


def _coco(boxes: _Boxes, classes: int) -> Any:
    """Returns a set as pycocotools holds one; it prints."""
    coco = require("pycocotools.coco", purpose="average_precision", extra="dense").COCO()
    corner, sides = boxes.boxes[:, :2], boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    coco.dataset = {
        "images": [{"id": image} for image in range(boxes.images)],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": [
            {
                "id": number + 1,  # pycocotools means by 0 that nothing is matched
                "image_id": int(boxes.image[number]),
                "category_id": int(boxes.label[number]),
                "bbox": [*corner[number].tolist(), *sides[number].tolist()],
                "area": float(sides[number].prod()),
                "score": float(boxes.score[number]),
                "iscrowd": 0,
            }
            for number in range(len(boxes.boxes))
        ],
    }
    coco.createIndex()
    return coco


def _precision(found: _Boxes, true: _Boxes, classes: int, max_detections: int) -> np.ndarray:
    """Returns ``[overlaps, recalls, classes]``, -1 for a class without boxes."""
    evaluation = require("pycocotools.cocoeval", purpose="average_precision", extra="dense")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = evaluation.COCOeval(_coco(true, classes), _coco(found, classes), "bbox")
        coco.params.areaRng, coco.params.areaRngLbl = [[0, math.inf]], ["all"]
        coco.params.maxDets = [max_detections]
        coco.evaluate()
        coco.accumulate()
    precision: np.ndarray = coco.eval["precision"][..., 0, 0]
    return precision
