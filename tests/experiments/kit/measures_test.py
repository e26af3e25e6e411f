"""Measures of a model, by hand, against SciPy, and for extreme logits."""

import json

import numpy as np
import pytest
from scipy import special, stats

from experiments.kit import measures


def test_measures_of_a_hand_example():
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    labels = np.array([0, 1, 1, 2])
    taught = np.log(np.array([[0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    found = measures.describe(logits, labels, taught)
    assert found["accuracy"] == 0.75 and found["agreement"] == 0.75
    assert found["per_class"] == [1.0, 0.5, 1.0]
    np.testing.assert_allclose(found["nll"], -np.log([0.8, 0.6, 0.25, 0.7]).mean())
    first = 0.6 * np.log(0.6 / 0.8) + 2 * 0.2 * np.log(0.2 / 0.1)
    second = 0.6 * np.log(0.6 / 0.2) + 0.2 * np.log(0.2 / 0.6)
    np.testing.assert_allclose(found["kl_to_teacher"], (first + second) / 4)
    # Each in a bin of its own.
    np.testing.assert_allclose(found["calibration_error"], (0.2 + 0.4 + 0.5 + 0.3) / 4)
    assert sum(found["reliability"]["count"]) == 4 and len(found["reliability"]["count"]) == 15
    json.dumps(found, allow_nan=False)


def test_measures_are_those_of_scipy():
    generator = np.random.default_rng(0)
    logits, taught = 3 * generator.normal(size=(2, 200, 10))
    labels = generator.integers(0, 10, 200)
    found = measures.describe(logits.astype(np.float32), labels, taught)
    logarithms = special.log_softmax(logits.astype(np.float32).astype(np.float64), axis=-1)
    np.testing.assert_allclose(found["nll"], -logarithms[np.arange(200), labels].mean(), rtol=1e-12)
    divergence = stats.entropy(special.softmax(taught, axis=-1), np.exp(logarithms), axis=-1).mean()
    np.testing.assert_allclose(found["kl_to_teacher"], divergence, rtol=1e-10)


def test_the_divergence_goes_from_the_teacher_to_the_student():
    sure, unsure = np.array([[4.0, 0.0]]), np.array([[0.0, 0.0]])
    there, back = measures.kl(sure, unsure), measures.kl(unsure, sure)
    p = special.softmax(sure)
    np.testing.assert_allclose(there, (p * np.log(2 * p)).sum())
    assert abs(there - back) > 0.1


def test_measures_of_huge_logits_are_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]])
    found = measures.describe(logits, np.array([1, 1, 2]), logits[::-1])
    json.dumps(found, allow_nan=False)
    np.testing.assert_allclose(found["nll"], (2e4 + np.log(2) + np.log(3)) / 3)
    assert found["kl_to_teacher"] > 1000


def test_identical_models_agree():
    logits = np.random.default_rng(0).normal(size=(50, 10))
    found = measures.describe(logits, np.zeros(50, int), logits)
    assert found["agreement"] == 1 and found["kl_to_teacher"] == 0
    assert found["per_class"][1:] == [None] * 9  # no example, no share


def test_similarity_is_of_the_stages_that_both_have():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 4, 4, 3)).astype(np.float32)
    other = generator.normal(size=(20, 5)).astype(np.float32)
    found = measures.describe(
        generator.normal(size=(30, 3)),
        np.zeros(30, int),
        features={"stage1": x, "stage2": other, "stage3": x},
        teacher_features={"stage1": -2 * x, "stage2": x, "stage4": x},
    )["cka"]
    assert list(found) == ["stage1", "stage2"]
    assert found["stage1"] == pytest.approx(1, abs=1e-5)
    a, b = (v.reshape(20, -1).astype(np.float64) for v in (x, other))
    a, b = a - a.mean(0), b - b.mean(0)
    by_hand = np.sum((a.T @ b) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert found["stage2"] == pytest.approx(by_hand, rel=1e-4)


def test_the_subset_is_spread_and_whole_where_there_is_no_more():
    found = measures.subset(10_000)
    assert len(found) == measures.CKA_EXAMPLES == len(set(found.tolist())) and found[-1] == 9990
    np.testing.assert_array_equal(measures.subset(3), [0, 1, 2])


@pytest.mark.parametrize(
    ("logits", "labels", "taught", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2, int), None, r"logits: expected \[examples, classes\] with a label for each"),
        (np.zeros((2, 2)), np.array([0, 2]), None, r"labels: expected 0 to 1, got 0 to 2"),
        (np.array([[0.0, np.nan]]), np.array([0]), None, r"NaN or infinity for 1 of 1 examples"),
        (np.zeros((2, 2)), np.zeros(2, int), np.zeros((2, 3)), r"teacher_logits: expected \[2, 2\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, labels, taught, message):
    with pytest.raises(ValueError, match=message):
        measures.describe(logits, labels, taught)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="stage1 of the student: expected finite features"):
        measures.cka({"stage1": np.full((3, 2), np.nan)}, {"stage1": np.eye(3)})


def test_calibration_error_of_a_hand_example():
    # Bins of width 1/2. Up to 0.5: confidence 0.5, right: gap 0.5. Above: 0.9, 0.7, 0.8, two of three right: gap 0.4/3.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8]])
    error = measures.calibration_error(probabilities, np.array([0, 0, 1, 0]), bins=2)
    np.testing.assert_allclose(error, (1 * 0.5 + 3 * 0.4 / 3) / 4)
    assert measures.calibration_error(np.eye(3), np.arange(3)) == 0


def test_reliability_of_a_hand_example():
    # The same four examples: an edge belongs to the bin below it.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8]])
    found = measures.reliability(probabilities, np.array([0, 0, 1, 0]), bins=2)
    np.testing.assert_array_equal(found["count"], [1, 3])
    np.testing.assert_allclose(found["confidence"], [0.5, 0.8])
    np.testing.assert_allclose(found["accuracy"], [1, 2 / 3])


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.full(10, 0.3), size=500)
    labels = generator.integers(0, 10, size=500)
    bins = measures.reliability(probabilities, labels)
    assert bins["count"].sum() == 500
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    np.testing.assert_allclose(
        measures.calibration_error(probabilities, labels), (bins["count"] * gaps).sum() / 500, rtol=1e-12
    )
