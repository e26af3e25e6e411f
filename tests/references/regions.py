"""References of `jaxkd.losses.dense.regions`: statistics of the regions of an image, and how these relate."""

import math

import numpy as np

from tests.references.transformers import directions


def region_moments(features: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Mean, variance and skewness E[((x - μ)/σ)³] of every region and channel (IntRA-KD, Hou et al. 2020).

    Features [batch, height, width, channels] and regions [batch, height, width, n] to [batch, n, 3, channels]. A region
    weighs its positions, by 0 or 1 if it is a mask. Where nothing varies the skewness is 0; in an empty region all is.
    """
    features, regions = np.asarray(features, np.float64), np.asarray(regions, np.float64)
    batch, _, _, channels = features.shape
    result = np.zeros((batch, regions.shape[-1], 3, channels))
    for example, n, channel in np.ndindex(batch, regions.shape[-1], channels):
        weights = regions[example, :, :, n]
        inside = weights > 0
        if inside.any():
            result[example, n, :, channel] = moments(features[example, :, :, channel][inside], weights[inside])
    return result


def moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """The mean, the variance and the skewness of weighted values, of which there is at least one.

    A direction among channels is taken of them: where the variance or the skewness is 0, no rounding may stand instead.
    """
    first, total = float(values[0]), math.fsum(weights)
    values = values - first
    mean = math.fsum(weights * values) / total
    variance = math.fsum(weights * (values - mean) ** 2) / total
    if variance == 0:
        return first + mean, 0.0, 0.0
    skewness = math.fsum(weights * ((values - mean) / math.sqrt(variance)) ** 3) / total
    return first + mean, variance, skewness if abs(skewness) > 1e-12 else 0.0


def region_affinity(student: np.ndarray, teacher: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The mean over moments r and pairs (i, j) of regions that are not empty of (C_s - C_t)² (Hou et al. 2020).

    C_r[i, j] is the cosine between moment r of region i and of region j, vectors over the channels; of a zero vector it
    is 0, also with itself. An example without regions has 0. A map of another size than the regions has those of
    `at_size`.
    """
    regions = np.asarray(regions, np.float64)
    of_student, of_teacher = (region_moments(x, at_size(regions, *np.shape(x)[1:3])) for x in (student, teacher))
    result = np.zeros(len(of_student))
    for example in range(len(of_student)):
        present = (regions[example] > 0).any((0, 1))
        if present.any():
            squares = []
            for moment in range(3):
                s, t = (directions(of[example, present, moment]) for of in (of_student, of_teacher))
                squares.append((s @ s.T - t @ t.T) ** 2)
            result[example] = np.mean(squares)
    return result


def at_size(regions: np.ndarray, height: int, width: int) -> np.ndarray:
    """The share of each adaptive window that a region covers, or of a finer map the nearest position's region."""
    result = np.zeros((len(regions), height, width, regions.shape[-1]))
    rows, columns = (spans(full, size) for full, size in zip(regions.shape[1:3], (height, width), strict=True))
    for i, j in np.ndindex(height, width):
        result[:, i, j] = regions[:, slice(*rows[i]), slice(*columns[j])].mean((1, 2))
    return result


def spans(full: int, size: int) -> list[tuple[int, int]]:
    """First and last position, exclusive, of each window."""
    if full < size:
        return [(i * full // size, i * full // size + 1) for i in range(size)]
    return [(i * full // size, -(-(i + 1) * full // size)) for i in range(size)]
