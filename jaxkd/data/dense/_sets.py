"""Sets of images with boxes, masks or key points, as arrays or by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd._core.arrays.casts import cast
from jaxkd.data._dataset import arrays_of
from jaxkd.data.dense._resize import resize_image, resize_mask

_READ = ("image", "objects", "segmentation_mask", "keypoints", "visible")
_MADE = ("boxes", "box_label", "box_mask", "points", "point_mask")
_PROBES = 16


def arrays(source: Any, *, max_boxes: int = 32, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Reads a set of images with boxes, masks or key points into memory.

    The set's features are found by their names in TFDS, each may be absent: ``objects`` with ``bbox`` ``(ymin, xmin,
    ymax, xmax)`` from 0 to 1 and ``label`` (without it, all objects have class 0; those with ``is_crowd`` are left
    out); ``segmentation_mask`` ``[height, width]`` or ``[height, width, 1]``; ``keypoints`` ``[joints, 2]`` in pixels
    and ``visible`` ``[joints]``, or ``keypoints`` ``[joints, 3]`` with COCO's visibility (0 where a joint is not
    annotated) as the last column. So a set without annotations gives its images alone.

    Args:
      source: an object with ``len(source)`` and ``source[i]``, a dict, as from `jaxkd.data.source`.
      max_boxes: number of boxes of each image, of which the last ones are padding.
      size: height and width to which images (by linear interpolation), masks (by the nearest pixel), boxes and points
        are resized; by default that of the images, which then have to be of one size.

    Returns:
      Arrays for `jaxkd.data.Resident`, with the entries of `jaxkd.data.dense` that the set has, and its other entries
      that are numbers or arrays of one shape; text is left out. A class of the image beside a mask becomes
      ``image_label``. A box is cut to its image, and left out if nothing remains.

    Raises:
      ValueError: there are no examples or no images, the sizes differ, an image has more than ``max_boxes`` objects
        (the message says how many have, and the largest number), or an annotation has another form than described.

    >>> image = np.zeros((4, 8, 3), np.uint8)
    >>> rows = [{"image": image, "objects": {"bbox": [[0.0, 0.5, 1.0, 1.0]], "label": [2]}}]
    >>> found = arrays(rows, max_boxes=2)
    >>> found["boxes"].tolist(), found["box_label"].tolist(), found["box_mask"].tolist()
    ([[[4.0, 0.0, 8.0, 4.0], [0.0, 0.0, 0.0, 0.0]]], [[2, 0]], [[True, False]])
    """
    if not len(source):
        raise ValueError("arrays, source: expected at least one example, got none.")
    rows = [source[i] for i in range(len(source))]
    counts = np.array([_number_of_objects(row) for row in rows])
    if (over := counts > max_boxes).any():
        raise ValueError(
            f"arrays, max_boxes: {int(over.sum())} of {len(rows)} images have more than {max_boxes} objects; example "
            f"{int(counts.argmax())} has the most, {counts.max()}. Pass max_boxes={counts.max()}, or leave those "
            "images out: arrays([row for row in source if ...])."
        )
    kept = _kept(rows)
    read = [_read(number, row, max_boxes, size, kept) for number, row in enumerate(rows)]
    _check_alike(read)
    columns = {name: np.stack([example[name] for example in read]) for name in read[0]}
    return arrays_of({name: cast(value) for name, value in columns.items()})


def examples(source: Any, *, max_boxes: int = 32, size: tuple[int, int] | None = None) -> Examples:
    """Returns the examples of `arrays`, each read when it is asked for.

    Args:
      source: as for `arrays`.
      max_boxes: as for `arrays`; an example with more objects is an error when it is read.
      size: as for `arrays`.

    Returns:
      An object with ``len(examples)`` and ``examples[i]``, for `jaxkd.data.Stream`. Of the set's other entries, it has
      numbers, and arrays that have one shape in sixteen examples.

    Raises:
      ValueError: there are no examples; or from an example, as `arrays`.

    >>> found = examples([{"image": np.zeros((4, 8, 3), np.uint8), "frame": 7}], size=(2, 4))
    >>> len(found), found[0]["image"].shape, int(found[0]["frame"])
    (1, (2, 4, 3), 7)
    """
    return Examples(source, max_boxes=max_boxes, size=size)


