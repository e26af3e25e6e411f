"""References of `jaxkd.losses.relations.ranks`."""

import itertools

import numpy as np

from tests.references.base import kl, rows


def distances_from(embeddings: np.ndarray, anchor: int) -> np.ndarray:
    """[batch] Euclidean distances."""
    flat = rows(embeddings)
    return np.array([np.sqrt(((flat[anchor] - other) ** 2).sum()) for other in flat])


def teachers_list(teacher: np.ndarray, anchor: int, list_size: int) -> list[int]:
    """The other examples that the teacher has nearest to the anchor, nearest first, the earlier first among equals."""
    distances = distances_from(teacher, anchor)
    others = [example for example in range(len(distances)) if example != anchor]
    return sorted(others, key=lambda example: (distances[example], example))[:list_size]


def plackett_luce(scores: np.ndarray) -> np.ndarray:
    """log P of the order that the scores stand in along the last axis: Σ_k [S_k - log Σ_{l≥k} exp S_l]."""
    remaining = np.logaddexp.accumulate(scores[..., ::-1], axis=-1)[..., ::-1]
    return (scores - remaining).sum(-1)


def darkrank_hard(
    student: np.ndarray, teacher: np.ndarray, *, alpha: float = 3.0, beta: float = 3.0, list_size: int = 4
) -> np.ndarray:
    """-log P_s of the teacher's order of every anchor's list, scores -α ‖x_i - x_j‖^β (DarkRank, Chen et al. 2018)."""
    result = np.zeros(len(student))
    for anchor in range(len(student)):
        nearest = teachers_list(teacher, anchor, list_size)
        result[anchor] = 0.0 - plackett_luce(-alpha * distances_from(student, anchor)[nearest] ** beta)
    return result


def darkrank_soft(
    student: np.ndarray, teacher: np.ndarray, *, alpha: float = 3.0, beta: float = 3.0, list_size: int = 4
) -> np.ndarray:
    """KL(P_t‖P_s) over all orders of every anchor's list, scores -α ‖x_i - x_j‖^β (DarkRank, Chen et al. 2018).

    The list is the teacher's nearest.
    """
    result = np.zeros(len(student))
    for anchor in range(len(student)):
        nearest = teachers_list(teacher, anchor, list_size)
        s = -alpha * distances_from(student, anchor)[nearest] ** beta
        t = -alpha * distances_from(teacher, anchor)[nearest] ** beta
        orders = np.array(list(itertools.permutations(range(len(nearest)))), int)
        result[anchor] = kl(plackett_luce(t[orders]), plackett_luce(s[orders]))
    return result
