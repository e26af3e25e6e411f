"""References of `jaxkd.losses.dense.segmentation`: classes of pixels, and how pixels relate."""

import numpy as np

from tests.references.base import kl, log_softmax, same_size
from tests.references.transformers import directions


def pixel_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """T² KL(p_t‖p_s) of every pixel, p = softmax(z/T) over the classes (Liu et al. 2019)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return temperature**2 * kl(log_t, log_s)


def pair_affinity(
    student: np.ndarray, teacher: np.ndarray, *, pool: int = 1, max_window: float | None = None
) -> np.ndarray:
    """The mean over pairs (i, j) of positions of (a_s - a_t)², a the cosine of their features (Liu et al. 2019).

    Of maps of one size, averaged over windows of pool x pool, or the maxima of windows that are a fraction of the map.
    The cosine with a zero vector is 0, also with itself.
    """
    student, teacher = same_size(np.asarray(student, np.float64), np.asarray(teacher, np.float64))
    result = np.zeros(len(student))
    for example in range(len(student)):
        if max_window is None:
            nodes = (window_means(maps[example], pool) for maps in (student, teacher))
        else:
            nodes = (window_maxima(maps[example], max_window) for maps in (student, teacher))
        s, t = map(directions, nodes)
        result[example] = np.mean((s @ s.T - t @ t.T) ** 2)
    return result


def window_means(feature: np.ndarray, pool: int) -> np.ndarray:
    """[height, width, channels] to [positions, channels]: the mean of every window, row by row."""
    height, width, _ = feature.shape
    corners = [(top, left) for top in range(0, height, pool) for left in range(0, width, pool)]
    return np.array([feature[top : top + pool, left : left + pool].mean((0, 1)) for top, left in corners])


def window_maxima(feature: np.ndarray, fraction: float) -> np.ndarray:
    """[height, width, channels] to [positions, channels], as MaxPool2d with stride = kernel and ceil_mode=True."""
    height, width, _ = feature.shape
    high, wide = max(1, int(height * fraction)), max(1, int(width * fraction))
    corners = [(top, left) for top in range(0, height, high) for left in range(0, width, wide)]
    return np.array([feature[top : top + high, left : left + wide].max((0, 1)) for top, left in corners])