class Examples:
    """Examples with random access, from `examples`; pickled with their source."""

    def __init__(self, source: Any, *, max_boxes: int = 32, size: tuple[int, int] | None = None) -> None:
        if not len(source):
            raise ValueError("examples, source: expected at least one example, got none.")
        probes = np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(int))
        self._source, self._max_boxes, self._size = source, max_boxes, size
        self._kept = _kept([source[int(i)] for i in probes])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self._prepared(position, self._source[position])

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Reads several examples together, which is faster than one by one."""
        several = getattr(self._source, "__getitems__", None)
        rows = [self._source[i] for i in positions] if several is None else several(positions)
        return [self._prepared(*pair) for pair in zip(positions, rows, strict=True)]

    def __repr__(self) -> str:
        return f"Examples({self._source!r}, max_boxes={self._max_boxes}, size={self._size})"

    def _prepared(self, position: int, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if (count := _number_of_objects(row)) > self._max_boxes:
            raise ValueError(
                f"examples, max_boxes: example {position} has {count} objects, more than {self._max_boxes}. Pass at "
                f"least max_boxes={count}; data.dense.arrays says the largest number of the whole set."
            )
        found = _read(position, row, self._max_boxes, self._size, self._kept)
        return {name: cast(value) for name, value in found.items()}


def _kept(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the entries to keep as they are, by name, and their names in a batch.

    They are numbers, or arrays of one shape.
    """
    found = {}
    masks = "segmentation_mask" in rows[0]
    for name in rows[0]:
        if name in _READ:
            continue
        values = [np.asarray(row[name]) if name in row and not isinstance(row[name], Mapping) else None for row in rows]
        if any(value is None or value.dtype.kind not in "buif" for value in values):
            continue  # text, and features of features
        if len({value.shape for value in values if value is not None}) > 1:
            continue  # such as a list of the classes of all objects
        found[name] = "image_label" if masks and name == "label" else name
    if taken := sorted(set(_MADE) & found.keys()):
        raise ValueError(f"data.dense: expected no entry named {taken}, which hold the annotations.")
    return found


def _number_of_objects(row: Mapping[str, Any]) -> int:
    return len(_boxes_of(row["objects"])[0]) if "objects" in row else 0


