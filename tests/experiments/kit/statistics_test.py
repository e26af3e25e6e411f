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


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_resolvable_gain_is_found_as_often_as_the_power_says(seeds):
    sd, draws = 0.7, np.random.default_rng(seeds).normal(size=(100_000, seeds))
    gain = statistics.smallest_resolvable_gain(sd, seeds)
    values = gain + sd * draws
    half = stats.t.ppf(0.975, seeds - 1) * values.std(axis=1, ddof=1) / np.sqrt(seeds)
    # The standard error of the share is 0.0013.
    np.testing.assert_allclose(np.mean(values.mean(axis=1) > half), 0.8, atol=0.006)


def test_a_resolvable_gain_grows_with_the_spread_and_the_power():
    found = [statistics.smallest_resolvable_gain(1.0, 5, power=power) for power in (0.5, 0.8, 0.95)]
    assert found == sorted(found)
    np.testing.assert_allclose(statistics.smallest_resolvable_gain(3.0, 5), 3 * found[1])
    with pytest.raises(ValueError, match="at least 2 seeds"):
        statistics.smallest_resolvable_gain(1.0, 1)


def test_what_differences_can_resolve_is_that_of_their_median_spread():
    gains = [statistics.summary({0: 0.0, 1: 2.0 * x, 2: 4.0 * x}) for x in (1, 2, 9)]  # their spreads are 2, 4 and 18
    found = statistics.resolvable([*gains, None, statistics.summary({0: 1.0}), statistics.summary({0: 1.0, 1: 9.0})])
    assert (found["seeds"], found["sd"]) == (3, 4.0)
    assert found["gain"] == statistics.smallest_resolvable_gain(4.0, 3)
    assert statistics.resolvable([None, statistics.summary({0: 1.0})]) is None


def test_doctests():
    found = doctest.testmod(statistics)
    assert found.failed == 0 and found.attempted > 0
