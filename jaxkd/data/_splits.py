"""Splits of a set: deterministic, stratified, and equal on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkd.data._dataset import Dataset
from jaxkd.data._order import permutation


def split(
    dataset: Dataset, parts: Sequence[int] | Sequence[float], *, seed: int, stratified: bool = True
) -> tuple[Dataset, ...]:
    """Divides a set into disjoint parts.

    Args:
      dataset: set to divide.
      parts: size of each part, either all counts (integers) or all fractions of the set (floats). Remaining examples
        are in no part, so ``split(train, [100], seed=0)`` picks 100 examples.
      seed: seed of the assignment. It gives the same parts with any version of NumPy.
      stratified: whether every part has each class in the proportion of the set, to within two examples.

    Returns:
      A `Dataset` per part, with examples in the order of the original set and ``index`` unchanged.

    Raises:
      ValueError: the parts exceed the set, mix counts and fractions, or one is empty.

    >>> from jaxkd import data
    >>> labeled, held_out = split(data.digits(), [100, 300], seed=0)
    >>> data.num_examples(labeled), np.bincount(labeled.arrays["label"]).tolist()
    (100, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    label = dataset.arrays["label"]
    counts = _counts(parts, len(label), dataset.name)
    shuffled = permutation(np.arange(len(label)), num_examples=len(label), seed=seed, epoch=0, xp=np)
    if stratified:
        shuffled = shuffled[np.argsort(_stratified_positions(label[shuffled], seed), kind="stable")]
    ends = np.cumsum(counts)
    rows = (np.sort(shuffled[end - count : end]) for count, end in zip(counts, ends, strict=True))
    return tuple(dataset._replace(arrays={key: value[row] for key, value in dataset.arrays.items()}) for row in rows)


def _stratified_positions(label: np.ndarray, seed: int) -> np.ndarray:
    # The k-th of a class's m examples gets the position (k + u) / m, so that any interval of the sorted positions has
    # every class in proportion. The offset u in (0, 1), one per class, keeps the classes from rounding alike.
    positions = np.empty(len(label))
    classes, sizes = np.unique(label, return_counts=True)
    shifts = (permutation(np.arange(len(classes)), num_examples=len(classes), seed=seed, epoch=1, xp=np) + 0.5) / len(
        classes
    )
    for value, size, shift in zip(classes, sizes, shifts, strict=True):
        positions[label == value] = (np.arange(size) + shift) / size
    return positions


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
            f"{list(parts)}, which are {counts} examples."
        )
    return counts
