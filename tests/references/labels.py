"""References of `jaxkd.losses.labels`."""

import numpy as np

from tests.references.base import kl, log_softmax


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p[label]."""
    log_p, labels = log_softmax(logits), np.asarray(labels)
    result = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        inside = 0 <= labels[index] < log_p.shape[-1]
        result[index] = -log_p[index][labels[index]] if inside else np.nan
    return result


def soft_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-Σ q log p, p = softmax(z), and 0 log 0 = 0 (Szegedy et al. 2016, of any distribution q)."""
    log_p, targets = log_softmax(logits), np.asarray(targets, np.float64)
    terms = np.zeros(log_p.shape)
    present = targets != 0
    terms[present] = -targets[present] * log_p[present]
    return terms.sum(-1)


def label_smoothing(logits: np.ndarray, labels: np.ndarray, *, smoothing: float = 0.1) -> np.ndarray:
    """-Σ q log p, q = (1 - ε) of the label + ε/K of each of all K classes (Szegedy et al. 2016; Müller et al. 2019)."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    classes = logits.shape[-1]
    result = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        q = np.full(classes, smoothing / classes)
        if 0 <= labels[index] < classes:
            q[labels[index]] += 1 - smoothing
            result[index] = soft_cross_entropy(logits[index], q)
        else:
            result[index] = np.nan
    return result


def virtual_teacher_kl(
    logits: np.ndarray, labels: np.ndarray, *, correct: float = 0.99, temperature: float = 20.0
) -> np.ndarray:
    """T² KL(softmax(log(q)/T) ‖ softmax(z/T)), q = a for the label and (1 - a)/(K - 1) for each other class (Tf-KD_reg,
    Yuan et al. 2020).
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    classes = logits.shape[-1]
    result = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        if not 0 <= labels[index] < classes:
            result[index] = np.nan
            continue
        q = np.full(classes, (1 - correct) / max(classes - 1, 1))
        q[labels[index]] = correct
        with np.errstate(divide="ignore"):  # log 0, if a = 1
            virtual = log_softmax(np.log(q) / temperature)
        result[index] = temperature**2 * kl(virtual, log_softmax(logits[index] / temperature))
    return result
