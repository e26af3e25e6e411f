"""References of `jaxkd.losses.features.activations`."""

import math

import numpy as np

from tests.references.base import adaptive_average_pool, rows, same_size


def hint_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over a feature's elements of (F_s - F_t)² (Romero et al. 2015)."""
    student, teacher = same_size(student, teacher)
    return np.array([np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])


def activation_boundary(student: np.ndarray, teacher: np.ndarray, *, margin: float = 1.0) -> np.ndarray:
    """The sum over a feature of (s + m)² where s > -m, t ≤ 0 and of (s - m)² where s ≤ m, t > 0 (AB, Heo et al. 2019).

    Student and teacher are what stands before the activation.
    """
    result = np.zeros(len(student))
    for example, (s, t) in enumerate(zip(rows(student), rows(teacher), strict=True)):
        result[example] += ((s + margin) ** 2)[(s > -margin) & (t <= 0)].sum()
        result[example] += ((s - margin) ** 2)[(s <= margin) & (t > 0)].sum()
    return result


def overhaul(student: np.ndarray, teacher: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """The sum over a feature of (s - t')² where s > t' or t' > 0, t' = max(t, margin) (OFD, Heo et al. 2019)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    target = np.maximum(teacher, np.asarray(margin, np.float64).ravel())
    result = np.zeros(len(student))
    for example, (s, t) in enumerate(zip(student, target, strict=True)):
        result[example] = ((s - t) ** 2)[(s > t) | (t > 0)].sum()
    return result


def overhaul_margin(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """μ - σ φ(μ/σ) / Φ(-μ/σ), the mean of a normal variable where it is negative; -3σ where Φ(-μ/σ) ≤ .001 (Heo et al.
    2019).

    σ is |std|. Without spread the variable is μ, which a ReLU would leave at no less than 0: min(μ, 0).
    """
    result = np.zeros(np.shape(mean))
    for channel in range(len(result)):
        mu, sigma = float(mean[channel]), abs(float(std[channel]))
        if sigma == 0:
            result[channel] = min(mu, 0.0)
            continue
        z = mu / sigma
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        below = math.erfc(z / math.sqrt(2)) / 2
        result[channel] = mu - sigma * density / below if below > 0.001 else -3 * sigma
    return result


def hierarchical_context(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean squared difference of maps as they are, and pooled to 4x4, 2x2 and 1x1 as far as that is less than their
    height, averaged with weights 1, ½, ¼, ⅛ (ReviewKD, Chen et al. 2021).
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    weight, total, result = 1.0, 1.0, hint_mse(student, teacher)
    for size in (4, 2, 1):
        if size < student.shape[1]:
            weight /= 2
            total += weight
            pooled = (adaptive_average_pool(maps, size, size) for maps in (student, teacher))
            result = result + weight * hint_mse(*pooled)
    return result / total


def gaussian_nll(mean: np.ndarray, target: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The mean over a feature of ½ [(μ - F_t)²/σ² + log σ²], σ² of every channel (VID, Ahn et al. 2019)."""
    mean, target = np.asarray(mean, np.float64), np.asarray(target, np.float64)
    variance = np.asarray(variance, np.float64)
    terms = ((mean - target) ** 2 / variance + np.log(variance)) / 2
    return np.array([np.mean(example) for example in terms])


def channel_weighted_mse(student: np.ndarray, teacher: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_c w_c Σ over positions of (F_s,c - F_t,c)² (DELTA, Li et al. 2019)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    result = np.zeros(len(student))
    for channel, weight in enumerate(np.asarray(weights, np.float64)):
        for example in range(len(student)):
            result[example] += weight * ((student[example, ..., channel] - teacher[example, ..., channel]) ** 2).sum()
    return result


def channel_importance(losses_without: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Softmax over the channels of how much the loss rises when the channel is removed (DELTA, Li et al. 2019)."""
    rise = np.asarray(losses_without, np.float64) - np.asarray(loss, np.float64)
    powers = np.exp(rise - rise.max(initial=-np.inf))
    return powers / powers.sum()
