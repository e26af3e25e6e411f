"""References of `jaxkd.losses.relations.distances`."""

import numpy as np

from tests.references.base import rows


def huber(difference: np.ndarray) -> np.ndarray:
    """d²/2 up to |d| = 1 and |d| - 1/2 beyond, where value and slope agree."""
    size = np.abs(difference)
    return np.where(size <= 1, size**2 / 2, size - 0.5)


def normalized_distances(embeddings: np.ndarray) -> np.ndarray:
    """[batch, batch] Euclidean distances over the mean of those that are positive."""
    flat = rows(embeddings)
    distances = np.array([np.sqrt(((flat - anchor) ** 2).sum(-1)) for anchor in flat])
    positive = distances[distances > 0]
    return distances / positive.mean() if positive.size else distances


def distance_relation(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """RKD-D, the share of every anchor: the mean over its partners of huber(ψ_s - ψ_t) (Park et al. 2019)."""
    if len(student) == 0:
        return np.zeros(0)
    return huber(normalized_distances(student) - normalized_distances(teacher)).mean(1)


def cosines(embeddings: np.ndarray, vertex: int) -> np.ndarray:
    """[batch, batch]: the cosine at the vertex of every triple (i, vertex, k); 0 where a side has no length."""
    flat = rows(embeddings)
    sides = flat - flat[vertex]
    length = np.sqrt((sides**2).sum(-1, keepdims=True))
    units = np.divide(sides, length, out=np.zeros_like(sides), where=length > 0)
    return units @ units.T


def angle_relation(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """RKD-A, the share of every vertex j: the mean over (i, k) of huber(cos_s - cos_t) (Park et al. 2019)."""
    return np.array([huber(cosines(student, j) - cosines(teacher, j)).mean() for j in range(len(student))])
