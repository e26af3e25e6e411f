"""A whole set in memory: the `Dataset` tuple, scikit-learn's digits, and any TFDS set by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxkd.data.optional import require
from jaxkd.data.splits import split as split_dataset
from jaxkd.data.tfds_source import source

DIGITS_SPLITS: Mapping[str, int] = {"train": 1097, "validation": 300, "test": 400}
"""How `load` divides the digits, which come as one set: stratified, with seed 0, always the same examples."""


class Dataset(NamedTuple):
    """A set that fits in memory.

    Attributes:
      arrays: NumPy arrays with one row for each example: ``image`` uint8 ``[examples, height, width, channels]``,
        ``label`` int32 ``[examples]``, ``index`` int32 ``[examples]`` (the example's fixed position in its original
        set: it stays the same after `split`), and whatever else the set has.
      num_classes: the number of classes.
      name: for messages and tables.
      class_names: one for each class, if known.
    """

    arrays: Mapping[str, np.ndarray]
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None


def num_examples(dataset: Dataset) -> int:
    """How many examples a set holds (``len`` of the tuple counts its fields).

    >>> num_examples(digits())
    1797
    """
    return len(dataset.arrays["index"])


def from_arrays(
    image: Any,
    label: Any,
    *,
    num_classes: int | None = None,
    name: str = "arrays",
    class_names: tuple[str, ...] | None = None,
    **others: Any,
) -> Dataset:
    """A `Dataset` of one's own arrays.

    Args:
      image: ``[examples, height, width, channels]``, or any other leading-batch shape that the model takes.
      label: integers ``[examples]`` in ``[0, num_classes)``.
      num_classes: by default, the largest label plus one.
      name: for messages and tables.
      class_names: one for each class.
      **others: more arrays with one row for each example, under their own names.

    Returns:
      The set, with ``index`` 0, 1, 2, …

    Raises:
      ValueError: the arrays do not have the same number of rows, or the labels are not classes.

    >>> ours = from_arrays(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 1])
    >>> ours.num_classes, ours.arrays["index"].tolist()
    (2, [0, 1, 2])
    """
    label = np.asarray(label)
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer) or label.size == 0:
        raise ValueError(f"label: expected integers of shape [examples], got {label.dtype}{list(label.shape)}.")
    arrays = {"image": np.asarray(image), "label": label.astype(np.int32)}
    arrays |= {key: np.asarray(value) for key, value in others.items()}
    arrays.setdefault("index", np.arange(len(label), dtype=np.int32))
    rows = {key: value.shape[0] if value.ndim else None for key, value in arrays.items()}
    if set(rows.values()) != {len(label)}:
        raise ValueError(f"expected the same number of rows in every array, got {rows}.")
    classes = int(label.max()) + 1 if num_classes is None else num_classes
    if label.min() < 0 or label.max() >= classes:
        raise ValueError(f"label: expected 0 to {classes - 1}, got {label.min()} to {label.max()}.")
    return Dataset(arrays, classes, name, class_names)


def digits() -> Dataset:
    """Scikit-learn's bundled handwritten digits: 1797 real images, nothing to download.

    The originals count the ink in blocks of 4 × 4 pixels, 0 to 16. They are rescaled to the whole range of uint8
    (16, full ink, is 255), so that the same code serves every set; ``round(image / 255 * 16)`` gives them back.

    Returns:
      ``image`` uint8 ``[1797, 8, 8, 1]``, ``label`` int32, ``index`` int32 (the position in scikit-learn's order).

    Raises:
      ImportError: scikit-learn is not installed.

    >>> images = digits().arrays["image"]
    >>> images.shape, images.dtype.name, int(images.max())
    ((1797, 8, 8, 1), 'uint8', 255)
    """
    raw = require("sklearn.datasets", purpose="the digits").load_digits()
    image = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    return from_arrays(image, raw.target, num_classes=10, name="digits", class_names=tuple("0123456789"))


def load(name: str, split: str, data_dir: Any = None) -> Dataset:
    """A set in memory, by name.

    Args:
      name: ``"digits"``, or any TFDS name that is prepared in ``data_dir`` (see `source`).
      split: for the digits ``"train"`` (1097), ``"validation"`` (300), ``"test"`` (400) or ``"all"``; else a split of
        the set in TFDS's notation, ``"train"`` or ``"train[:10%]"``.
      data_dir: where prepared sets are; `source` says what the default is. The digits need none.

    Returns:
      The split, decoded: numbers only, as text and identifiers do not go to a device.

    Raises:
      ValueError: no such split; or the examples differ in shape, so that they need a `Stream` with a ``transform``.
      FileNotFoundError: the set is not prepared; the message says how to.
      ImportError: a library is not installed; the message says which.

    >>> num_examples(load("digits", "test"))
    400
    """
    if name == "digits":
        return _digits_split(split)
    prepared = source(name, split, data_dir)
    columns: dict[str, list[Any]] = {}
    for start in range(0, len(prepared), 1024):
        for example in prepared.__getitems__(range(start, min(start + 1024, len(prepared)))):
            for key, value in example.items():
                if np.asarray(value).dtype.kind in "buif":
                    columns.setdefault(key, []).append(value)
    for key, values in columns.items():
        if len({np.shape(value) for value in values}) > 1:
            raise ValueError(
                f"{name}: {key!r} differs in shape from example to example, so the set is no array. Read it with "
                f"Stream(source({name!r}, {split!r}, ...), transform=...), where the transform resizes an example."
            )
    if not {"image", "label"} <= columns.keys():
        raise ValueError(
            f"{name}: expected an image and a label, got {sorted(columns)}. Take what is needed from source(...) and "
            "name it with from_arrays(image, label, ...)."
        )
    others = {key: np.stack(value) for key, value in columns.items() if key not in ("image", "label", "index")}
    return from_arrays(
        np.stack(columns["image"]),
        np.stack(columns["label"]),
        num_classes=prepared.num_classes,
        name=name,
        class_names=prepared.class_names,
        **{key: value.astype(np.int32) if value.dtype == np.int64 else value for key, value in others.items()},
    )


def _digits_split(split: str) -> Dataset:
    whole = digits()
    if split == "all":
        return whole
    if split not in DIGITS_SPLITS:
        raise ValueError(f"split: the digits have {[*DIGITS_SPLITS, 'all']}, got {split!r}.")
    parts = split_dataset(whole, tuple(DIGITS_SPLITS.values()), seed=0)
    return dict(zip(DIGITS_SPLITS, parts, strict=True))[split]
