"""A set in memory: the `Dataset` tuple, and one from the user's own arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A set that fits in memory.

    Attributes:
      arrays: NumPy arrays with one row per example: ``image`` uint8 ``[examples, height, width, channels]``, ``label``
        int32 ``[examples]``, ``index`` int32 ``[examples]`` (the example's position in its original set, which `split`
        keeps), and the set's other features.
      num_classes: number of classes.
      name: name of the set, for messages and tables.
      class_names: name of each class, if known.
    """

    arrays: Mapping[str, np.ndarray]
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None


def num_examples(dataset: Dataset) -> int:
    """Returns the number of examples of a set (``len`` of the tuple counts fields).

    >>> from jaxkd import data
    >>> num_examples(data.digits())
    1797
    """
    return len(dataset.arrays["index"])


def arrays_of(dataset: Dataset | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a set, or arrays by name with an ``index``.

    Raises:
      TypeError: the set is neither of the two.
      ValueError: the arrays do not have the same number of rows.

    >>> sorted(arrays_of({"tokens": np.zeros((3, 5), int), "label": np.zeros((3, 5))}))
    ['index', 'label', 'tokens']
    """
    if isinstance(dataset, Dataset):
        return dict(dataset.arrays)
    if not isinstance(dataset, Mapping):
        raise TypeError(
            "dataset: expected a Dataset, as from jaxkd.data.load, or a dict of arrays with one row per example, got "
            f"{type(dataset).__name__}."
        )
    arrays = {name: np.asarray(value) for name, value in dataset.items()}
    rows = {name: value.shape[0] if value.ndim else None for name, value in arrays.items()}
    if len(set(rows.values())) != 1 or None in rows.values():
        raise ValueError(f"expected the same number of rows in every array, got {rows}.")
    return {"index": np.arange(len(next(iter(arrays.values()))), dtype=np.int32)} | arrays


def from_arrays(
    image: Any,
    label: Any,
    *,
    num_classes: int | None = None,
    name: str = "arrays",
    class_names: tuple[str, ...] | None = None,
    **others: Any,
) -> Dataset:
    """Builds a `Dataset` from arrays.

    Args:
      image: images ``[examples, height, width, channels]``, or other inputs ``[examples, ...]``.
      label: integers ``[examples]`` in ``[0, num_classes)``. `Resident` also takes a dict of arrays with labels of any
        other kind: multi-hot, per token or pixel, or none.
      num_classes: number of classes; by default, the largest label plus one.
      name: name of the set, for messages and tables.
      class_names: name of each class.
      **others: further arrays with one row per example, by name.

    Returns:
      The set, with ``index`` 0, 1, 2, …

    Raises:
      ValueError: the arrays do not have the same number of rows, or the labels are not classes.

    >>> dataset = from_arrays(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 1])
    >>> dataset.num_classes, dataset.arrays["index"].tolist()
    (2, [0, 1, 2])
    """
    label = np.asarray(label)
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer) or label.size == 0:
        raise ValueError(f"label: expected integers of shape [examples], got {label.dtype}{list(label.shape)}.")
    arrays = {"image": np.asarray(image), "label": label.astype(np.int32)}
    arrays |= {key: np.asarray(value) for key, value in others.items()}
    arrays = arrays_of(arrays)
    classes = int(label.max()) + 1 if num_classes is None else num_classes
    if label.min() < 0 or label.max() >= classes:
        raise ValueError(f"label: expected 0 to {classes - 1}, got {label.min()} to {label.max()}.")
    return Dataset(arrays, classes, name, class_names)
