"""Intervals over seeds, by hand and against SciPy."""

import doctest

import numpy as np
import pytest
from scipy import stats

from experiments.kit import statistics


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


def test_doctests():
    found = doctest.testmod(statistics)
    assert found.failed == 0 and found.attempted > 0
