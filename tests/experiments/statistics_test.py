"""What experiments share: intervals, calibration error, reliability bins; by hand and against SciPy."""

import doctest

import numpy as np
import pytest
from scipy import stats

from experiments import statistics


def test_interval_of_a_hand_example():
    # t(0.975, 1) = 12.706; the standard error of 1 and 3 is 1.
    np.testing.assert_allclose(statistics.interval([1.0, 3.0]), (2.0, 12.7062), rtol=1e-5)


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=7)
    found = statistics.interval(values, confidence=0.9)
    low, high = stats.t.interval(0.9, 6, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose((found.mean - found.half, found.mean + found.half), (low, high))


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_an_interval_needs_several_seeds(values):
    with pytest.raises(ValueError, match="values: expected one for each of at least 2 seeds"):
        statistics.interval(values)


def test_an_interval_in_words():
    found = statistics.Interval(-1.234, 0.5)
    assert (str(found), f"{found:+.1f}") == ("-1.23 ± 0.50", "-1.2 ± 0.5")


def test_calibration_error_of_a_hand_example():
    # Bins of width 1/2. Up to 0.5: confidence 0.5, right: gap 0.5. Above: 0.9, 0.7, 0.8, two of three right: gap 0.4/3.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8]])
    error = statistics.calibration_error(probabilities, np.array([0, 0, 1, 0]), bins=2)
    np.testing.assert_allclose(error, (1 * 0.5 + 3 * 0.4 / 3) / 4)
    assert statistics.calibration_error(np.eye(3), np.arange(3)) == 0


def test_reliability_of_a_hand_example():
    # The same four examples: an edge belongs to the bin below it.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8]])
    found = statistics.reliability(probabilities, np.array([0, 0, 1, 0]), bins=2)
    np.testing.assert_array_equal(found["count"], [1, 3])
    np.testing.assert_allclose(found["confidence"], [0.5, 0.8])
    np.testing.assert_allclose(found["accuracy"], [1, 2 / 3])


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.full(10, 0.3), size=500)
    labels = generator.integers(0, 10, size=500)
    bins = statistics.reliability(probabilities, labels)
    assert bins["count"].sum() == 500
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    np.testing.assert_allclose(
        statistics.calibration_error(probabilities, labels), (bins["count"] * gaps).sum() / 500, rtol=1e-12
    )


def test_doctests():
    found = doctest.testmod(statistics)
    assert found.failed == 0 and found.attempted > 0
