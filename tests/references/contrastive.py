"""References of `jaxkd.losses.contrastive`."""

import numpy as np

from tests.references.base import log_sum_exp, rows, unit


def contrastive_nce(scores: np.ndarray, *, num_data: int) -> np.ndarray:
    """-[log(P_0 / (P_0 + m/N + ε)) + Σ_k log((m/N) / (P_k + m/N + ε))], ε = 1e-7 (CRD, Tian et al. 2020).

    P are the normalized scores of one positive and m negatives, N examples are in the data. A positive of score 0 is
    infinitely bad, and without negatives there is nothing to tell it from: 0.
    """
    scores = np.asarray(scores, np.float64)
    scores = scores[..., 0] if scores.ndim == 3 else scores
    result = np.zeros(len(scores))
    negatives = scores.shape[-1] - 1
    if negatives == 0:
        return result
    noise = negatives / num_data
    for example, (positive, *others) in enumerate(scores):
        result[example] = np.log(positive + noise + 1e-7) - np.log(positive) if positive > 0 else np.inf
        for score in others:
            result[example] += np.log(score + noise + 1e-7) - np.log(noise)
    return result


def info_nce(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray | None = None, *, temperature: float = 0.07
) -> np.ndarray:
    """-log exp(⟨s_i, t_i⟩/T) / Σ_j exp(⟨s_i, t_j⟩/T) of n(s) and n(t) (van den Oord et al. 2018).

    With labels the sum leaves out the other examples of the anchor's own class.
    """
    anchors, candidates = ([unit(row) for row in rows(embeddings)] for embeddings in (student, teacher))
    result = np.zeros(len(anchors))
    for i, anchor in enumerate(anchors):
        scores = [(anchor * candidate).sum() / temperature for candidate in candidates]
        others = [j for j in range(len(anchors)) if labels is None or labels[j] != labels[i]]
        result[i] = log_sum_exp(np.array([scores[j] for j in {i, *others}])) - scores[i]
    return result
