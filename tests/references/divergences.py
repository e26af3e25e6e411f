"""References of `jaxkd.losses.divergences`."""

import numpy as np

from tests.references.base import kl, log_softmax, log_sum_exp


def log_mixture(share: float, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """The logarithm of share p + (1 - share) q."""
    with np.errstate(divide="ignore"):  # log 0, of a share of 0 or 1
        return np.logaddexp(np.log(share) + log_p, np.log(1 - share) + log_q)


def skew_kl(student: np.ndarray, teacher: np.ndarray, *, alpha: float = 0.1, temperature: float = 1.0) -> np.ndarray:
    """T² KL(p_t ‖ α p_t + (1-α) p_s), p = softmax(z/T) (DistiLLM, Ko et al. 2024)."""
    log_s = log_softmax(np.asarray(student, np.float64) / temperature)
    log_t = log_softmax(np.asarray(teacher, np.float64) / temperature)
    return temperature**2 * kl(log_t, log_mixture(alpha, log_t, log_s))


def skew_reverse_kl(
    student: np.ndarray, teacher: np.ndarray, *, alpha: float = 0.1, temperature: float = 1.0
) -> np.ndarray:
    """T² KL(p_s ‖ α p_s + (1-α) p_t), p = softmax(z/T) (DistiLLM, Ko et al. 2024)."""
    log_s = log_softmax(np.asarray(student, np.float64) / temperature)
    log_t = log_softmax(np.asarray(teacher, np.float64) / temperature)
    return temperature**2 * kl(log_s, log_mixture(alpha, log_s, log_t))


def top_k_kl(student: np.ndarray, log_probs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """KL(teacher‖student) over the teacher's k classes and a bucket of all others.

    The teacher's bucket has what its k probabilities leave of 1. It falls away if there are no other classes, and so
    the whole is the KL over all classes for k = K.
    """
    log_s, log_t = log_softmax(student), np.asarray(log_probs, np.float64)
    indices = np.asarray(indices)
    result = np.zeros(log_s.shape[:-1])
    for index in np.ndindex(result.shape):
        listed, others = log_s[index][indices[index]], np.delete(log_s[index], indices[index])
        result[index] = kl(log_t[index], listed)
        tail = max(-np.expm1(log_sum_exp(log_t[index])), 0.0)
        if others.size and tail > 0:
            result[index] += tail * (np.log(tail) - log_sum_exp(others))
    return result
