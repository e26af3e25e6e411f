"""Dividing a set: deterministic, stratified, and the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxkd.data.order import permutation

if TYPE_CHECKING:
    from jaxkd.data.dataset import Dataset


def split(
    dataset: Dataset, parts: Sequence[int] | Sequence[float], *, seed: int, stratified: bool = True
) -> tuple[Dataset, ...]:
    """Disjoint parts of a set.

    Args:
      dataset: the set.
      parts: a size for each part, either counts (integers) or fractions of the set (floats). What they leave over is
        in no part, so ``split(train, [100], seed=0)`` picks 100 examples.
      seed: which examples go where. The same seed gives the same parts with any version of NumPy.
      stratified: every class has its share of every part, to within two examples.

    Returns:
      A `Dataset` for each part, its examples in the order of the original set and ``index`` unchanged.

    Raises:
      ValueError: the parts ask for more than there is, mix counts and fractions, or one is empty.

    >>> from jaxkd.data.dataset import digits, num_examples
    >>> labelled, held_out = split(digits(), [100, 300], seed=0)
    >>> num_examples(labelled), np.bincount(labelled.arrays["label"]).tolist()
    (100, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    label = dataset.arrays["label"]
    counts = _counts(parts, len(label), dataset.name)
    shuffled = permutation(np.arange(len(label)), size=len(label), seed=seed, epoch=0, xp=np)
    if stratified:
        shuffled = shuffled[np.argsort(_even_places(label[shuffled], seed), kind="stable")]
    ends = np.cumsum(counts)
    rows = (np.sort(shuffled[end - count : end]) for count, end in zip(counts, ends, strict=True))
    return tuple(dataset._replace(arrays={key: value[row] for key, value in dataset.arrays.items()}) for row in rows)


def _even_places(label: np.ndarray, seed: int) -> np.ndarray:
    # The k-th of a class's m examples goes to (k + u) / m of the way, so that any stretch of the sorted line has every
    # class in proportion; u, one number in (0, 1) for each class, keeps the classes from all rounding the same way.
    places = np.empty(len(label))
    classes, sizes = np.unique(label, return_counts=True)
    shifts = (permutation(np.arange(len(classes)), size=len(classes), seed=seed, epoch=1, xp=np) + 0.5) / len(classes)
    for value, size, shift in zip(classes, sizes, shifts, strict=True):
        places[label == value] = (np.arange(size) + shift) / size
    return places


def _counts(parts: Sequence[int] | Sequence[float], examples: int, name: str) -> list[int]:
    integers = [isinstance(part, int | np.integer) for part in parts]
    if not parts or any(integers) != all(integers):
        raise ValueError(f"parts: expected only counts (integers) or only fractions (floats), got {list(parts)}.")
    if all(integers):
        counts = [int(part) for part in parts]
    else:
        ends = np.round(np.cumsum(np.asarray(parts, dtype=np.float64)) * examples).astype(int)
        counts = np.diff(ends, prepend=0).tolist()
    if min(counts) < 1 or sum(counts) > examples:
        raise ValueError(
            f"parts: expected sizes of at least 1 that add up to no more than the {examples} examples of {name!r}, got "
            f"{list(parts)}, which is {counts} examples."
        )
    return counts
