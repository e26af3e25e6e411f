"""Quality of embeddings of a whole set, on the host.

`spearman`, `retrieval` and `neighbor_votes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

_RANKS = (1, 5, 10)
_BLOCK = 1024


def spearman(x: Float[Array, " examples"], y: Float[Array, " examples"]) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks.

    Equal values have the mean of their ranks. For sentence embeddings, x is the cosine similarity of each pair and y
    the score that people gave it.

    Args:
      x: values ``[examples]``.
      y: other values ``[examples]``.

    Returns:
      A float64 in [−1, 1]; NaN if all values of x or of y are equal.

    Raises:
      ValueError: the shapes are not ``[examples]``, with at least two examples, or a value is NaN.

    >>> round(spearman([0.1, 0.4, 0.4, 0.9], [1.0, 2.0, 3.0, 4.0]), 4)
    0.9487
    """
    ranks = [_ranks(name, values) for name, values in (("x", x), ("y", y))]
    if len(ranks[0]) != len(ranks[1]):
        raise ValueError(f"spearman: expected one y for each of the {len(ranks[0])} x, got {len(ranks[1])}.")
    a, b = (rank - rank.mean() for rank in ranks)
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / scale) if scale else float("nan")


def retrieval(x: Float[Array, "examples features"], y: Float[Array, "examples features"]) -> dict[str, float]:
    """Mean reciprocal rank, and recall, of each embedding's counterpart by cosine.

    Also known as: MRR (mean reciprocal rank).

    ``MRR = 1/n Σ_i 1 / rank_i`` with the rank of row i of y among all rows of y, by their cosine similarity to row i of
    x. Voorhees, "The TREC-8 Question Answering Track Report", 1999. Rows of y with equal similarity are in random
    order, and the result is the exact expectation over these orders, so that constant embeddings gain nothing.

    Args:
      x: embeddings of the queries ``[examples, features]``.
      y: embeddings of their answers ``[examples, features]``, row by row.

    Returns:
      ``mrr``, and ``recall_at_1``, ``recall_at_5`` and ``recall_at_10``, the shares of queries whose answer is among
      the first ones.

    Raises:
      ValueError: the shapes are not ``[examples, features]``, equal, or a value is not finite.

    >>> round(retrieval(np.eye(4), np.eye(4)[[0, 1, 3, 2]])["mrr"], 4)
    0.6806
    """
    queries, answers = (_unit(name, values) for name, values in (("x", x), ("y", y)))
    if queries.shape != answers.shape:
        raise ValueError(f"retrieval: expected y of the shape of x, {list(queries.shape)}, got {list(answers.shape)}.")
    # Equal answers get one similarity: the rounding of a matrix product may depend on the column.
    answers, group, size = np.unique(answers, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(queries) + 1))])
    totals = dict.fromkeys(["mrr", *(f"recall_at_{k}" for k in _RANKS)], 0.0)
    for start in range(0, len(queries), _BLOCK):
        similarity = queries[start : start + _BLOCK] @ answers.T
        own = np.take_along_axis(similarity, group[start : start + _BLOCK, None], axis=1)
        better, equal = (np.sum(size * found, axis=1) for found in (similarity > own, similarity == own))
        totals["mrr"] += np.sum((harmonic[better + equal] - harmonic[better]) / equal)
        for k in _RANKS:
            totals[f"recall_at_{k}"] += np.sum(np.clip((k - better) / equal, 0, 1))
    return {name: float(value) / len(queries) for name, value in totals.items()}


def neighbor_votes(
    x: Float[Array, "examples features"],
    y: Float[Array, "others features"],
    labels: Int[Array, " others"],
    *,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "examples classes"]:
    """Votes of the nearest neighbors of each embedding for their classes.

    Also known as: k-NN (weighted nearest neighbors).

    ``v_c = Σ_j e^{cos(x, y_j) / T} [label_j = c]`` over the k nearest neighbors j by the cosine: Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4, with the T of
    0.07 and the k of 20 of Caron et al. (DINO), ICCV 2021. The class of the most votes measures features without
    training a classifier.

    Args:
      x: embeddings to classify ``[examples, features]``.
      y: embeddings of labeled examples ``[others, features]``.
      labels: their classes, integers ``[others]`` from 0 on.
      neighbors: k, the number of neighbors; all if there are fewer.
      temperature: T > 0.

    Returns:
      The votes ``[examples, classes]``, float64, of sum 1. Of equally near neighbors, the first ones vote.

    Raises:
      ValueError: the shapes do not fit, a value is not finite, a label is negative, or a number is not positive.

    >>> votes = neighbor_votes(np.array([[1.0, 0.1]]), np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))
    >>> votes.round(3)
    array([[0., 1.]])
    """
    queries, others = (_unit(name, values, "neighbor_votes") for name, values in (("x", x), ("y", y)))
    classes = np.asarray(labels)
    if queries.shape[1] != others.shape[1]:
        raise ValueError(f"neighbor_votes: expected y of {queries.shape[1]} features, got {list(others.shape)}.")
    if classes.shape != (len(others),) or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise ValueError(
            f"neighbor_votes, labels: expected integers [{len(others)}] of at least 0, got "
            f"{classes.dtype}{list(classes.shape)}{' with negative ones' if np.any(classes < 0) else ''}."
        )
    if neighbors < 1 or not temperature > 0:
        wrong = ("neighbors", neighbors) if neighbors < 1 else ("temperature", temperature)
        raise ValueError(f"neighbor_votes, {wrong[0]}: expected a positive number, got {wrong[1]}.")
    votes = np.zeros((len(queries), int(classes.max()) + 1))
    for start in range(0, len(queries), _BLOCK):
        similarity = queries[start : start + _BLOCK] @ others.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]
        found = np.take_along_axis(similarity, nearest, axis=1)
        shares = np.exp((found - found[:, :1]) / temperature)
        rows = np.arange(start, start + len(similarity))[:, None]
        np.add.at(votes, (np.broadcast_to(rows, nearest.shape), classes[nearest]), shares)
    normalized: np.ndarray = votes / votes.sum(axis=1, keepdims=True)
    return normalized


def _ranks(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2 or np.isnan(values).any():
        raise ValueError(
            f"spearman, {name}: expected numbers [examples], at least two and none NaN, got {list(values.shape)}"
            f"{' with NaN' if np.isnan(values).any() else ''}."
        )
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(size) - (size - 1) / 2)[group.reshape(-1)]
    return ranks


def _unit(name: str, values: Any, function: str = "retrieval") -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"{function}, {name}: expected finite embeddings [examples, features], got {list(values.shape)}"
            f"{'' if np.isfinite(values).all() else ' with NaN or infinities'}."
        )
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    unit: np.ndarray = values / np.where(norm > 0, norm, 1)
    return unit
