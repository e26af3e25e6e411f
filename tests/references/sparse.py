"""References of `jaxkd.losses.sparse`."""

import numpy as np

from tests.references.labels import soft_cross_entropy


def sparse_cross_entropy(student: np.ndarray, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """-Σ_c q_c log p_c, q_c the sum of the weights with which class c is listed (Anshumann et al. 2025)."""
    student, weights, indices = np.asarray(student, np.float64), np.asarray(weights), np.asarray(indices)
    result = np.zeros(student.shape[:-1])
    for row in np.ndindex(result.shape):
        q = np.zeros(student.shape[-1])
        for weight, index in zip(weights[row], indices[row], strict=True):
            if weight and not 0 <= index < len(q):
                q[:] = np.nan
            elif weight:
                q[index] += weight
        result[row] = soft_cross_entropy(student[row], q)
    return result
