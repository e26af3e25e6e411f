"""What is said of several seeds and of probabilities, for every experiment."""

from __future__ import annotations

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

    Raises:
      ValueError: there are fewer than two values.

    >>> print(interval([1.0, 2.0, 3.0]))
    2.00 ± 2.48
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"values: expected one for each of at least 2 seeds, got shape {list(values.shape)}. One seed has no "
            "interval: report it as n = 1."
        )
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


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
    confidence, right, chosen = _binned(probabilities, labels, bins)
    gaps = np.bincount(chosen, weights=right - confidence, minlength=bins)  # n_b (accuracy_b − confidence_b)
    return float(np.abs(gaps).sum() / len(labels))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, np.ndarray]:
    """The bins of `calibration_error`, for a reliability diagram.

    Args:
      probabilities: ``[examples, classes]``.
      labels: ``[examples]``.
      bins: B.

    Returns:
      Of every bin the ``count`` of its examples, their mean ``confidence`` and their ``accuracy``; 0 where it is empty.

    >>> reliability(np.array([[0.92, 0.08], [0.88, 0.12]]), np.array([0, 1]), bins=2)
    {'count': array([0, 2]), 'confidence': array([0. , 0.9]), 'accuracy': array([0. , 0.5])}
    """
    confidence, right, chosen = _binned(probabilities, labels, bins)
    count = np.bincount(chosen, minlength=bins)
    filled = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(chosen, weights=confidence, minlength=bins) / filled,
        "accuracy": np.bincount(chosen, weights=right, minlength=bins) / filled,
    }


def _binned(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every example: its confidence, whether it is right, and its bin."""
    confidence = np.max(probabilities, axis=-1).astype(np.float64)
    right = np.argmax(probabilities, axis=-1) == labels
    chosen = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return confidence, right, chosen
