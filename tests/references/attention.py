"""References of `jaxkd.losses.features.attention`."""

import numpy as np

from tests.references.base import kl, log_softmax, same_size, unit


def attention_map(feature: np.ndarray, p: float) -> np.ndarray:
    """[height, width, channels] to n(vec(mean_c |F|^p)), n(0) = 0."""
    return unit((np.abs(feature) ** p).mean(-1).ravel())


def attention_transfer(student: np.ndarray, teacher: np.ndarray, *, p: float = 2) -> np.ndarray:
    """The mean over positions of (Q_s - Q_t)² (Zagoruyko & Komodakis 2017)."""
    student, teacher = same_size(student, teacher)
    return np.array(
        [np.mean((attention_map(s, p) - attention_map(t, p)) ** 2) for s, t in zip(student, teacher, strict=True)]
    )


def factor_transfer(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over positions of |Q_s - Q_t|, Q = n(vec(mean_c F²)) of the factors F (Kim et al. 2018)."""
    student, teacher = same_size(student, teacher)
    return np.array(
        [np.mean(np.abs(attention_map(s, 2) - attention_map(t, 2))) for s, t in zip(student, teacher, strict=True)]
    )


def channel_rows(feature: np.ndarray) -> np.ndarray:
    """[height, width, channels] to [channels, positions]."""
    return feature.reshape(feature.shape[0] * feature.shape[1], feature.shape[2]).T


def neuron_selectivity(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The squared maximum mean discrepancy of the channels: the means over pairs of channels k(t,t') + k(s,s') -
    2 k(s,t), k(a, b) = ⟨n(a), n(b)⟩² (Huang & Wang 2017).
    """
    student, teacher = same_size(student, teacher)
    result = np.zeros(len(student))
    for example, maps in enumerate(zip(student, teacher, strict=True)):
        s, t = (np.array([row / max(np.sqrt((row**2).sum()), 1e-12) for row in channel_rows(one)]) for one in maps)
        result[example] = np.mean((t @ t.T) ** 2) + np.mean((s @ s.T) ** 2) - 2 * np.mean((s @ t.T) ** 2)
    return result


def channel_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """T² times the mean over channels of KL(p_t‖p_s), p = softmax(F_c/T) over the positions (CWD, Shu et al. 2021)."""
    student, teacher = same_size(student, teacher)
    result = np.zeros(len(student))
    for example, (s, t) in enumerate(zip(student, teacher, strict=True)):
        log_s, log_t = log_softmax(channel_rows(s) / temperature), log_softmax(channel_rows(t) / temperature)
        result[example] = temperature**2 * kl(log_t, log_s).mean()
    return result