def _boxes_of(objects: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes ``[n, 4]`` and classes ``[n]`` of objects but crowds."""
    if not isinstance(objects, Mapping) or "bbox" not in objects:
        raise ValueError(
            "objects: expected a dict of 'bbox' [n, 4] and 'label' [n], as TFDS gives a sequence of objects, got "
            f"{sorted(objects) if isinstance(objects, Mapping) else type(objects).__name__}."
        )
    boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
    labels = np.asarray(objects.get("label", np.zeros(len(boxes))), np.int32).reshape(-1)
    if len(labels) != len(boxes):
        raise ValueError(f"objects: expected a label for each of {len(boxes)} boxes, got {len(labels)}.")
    if "is_crowd" in objects:
        single = ~np.asarray(objects["is_crowd"], bool).reshape(-1)
        boxes, labels = boxes[single], labels[single]
    return boxes, labels


def _read(
    number: int, row: Mapping[str, Any], max_boxes: int, size: tuple[int, int] | None, kept: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Returns an example with the entries of a batch."""
    if "image" not in row:
        raise ValueError(f"example {number}: expected an 'image', got entries {sorted(row)}.")
    image = np.asarray(row["image"])
    if image.ndim != 3:
        raise ValueError(f"example {number}, image: expected [height, width, channels], got {list(image.shape)}.")
    height, width = image.shape[:2]
    new = (height, width) if size is None else size
    found = {"image": image if new == (height, width) else resize_image(image, new)}
    if "objects" in row:
        found |= _padded_boxes(number, *_boxes_of(row["objects"]), max_boxes, new)
    if "segmentation_mask" in row:
        found["label"] = _pixel_classes(number, row["segmentation_mask"], (height, width), new)
    if "keypoints" in row:
        found |= _points(number, row, (height, width), new)
    return found | {target: np.asarray(row[name]) for name, target in kept.items()}


def _padded_boxes(
    number: int, boxes: np.ndarray, labels: np.ndarray, max_boxes: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    height, width = size
    if not (np.isfinite(boxes).all() and (boxes >= -0.5).all() and (boxes <= 1.5).all()):
        raise ValueError(
            f"example {number}, objects: expected bbox (ymin, xmin, ymax, xmax) as shares of the image from 0 to 1, "
            f"got values from {boxes.min()} to {boxes.max()}. Divide pixels by the image's height and width."
        )
    if (labels < 0).any():
        raise ValueError(f"example {number}, objects: expected classes of at least 0, got {labels.min()}.")
    pixels = np.clip(boxes, 0, 1)[:, [1, 0, 3, 2]] * np.array([width, height, width, height], np.float32)
    real = (pixels[:, 2:] > pixels[:, :2]).all(axis=1)
    pixels, labels = pixels[real], labels[real]
    missing = max_boxes - len(pixels)
    return {
        "boxes": np.pad(pixels, ((0, missing), (0, 0))),
        "box_label": np.pad(labels, (0, missing)),
        "box_mask": np.arange(max_boxes) < len(pixels),
    }


def _pixel_classes(number: int, mask: Any, old: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.shape != old or mask.dtype.kind not in "bui":
        raise ValueError(
            f"example {number}, segmentation_mask: expected integers {list(old)} or {[*old, 1]}, the size of the "
            f"image, got {mask.dtype}{list(mask.shape)}."
        )
    return resize_mask(mask, size).astype(np.uint8 if mask.dtype.itemsize == 1 else np.int32)


def _points(number: int, row: Mapping[str, Any], old: tuple[int, int], size: tuple[int, int]) -> dict[str, np.ndarray]:
    points = np.asarray(row["keypoints"], np.float32)
    if points.ndim != 2 or points.shape[-1] not in (2, 3):
        raise ValueError(
            f"example {number}, keypoints: expected (x, y) [joints, 2] or (x, y, visibility) [joints, 3], got "
            f"{list(points.shape)}."
        )
    points, flags = points[:, :2], points[:, 2:]
    if flags.size and "visible" in row:
        raise ValueError(
            f"example {number}: expected one visibility, got a third column of keypoints and visible; leave one out."
        )
    if not np.isin(flags, (0, 1, 2)).all():
        raise ValueError(f"example {number}, keypoints: expected a visibility of 0, 1 or 2, got {flags.ravel()}.")
    visible = np.asarray(row.get("visible", flags if flags.size else np.ones(len(points))), bool).reshape(-1)
    if visible.shape != points.shape[:1]:
        raise ValueError(f"example {number}, visible: expected [{len(points)}], got {list(visible.shape)}.")
    known = np.isfinite(points).all(axis=1, keepdims=True)
    edge = np.array([old[1], old[0]], np.float32)
    inside = (known & (points >= 0) & (points <= edge)).all(axis=1)
    scale = np.array([size[1], size[0]], np.float32) / edge
    return {"points": np.where(known, points, 0) * scale, "point_mask": visible & inside}


def _check_alike(read: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Raises unless all examples have the same entries, of one shape and type."""
    for number, example in enumerate(read):
        if example.keys() != read[0].keys():
            raise ValueError(
                f"example {number} has {sorted(example)}, example 0 has {sorted(read[0])}. Read labeled and unlabeled "
                "examples as two sets."
            )
    for name in read[0]:
        shapes = sorted({example[name].shape for example in read})
        if len(shapes) > 1:
            raise ValueError(
                f"arrays, {name}: {len(shapes)} shapes in one set, such as {list(shapes[0])} and {list(shapes[-1])}. "
                "Pass size=(height, width), to which images, masks, boxes and points are resized."
            )
