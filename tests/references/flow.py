"""References of `jaxkd.losses.features.flow`."""

from collections.abc import Sequence

import numpy as np

from tests.references.base import same_size

Pair = tuple[np.ndarray, np.ndarray]


def flow_matrices(pair: Pair) -> np.ndarray:
    """[batch, c1, c2], the mean over positions of F_l ⊗ F_{l+1}."""
    first, second = same_size(*pair)
    result = np.zeros((len(first), first.shape[3], second.shape[3]))
    for example in range(len(first)):
        for y in range(first.shape[1]):
            for x in range(first.shape[2]):
                result[example] += np.outer(first[example, y, x], second[example, y, x])
    return result / (first.shape[1] * first.shape[2])


def solution_flow(student_pair: Pair, teacher_pair: Pair) -> np.ndarray:
    """The mean over (c1, c2) of (G_s - G_t)², G the flow between two layers (FSP, Yim et al. 2017)."""
    student, teacher = flow_matrices(student_pair), flow_matrices(teacher_pair)
    return np.array([np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])


def top_singular_vectors(feature: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Of [height, width, channels] as a matrix [positions, channels]: its right singular vectors [channels, rank], and
    the singular values [rank], of length 1. Of zeros all are 0.

    A singular vector is one up to its sign: here its entry of the largest magnitude is positive.
    """
    matrix = np.asarray(feature, np.float64).reshape(feature.shape[0] * feature.shape[1], feature.shape[2])
    _, values, transposed = np.linalg.svd(matrix, full_matrices=False)
    vectors, values = transposed[:rank].T, values[:rank]
    if not matrix.any():
        return np.zeros_like(vectors), np.zeros_like(values)
    for r in range(rank):
        if vectors[np.argmax(np.abs(vectors[:, r])), r] < 0:
            vectors[:, r] *= -1
    return vectors, values / np.sqrt((values**2).sum())


def singular_vectors(
    student_maps: Sequence[np.ndarray], teacher_maps: Sequence[np.ndarray], *, rank: int = 1
) -> np.ndarray:
    """Σ over neighboring layers, pairs of their channels and r of (R_s - R_t)² (KDSVD, Lee et al. 2018).

    R = exp(-(D_l[c, r] - D_{l-1}[c', r])² / 8), D = V σ, the singular vectors times the singular values. A student's
    vector has the sign that makes its inner product with the teacher's positive.
    """
    result = np.zeros(len(student_maps[0]))
    for example in range(len(result)):
        student, teacher = [], []
        for s, t in zip(student_maps, teacher_maps, strict=True):
            s_vectors, s_values = top_singular_vectors(s[example], rank)
            t_vectors, t_values = top_singular_vectors(t[example], rank)
            signs = np.where((s_vectors * t_vectors).sum(0) < 0, -1, 1)
            student.append(s_vectors * signs * s_values)
            teacher.append(t_vectors * t_values)
        for layer in range(1, len(student)):
            result[example] += ((relation(student, layer) - relation(teacher, layer)) ** 2).sum()
    return result


def relation(layers: list[np.ndarray], layer: int) -> np.ndarray:
    """[channels of the layer, channels of the one before, rank]."""
    difference = layers[layer][:, None] - layers[layer - 1][None]
    return np.exp(-(difference**2) / 8)
