"""The losses again: plain NumPy in float64, written from the formulas of the papers, slow and obvious.

Nothing here is shared with the library, so that one mistake cannot hide in both. A reference has the name and the
signature of the loss in ``jaxkd.losses``, without ``where`` and ``axis_name``: `keep` drops the examples that do not
count, which is what masking has to mean.
"""

from collections.abc import Callable

import numpy as np


def keep(where: np.ndarray, reference: Callable[..., np.ndarray], *arrays: np.ndarray, **hyper) -> np.ndarray:
    """The reference of the examples that count, each at its place, and 0 at the others."""
    result = np.zeros(where.shape)
    result[where] = reference(*(array[where] for array in arrays), **hyper)
    return result


def finite_difference(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of a scalar function by central differences; 0 at coordinates that are not finite."""
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


def huber(difference: np.ndarray) -> np.ndarray:
    """d²/2 up to |d| = 1 and |d| - 1/2 beyond, where value and slope agree."""
    size = np.abs(difference)
    return np.where(size <= 1, size**2 / 2, size - 0.5)


# --- logits -----------------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """z - log Σ exp z, where a class at -inf has no share."""
    logits = np.asarray(logits, np.float64)
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p[label]."""
    log_p = log_softmax(logits)
    result = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        inside = 0 <= labels[index] < log_p.shape[-1]
        result[index] = -log_p[index][labels[index]] if inside else np.nan
    return result


def soft_target_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """T² Σ p_t (log p_t - log p_s), p = softmax(z/T), and 0 log 0 = 0 (Hinton et al. 2015)."""
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    result = np.zeros(log_s.shape[:-1])
    for index in np.ndindex(log_s.shape):
        p = np.exp(log_t[index])
        if p > 0:
            result[index[:-1]] += temperature**2 * p * (log_t[index] - log_s[index])
    return result


def soft_target_kl_gradient(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """d/dz_s of `soft_target_kl`: T (p_s - p_t), for logits where a difference quotient has no digits left."""
    return temperature * (np.exp(log_softmax(student / temperature)) - np.exp(log_softmax(teacher / temperature)))


def logit_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """½ Σ (z_s - z_t)²; a class at -inf in both is no class of either (Ba & Caruana 2014)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    both = np.isneginf(student) & np.isneginf(teacher)
    return ((np.where(both, 0, student) - np.where(both, 0, teacher)) ** 2).sum(-1) / 2


def standardize_logits(logits: np.ndarray) -> np.ndarray:
    """(z - mean) / (std + 1e-7), std with ddof = 1, over the classes that are finite (Sun et al. 2024)."""
    result = np.array(logits, np.float64)
    for index in np.ndindex(result.shape[:-1]):
        row = result[index]
        finite = np.isfinite(row)
        classes = row[finite]
        if (classes == classes[:1]).all():  # nothing deviates from the mean, and of one class there is no deviation
            row[finite] = 0.0
        else:
            row[finite] = (classes - classes.mean()) / (classes.std(ddof=1) + 1e-7)
    return result


# --- features ---------------------------------------------------------------------------------------------------------


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
    """Both maps at the smaller height and the smaller width of the two."""
    if student.ndim != 4:
        return student, teacher
    height, width = min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2])
    return adaptive_average_pool(student, height, width), adaptive_average_pool(teacher, height, width)


def hint_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over a feature's elements of (F_s - F_t)² (Romero et al. 2015)."""
    student, teacher = same_size(student, teacher)
    return np.array([np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])


def attention_map(feature: np.ndarray, p: float) -> np.ndarray:
    """[height, width, channels] to n(vec(mean_c |F|^p)), n(0) = 0."""
    energy = (np.abs(feature) ** p).mean(-1).ravel()
    norm = np.sqrt((energy**2).sum())
    return energy / norm if norm > 0 else energy


def attention_transfer(student: np.ndarray, teacher: np.ndarray, *, p: float = 2) -> np.ndarray:
    """The mean over positions of (Q_s - Q_t)² (Zagoruyko & Komodakis 2017)."""
    student, teacher = same_size(student, teacher)
    return np.array(
        [np.mean((attention_map(s, p) - attention_map(t, p)) ** 2) for s, t in zip(student, teacher, strict=True)]
    )


# --- relations --------------------------------------------------------------------------------------------------------


def normalized_distances(embeddings: np.ndarray) -> np.ndarray:
    """[batch, batch] Euclidean distances over the mean of those that are positive."""
    flat = embeddings.reshape(len(embeddings), -1)
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
    flat = embeddings.reshape(len(embeddings), -1)
    sides = flat - flat[vertex]
    length = np.sqrt((sides**2).sum(-1, keepdims=True))
    units = np.divide(sides, length, out=np.zeros_like(sides), where=length > 0)
    return units @ units.T


def angle_relation(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """RKD-A, the share of every vertex j: the mean over (i, k) of huber(cos_s - cos_t) (Park et al. 2019)."""
    return np.array([huber(cosines(student, j) - cosines(teacher, j)).mean() for j in range(len(student))])
