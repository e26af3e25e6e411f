"""References of `jaxkd.losses.probabilities`."""

import numpy as np

from tests.references.base import log_softmax


def total_variation(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """1 - Σ min(p_s, p_t), p = softmax(z/T): one minus the acceptance rate (Leviathan et al. 2023)."""
    p_s = np.exp(log_softmax(np.asarray(student, np.float64) / temperature))
    p_t = np.exp(log_softmax(np.asarray(teacher, np.float64) / temperature))
    return 1 - np.minimum(p_s, p_t).sum(-1)


def universal_logit_distance(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Σ_i |p_s(i) - p_t(i)| of the probabilities in descending order, 0 beyond the last (Boizard et al. 2024)."""
    p_s = np.exp(log_softmax(np.asarray(student, np.float64) / temperature))
    p_t = np.exp(log_softmax(np.asarray(teacher, np.float64) / temperature))
    result = np.zeros(p_s.shape[:-1])
    for index in np.ndindex(result.shape):
        a, b = sorted(p_s[index], reverse=True), sorted(p_t[index], reverse=True)
        for i in range(max(len(a), len(b))):
            result[index] += abs((a[i] if i < len(a) else 0) - (b[i] if i < len(b) else 0))
    return result
