"""Measures of a trained model, from its logits and features, in float64."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from jaxkd import metrics

BINS = 15
CKA_EXAMPLES = 1000


def describe(
    logits: np.ndarray,
    labels: np.ndarray,
    teacher_logits: np.ndarray | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    teacher_features: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Returns the measures of a model on a set, as JSON holds them.

    Returns:
      ``accuracy``, ``nll`` in nats, ``calibration_error``, ``per_class``, ``reliability``; with a teacher ``agreement``
      and ``kl_to_teacher``; with features ``cka``.
    """
    logits, labels = _checked("logits", logits, labels)
    log_probabilities = log_softmax(logits, axis=-1)
    probabilities = np.exp(log_probabilities)
    chosen = logits.argmax(-1)
    found: dict[str, Any] = {
        "accuracy": float(np.mean(chosen == labels)),
        "nll": float(-np.mean(np.take_along_axis(log_probabilities, labels[:, None], axis=-1))),
        "calibration_error": calibration_error(probabilities, labels),
        "per_class": per_class(chosen, labels, logits.shape[-1]),
        "reliability": {name: values.tolist() for name, values in reliability(probabilities, labels).items()},
    }
    if teacher_logits is not None:
        taught, _ = _checked("teacher_logits", teacher_logits, labels)
        if taught.shape != logits.shape:
            ours, got = list(logits.shape), list(taught.shape)
            raise ValueError(f"teacher_logits: expected {ours}, the shape of the student's, got {got}.")
        found["agreement"] = float(np.mean(chosen == taught.argmax(-1)))
        found["kl_to_teacher"] = kl(taught, logits)
    if features is not None and teacher_features is not None:
        found["cka"] = cka(features, teacher_features)
    return found


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean of ``KL(teacher ‖ student)`` in nats, of logits ``[examples, classes]``.

    >>> round(kl(np.array([[0.0, 0.0]]), np.array([[np.log(3.0), 0.0]])), 4)  # log(4 / 3) / 2
    0.1438
    """
    p, q = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (teacher, student))
    return max(float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))), 0.0)  # only rounding makes it negative


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error, ``Σ_b (n_b / n) |accuracy_b − confidence_b|``.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3: examples are put into bins of equal
    width ``((b − 1) / B, b / B]`` by the probability of the chosen class, which is the confidence.
    """
    confidence, right, chosen = _binned(probabilities, labels, bins)
    gaps = np.bincount(chosen, weights=right - confidence, minlength=bins)  # n_b (accuracy_b − confidence_b)
    return float(np.abs(gaps).sum() / len(labels))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Returns ``count``, ``confidence`` and ``accuracy`` of each bin, 0 if empty."""
    confidence, right, chosen = _binned(probabilities, labels, bins)
    count = np.bincount(chosen, minlength=bins)
    filled = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(chosen, weights=confidence, minlength=bins) / filled,
        "accuracy": np.bincount(chosen, weights=right, minlength=bins) / filled,
    }


def _binned(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the confidence of every example, whether it is right, and its bin."""
    confidence = np.max(probabilities, axis=-1).astype(np.float64)
    right = np.argmax(probabilities, axis=-1) == labels
    return confidence, right, np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def per_class(chosen: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """Returns the accuracy on each class; None for a class without examples."""
    count = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[chosen == labels], minlength=classes)
    return [float(r / n) if n else None for r, n in zip(right, count, strict=True)]


def subset(examples: int, count: int = CKA_EXAMPLES) -> np.ndarray:
    """Returns evenly spread indices of the examples that features are compared on."""
    count = min(count, examples)
    return np.arange(count) * examples // count


def cka(features: Mapping[str, np.ndarray], teacher_features: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Linear CKA between stages of student and teacher, ``[examples, ...]`` each.

    CKA of few examples and wide features is biased upwards: compare values from equally many examples only.
    """
    found = {}
    for stage in (name for name in features if name in teacher_features):
        pair = [np.asarray(one[stage]) for one in (features, teacher_features)]
        for whose, one in zip(("student", "teacher"), pair, strict=True):
            if not np.isfinite(one).all():
                raise ValueError(f"{stage} of the {whose}: expected finite features, got NaN or infinity.")
        found[stage] = float(metrics.linear_cka(*map(jnp.asarray, pair)))
    return found


def _checked(name: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        got = f"{list(logits.shape)} with labels {list(labels.shape)}"
        raise ValueError(f"{name}: expected [examples, classes] with a label for each example, got {got}.")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels: expected 0 to {logits.shape[1] - 1}, got {labels.min()} to {labels.max()}.")
    if not np.isfinite(logits).all():
        wrong = int((~np.isfinite(logits).all(axis=-1)).sum())
        got = f"NaN or infinity for {wrong} of {len(logits)} examples. The training has diverged; its log says when"
        raise ValueError(f"{name}: expected finite numbers, got {got}.")
    return logits, labels
