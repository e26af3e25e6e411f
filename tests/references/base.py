"""Helpers of the references: dropping examples, difference quotients, softmax, norms, pooling."""

import math
from collections.abc import Callable

import numpy as np


def keep(where: np.ndarray, reference: Callable[..., np.ndarray], *arrays: np.ndarray, **hyper) -> np.ndarray:
    """Returns the reference of the included examples, each at its place, and 0 for the others."""
    result = np.zeros(where.shape)
    result[where] = reference(*(array[where] for array in arrays), **hyper)
    return result


def finite_difference(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Returns the gradient of a scalar function by central differences; 0 at coordinates that are not finite."""
    at = np.array(at, np.float64)
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        if not np.isfinite(at[index]):
            continue
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (up[index] - down[index])
    return gradient


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """z - log Σ exp z over the last axis. A class at -inf has probability 0, also where all are."""
    logits = np.asarray(logits, np.float64)
    largest = logits.max(-1, keepdims=True, initial=-np.inf)
    largest = np.where(np.isneginf(largest), 0, largest)
    total = np.exp(logits - largest).sum(-1, keepdims=True)
    return logits - largest - np.log(np.where(total > 0, total, 1))


def log_sum_exp(logits: np.ndarray) -> float:
    """log Σ exp z of a vector; -inf for one without elements, or of -inf alone."""
    largest = np.max(logits, initial=-np.inf)
    return largest if np.isneginf(largest) else largest + np.log(np.exp(logits - largest).sum())


def kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p‖q) = Σ p (log p - log q) over the last axis, 0 log 0 = 0; infinite where q is 0 and p is not."""
    p = np.exp(log_p)
    terms = np.zeros(p.shape)
    present = p > 0
    terms[present] = p[present] * (log_p[present] - log_q[present])
    return terms.sum(-1)


def unit(vector: np.ndarray) -> np.ndarray:
    """n(x) = x/‖x‖₂ of a vector, and n(0) = 0."""
    norm = np.sqrt((vector**2).sum())
    return vector / norm if norm > 0 else np.zeros_like(vector)


def rows(embeddings: np.ndarray) -> np.ndarray:
    """[batch, ...] to [batch, features]."""
    embeddings = np.asarray(embeddings, np.float64)
    return embeddings.reshape(len(embeddings), math.prod(embeddings.shape[1:]))


def adaptive_average_pool(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """[batch, H, W, channels] to [batch, height, width, channels]; window i covers floor(iH/h) to ceil((i+1)H/h)."""
    batch, rows, columns, channels = maps.shape
    result = np.zeros((batch, height, width, channels))
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            result[:, i, j] = maps[:, top:bottom, left:right].mean((1, 2))
    return result


def same_size(student: np.ndarray, teacher: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both, maps pooled to the smaller height and the smaller width of the two."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if student.ndim != 4:
        return student, teacher
    height, width = min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2])
    return adaptive_average_pool(student, height, width), adaptive_average_pool(teacher, height, width)
