"""References of `jaxkd.losses.binary`."""

import numpy as np


def log_sigmoid(z: float) -> float:
    """log 1/(1 + e⁻ᶻ) = min(z, 0) - log(1 + e^-|z|)."""
    return min(z, 0.0) - np.log1p(np.exp(-abs(z)))


def weighted(weight: float, log: float) -> float:
    """weight · log, and 0 log 0 = 0."""
    return weight * log if weight else 0.0


def over_labels(values: np.ndarray) -> np.ndarray:
    """The sum over the labels; a vector has one label for each example."""
    return values if values.ndim == 1 else values.sum(-1)


def binary_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-Σ_k y_k log σ(z_k) + (1 - y_k) log(1 - σ(z_k)); NaN for a y that is no probability."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    values = np.zeros(logits.shape)
    for index in np.ndindex(values.shape):
        z, y = float(logits[index]), float(labels[index])
        values[index] = -weighted(y, log_sigmoid(z)) - weighted(1 - y, log_sigmoid(-z)) if 0 <= y <= 1 else np.nan
    return over_labels(values)


def binary_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """T² Σ_k p_t log(p_t/p_s) + (1 - p_t) log((1 - p_t)/(1 - p_s)), p = σ(z/T) of each label (Hinton et al. 2015)."""
    student, teacher = np.asarray(student, np.float64) / temperature, np.asarray(teacher, np.float64) / temperature
    values = np.zeros(student.shape)
    for index in np.ndindex(values.shape):
        on_s, on_t = float(student[index]), float(teacher[index])
        for s, t in ((on_s, on_t), (-on_s, -on_t)):
            p = np.exp(log_sigmoid(t))
            values[index] += p * (log_sigmoid(t) - log_sigmoid(s)) if p else 0.0
    return temperature**2 * over_labels(values)
