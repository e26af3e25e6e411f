"""The choice of a value on the validation split, with the same budget for every method."""

from collections.abc import Mapping, Sequence

import numpy as np


def choose(values: Sequence[float], accuracy: Sequence[Sequence[float]], published: float) -> float:
    """Returns the value of the best mean accuracy on the validation split.

    Of values that are equally good, it is the one nearest to the published one, by their ratio. A value with an
    accuracy that is not finite is never chosen.

    >>> choose([0.1, 1.0, 10.0], [[0.8, 0.9], [0.7, 0.7], [0.9, 0.8]], published=10.0)
    10.0
    """
    means = np.array([np.mean(one) if np.isfinite(one).all() else -np.inf for one in np.asarray(accuracy, np.float64)])
    best = [float(value) for value, mean in zip(values, means, strict=True) if mean >= means.max() - 1e-9]
    return min(best, key=lambda value: abs(np.log(value / published)))


def runs(values: Sequence[float], seeds: Sequence[int]) -> tuple[list[float], list[int]]:
    """Returns the value and the seed of each run, seeds of a value together."""
    return [value for value in values for _ in seeds], [seed for _ in values for seed in seeds]


def by_value(accuracy: Sequence[float], seeds: Sequence[int]) -> list[list[float]]:
    """Returns accuracies of `runs` as a list of seeds for each value."""
    return np.asarray(accuracy, np.float64).reshape(-1, len(seeds)).round(6).tolist()  # type: ignore[no-any-return]


def spread(found: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Returns the difference of the best and the worst value's mean accuracy."""
    means = np.mean(found["accuracy"], axis=1)
    return float(means.max() - means.min())
