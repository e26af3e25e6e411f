"""References of `jaxkd.losses.dense.anchors`: classes of anchors, and boxes."""

import numpy as np

from tests.references.binary import log_sigmoid, weighted


def sigmoid_focal(logits: np.ndarray, labels: np.ndarray, *, alpha: float = 0.25, gamma: float = 2.0) -> np.ndarray:
    """-Σ α y (1 - p)^γ log p + (1 - α) (1 - y) p^γ log(1 - p), p = σ(z) (Lin et al. 2017); NaN for an unknown y."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    values = np.zeros(logits.shape)
    for index in np.ndindex(values.shape):
        z, y = float(logits[index]), float(labels[index])
        log_on, log_off = log_sigmoid(z), log_sigmoid(-z)
        if not 0 <= y <= 1:
            values[index] = np.nan
            continue
        on = weighted(alpha * y * (1.0 if gamma == 0 else np.exp(gamma * log_off)), log_on)
        off = weighted((1 - alpha) * (1 - y) * (1.0 if gamma == 0 else np.exp(gamma * log_on)), log_off)
        values[index] = -on - off
    return values.sum(-1)


def smooth_l1(student: np.ndarray, target: np.ndarray, *, beta: float = 1.0) -> np.ndarray:
    """Σ x²/2β where |x| < β, else |x| - β/2 (Girshick 2015)."""
    error = np.abs(np.asarray(student, np.float64) - np.asarray(target, np.float64))
    return np.where(error < beta, error**2 / (2 * beta), error - beta / 2).sum(-1)
