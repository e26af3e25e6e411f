"""References of `jaxkd.losses.kl`."""

import numpy as np

from tests.references.base import kl, log_softmax, log_sum_exp


def soft_target_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """T² Σ p_t (log p_t - log p_s), p = softmax(z/T), and 0 log 0 = 0 (Hinton et al. 2015)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    result = np.zeros(log_s.shape[:-1])
    for index in np.ndindex(log_s.shape):
        p = np.exp(log_t[index])
        if p > 0:
            result[index[:-1]] += temperature**2 * p * (log_t[index] - log_s[index])
    return result


def soft_target_kl_gradient(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """d/dz_s of `soft_target_kl`: T (p_s - p_t), for logits where a difference quotient has no digits left."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    return temperature * (np.exp(log_softmax(student / temperature)) - np.exp(log_softmax(teacher / temperature)))


def reverse_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """T² KL(p_s‖p_t), p = softmax(z/T) (MiniLLM, Gu et al. 2024)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    return temperature**2 * kl(log_softmax(student / temperature), log_softmax(teacher / temperature))


def generalized_jsd(
    student: np.ndarray, teacher: np.ndarray, *, beta: float = 0.5, temperature: float = 1.0
) -> np.ndarray:
    """β KL(p_t‖m) + (1-β) KL(p_s‖m), m = β p_t + (1-β) p_s, p = softmax(z/T) (GKD, Agarwal et al. 2024).

    Divided by β, respectively 1-β, it tends to KL(p_t‖p_s) at β = 0 and to KL(p_s‖p_t) at β = 1, which are what these
    two stand for.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    if beta == 0:
        return kl(log_t, log_s)
    if beta == 1:
        return kl(log_s, log_t)
    log_m = np.logaddexp(np.log(beta) + log_t, np.log(1 - beta) + log_s)
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


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


def top_k_kl(
    student: np.ndarray, log_probs: np.ndarray, indices: np.ndarray, *, temperature: float = 1.0
) -> np.ndarray:
    """T² KL(teacher‖student) over the teacher's k classes and a bucket of all others, p_s = softmax(z/T).

    The teacher's bucket has what its k probabilities leave of 1. It falls away if there are no other classes, and so
    the whole is the KL over all classes for k = K. A class that is listed more than once is one class.
    """
    log_s = log_softmax(np.asarray(student, np.float64) / temperature)
    log_t = np.asarray(log_probs, np.float64)
    indices = np.asarray(indices)
    result = np.zeros(log_s.shape[:-1])
    for index in np.ndindex(result.shape):
        of_class = {c: p for c, p in zip(indices[index].tolist(), log_t[index].tolist(), strict=True) if p > -np.inf}
        known, classes = np.array([*of_class.values()]), np.array([*of_class], int)
        listed, others = log_s[index][classes], np.delete(log_s[index], indices[index])
        result[index] = kl(known, listed)
        tail = max(-np.expm1(log_sum_exp(known)), 0.0)
        if others.size and tail > 0:
            result[index] += tail * (np.log(tail) - log_sum_exp(others))
    return temperature**2 * result
