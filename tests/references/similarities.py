"""References of `jaxkd.losses.relations.similarities`."""

import math

import numpy as np

from tests.references.base import rows, unit


def row_normalized_gram(embeddings: np.ndarray) -> np.ndarray:
    """Each row of f fᵀ over its Euclidean norm; a row of zeros stays."""
    flat = rows(embeddings)
    return np.array([unit(row) for row in flat @ flat.T])


def similarity_preserving(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The share of every anchor i: Σ_j (G_s - G_t)²_ij / B, so that the mean is ‖G_s - G_t‖²_F / B² (SP, Tung & Mori
    2019).
    """
    if len(student) == 0:
        return np.zeros(0)
    return ((row_normalized_gram(student) - row_normalized_gram(teacher)) ** 2).sum(1) / len(student)


def kernel(embeddings: np.ndarray, gamma: float, order: int) -> np.ndarray:
    """The Taylor form of exp(-γ ‖n(x) - n(y)‖²), to this order."""
    normalized = np.array([unit(row) for row in rows(embeddings)])
    cosine = normalized @ normalized.T
    result = np.zeros_like(cosine)
    for p in range(order + 1):
        result += math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p
    return result


def correlation_congruence(
    student: np.ndarray, teacher: np.ndarray, *, gamma: float = 0.4, order: int = 2
) -> np.ndarray:
    """The share of every anchor i: the mean over j of (K_s - K_t)²_ij (CC, Peng et al. 2019)."""
    if len(student) == 0:
        return np.zeros(0)
    return ((kernel(student, gamma, order) - kernel(teacher, gamma, order)) ** 2).mean(1)


def consecutive_correlation(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The share of every anchor i: B/(B - 1) ⟨|s_i - t_i|, |s_{i+1} - t_{i+1}|⟩, and 0 of the last, so that the mean is
    that of the B - 1 neighbors (CC as it is commonly implemented, after Peng et al. 2019).
    """
    difference = np.abs(rows(student) - rows(teacher))
    batch = len(difference)
    result = np.zeros(batch)
    for i in range(batch - 1):
        result[i] = batch / (batch - 1) * (difference[i] * difference[i + 1]).sum()
    return result


def neighbor_probabilities(embeddings: np.ndarray, epsilon: float) -> np.ndarray:
    """[batch, batch]: (cosine + 1)/2, of every row its share in the row's sum."""
    flat = rows(embeddings)
    normalized = np.array([row / (np.sqrt((row**2).sum()) + epsilon) for row in flat])
    similarity = (normalized @ normalized.T + 1) / 2
    return np.array([row / row.sum() for row in similarity])


def probabilistic_transfer(student: np.ndarray, teacher: np.ndarray, *, epsilon: float = 1e-7) -> np.ndarray:
    """The share of every anchor i: the mean over j of P_t log((P_t + ε)/(P_s + ε)) (PKT, Passalis & Tefas 2018)."""
    if len(student) == 0:
        return np.zeros(0)
    p_s, p_t = neighbor_probabilities(student, epsilon), neighbor_probabilities(teacher, epsilon)
    return (p_t * np.log((p_t + epsilon) / (p_s + epsilon))).mean(1)
