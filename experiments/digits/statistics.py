"""What is measured of every seed: accuracy, agreement with the teacher, calibration error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.statistics import calibration_error


def per_seed(metrics: Mapping[str, float], seeds: int, name: str = "validation/accuracy") -> np.ndarray:
    """A metric of every seed, from the row that `jaxkd.training.fit` makes of it.

    >>> per_seed({"validation/accuracy[0]": 0.5, "validation/accuracy[1]": 0.75}, seeds=2)
    array([0.5 , 0.75])
    """
    return np.array([metrics[f"{name}[{seed}]"] for seed in range(seeds)])


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
