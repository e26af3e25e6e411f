"""What is said of several seeds: means with intervals, agreement, calibration error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and the half width of its 95% confidence interval.

    >>> f"{Interval(1.0, 0.25)}"
    '1.00 ± 0.25'
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}"

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.half:{spec.replace('+', '')}}" if spec else str(self)


def interval(values: np.ndarray | list[float], confidence: float = 0.95) -> Interval:
    """The mean over seeds and its interval, by Student's t.

    Args:
      values: one for each seed, at least two.
      confidence: of the interval.

    >>> print(interval([1.0, 2.0, 3.0]))
    2.00 ± 2.48
    """
    values = np.asarray(values, np.float64)
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


def per_seed(metrics: Mapping[str, float], seeds: int, name: str = "validation/accuracy") -> np.ndarray:
    """A metric of every seed, from the row that `jaxkd.training.fit` makes of it.

    >>> per_seed({"validation/accuracy[0]": 0.5, "validation/accuracy[1]": 0.75}, seeds=2)
    array([0.5 , 0.75])
    """
    return np.array([metrics[f"{name}[{seed}]"] for seed in range(seeds)])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error, ``Σ_b (n_b / n) |accuracy_b − confidence_b|``.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3: examples are put into bins of equal
    width ``((b − 1) / B, b / B]`` by the probability of the class they are given, which is their confidence.

    Args:
      probabilities: ``[examples, classes]``.
      labels: ``[examples]``.
      bins: B.

    Two examples in one bin, confident at 0.9 on average and half of them right:

    >>> float(calibration_error(np.array([[0.92, 0.08], [0.88, 0.12]]), np.array([0, 1]), bins=5))
    0.4
    """
    confidence = np.max(probabilities, axis=-1).astype(np.float64)
    right = np.argmax(probabilities, axis=-1) == labels
    chosen = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(chosen, weights=right - confidence, minlength=bins)  # n_b (accuracy_b − confidence_b)
    return float(np.abs(gaps).sum() / len(labels))


def describe(logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray | None = None) -> dict[str, list[float]]:
    """What is reported of a method, a value for each seed.

    Args:
      logits: ``[seeds, examples, classes]``.
      labels: ``[examples]``.
      teacher: the teachers' logits, where there are teachers.

    Returns:
      ``accuracy``, ``calibration_error``, and ``agreement``: how often student and teacher choose the same class.
    """
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=-1, keepdims=True)
    found = {"accuracy": np.mean(logits.argmax(-1) == labels, axis=-1).tolist()}
    if teacher is not None:
        found["agreement"] = np.mean(logits.argmax(-1) == teacher.argmax(-1), axis=-1).tolist()
    found["calibration_error"] = [calibration_error(one, labels) for one in probabilities]
    return found
