"""Votes of nearest neighbors, by the formula over all pairs."""

import numpy as np
import pytest

from jaxkd.metrics import neighbor_votes


def test_votes_equal_a_loop():
    rng = np.random.default_rng(0)
    x, y, labels = rng.normal(size=(5, 3)), rng.normal(size=(12, 3)), rng.integers(0, 4, 12)
    labels[0] = 3
    want = np.zeros((5, 4))
    for i, query in enumerate(x):
        cosines = [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in y]
        for j in sorted(range(12), key=lambda j: -cosines[j])[:4]:
            want[i, labels[j]] += np.exp(cosines[j] / 0.2)
    found = neighbor_votes(x, y, labels, neighbors=4, temperature=0.2)
    np.testing.assert_allclose(found, want / want.sum(1, keepdims=True), rtol=1e-10)


def test_fewer_examples_than_neighbors_and_a_zero_embedding_vote_all():
    votes = neighbor_votes(np.zeros((1, 2)), np.eye(2), np.array([0, 1]))
    np.testing.assert_allclose(votes, [[0.5, 0.5]])


def test_a_low_temperature_does_not_overflow():
    votes = neighbor_votes(np.ones((1, 2)), np.eye(2), np.array([0, 1]), temperature=1e-4)
    np.testing.assert_allclose(votes, [[0.5, 0.5]])


def test_wrong_arguments_are_errors():
    x, labels = np.eye(3), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="neighbor_votes, x: expected finite embeddings"):
        neighbor_votes(np.full((1, 3), np.nan), x, labels)
    with pytest.raises(ValueError, match="expected y of 2 features"):
        neighbor_votes(np.ones((1, 2)), x, labels)
    with pytest.raises(ValueError, match=r"labels: expected integers \[3\] of at least 0, got .* with negative"):
        neighbor_votes(x, x, labels - 1)
    with pytest.raises(ValueError, match="neighbors: expected a positive number, got 0"):
        neighbor_votes(x, x, labels, neighbors=0)
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        neighbor_votes(x, x, labels, temperature=0.0)
