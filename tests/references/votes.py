"""References of `jaxkd.losses.relations.votes`."""

from collections.abc import Sequence

import numpy as np

from tests.references.base import rows


def squared_distances(embeddings: np.ndarray) -> np.ndarray:
    """[batch, batch]"""
    flat = rows(embeddings)
    return ((flat[:, None] - flat[None]) ** 2).sum(-1)


def voted_dissimilarity(
    student: np.ndarray,
    teachers: np.ndarray | Sequence[np.ndarray],
    *,
    margin: float = 1.0,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """max(0, ‖s_i - s_j‖² - ‖s_i - s_k‖² + δ) where most teachers have j nearer to i than k (You et al. 2017).

    The mean over all such triplets, as every anchor's share of it. A vote below 1e-9 is the rounding of a tie.
    """
    teachers = [teachers] if isinstance(teachers, np.ndarray) else teachers
    batch = len(student)
    weights = [1.0] * len(teachers) if weights is None else weights
    own, *taught = (squared_distances(embeddings) for embeddings in (student, *teachers))
    sums, triplets = np.zeros(batch), 0
    for anchor in range(batch):
        vote = np.zeros((batch, batch))  # for [j, k]: positive where j is the nearer one
        for weight, distances in zip(weights, taught, strict=True):
            vote += weight * np.sign(distances[anchor][None, :] - distances[anchor][:, None])
        vote[anchor, :] = vote[:, anchor] = 0
        chosen = vote > 1e-9
        hinge = np.maximum(own[anchor][:, None] - own[anchor][None, :] + margin, 0)
        sums[anchor], triplets = hinge[chosen].sum(), triplets + chosen.sum()
    return sums * batch / triplets if triplets else sums
