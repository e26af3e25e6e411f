"""The shuffle: a permutation, uniform, equal on the device and on the host."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxkd.data import permutation


def host(size, seed=0, epoch=0):
    return permutation(np.arange(size), num_examples=size, seed=seed, epoch=epoch, xp=np)


@pytest.mark.parametrize("size", [*range(1, 70), 1797, 4096, 4097, 50_000])
def test_every_row_occurs_once(size):
    for seed, epoch in [(0, 0), (1, 5), (2**32 - 1, 1000)]:
        np.testing.assert_array_equal(np.sort(host(size, seed, epoch)), np.arange(size))


@pytest.mark.parametrize("size", [1, 10, 50_000])
def test_device_and_host_agree(size):
    permute = jax.jit(lambda seed, epoch: permutation(jnp.arange(size), num_examples=size, seed=seed, epoch=epoch))
    for seed, epoch in [(0, 0), (7, 3)]:
        np.testing.assert_array_equal(permute(seed, epoch), host(size, seed, epoch))
    large = permutation(jnp.arange(size), num_examples=size, seed=2**32 - 1, epoch=2, xp=jnp)
    np.testing.assert_array_equal(large, host(size, 2**32 - 1, 2))


def test_vmap_over_seeds():
    mapped = jax.vmap(lambda seed: permutation(jnp.arange(37), num_examples=37, seed=seed, epoch=2))(jnp.arange(4))
    np.testing.assert_array_equal(mapped, [host(37, seed, 2) for seed in range(4)])


def test_single_position_equals_that_of_the_whole_order():
    whole = host(1000, 3, 4)
    for position in (0, 17, 999):
        assert permutation(np.array([position]), num_examples=1000, seed=3, epoch=4, xp=np) == whole[position]


def orders_of(size, seeds, epochs):
    one = lambda seed, epoch: permutation(jnp.arange(size), num_examples=size, seed=seed, epoch=epoch)  # noqa: E731
    many = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    return np.asarray(many(jnp.arange(seeds), jnp.arange(epochs))).reshape(-1, size)


def test_seeds_and_epochs_give_different_orders():
    assert len(np.unique(orders_of(100, 20, 20), axis=0)) == 400


def test_all_orders_of_a_small_set_are_equally_likely():
    for size in (4, 5):
        kinds, counts = np.unique(orders_of(size, 200, 200), axis=0, return_counts=True)
        assert len(kinds) == math.factorial(size)
        assert stats.chisquare(counts).pvalue > 1e-4, (size, counts)


def test_positions_and_gaps_are_uniform():
    orders = orders_of(52, 20, 200)
    for position in (0, 1, 25, 51):
        assert stats.chisquare(np.bincount(orders[:, position], minlength=52)).pvalue > 1e-4
    gaps = (orders[:, 1:] - orders[:, :-1]) % 52
    counts = np.bincount(gaps.ravel(), minlength=52)
    assert counts[0] == 0
    # Gaps of one order are weakly dependent, hence a looser bound than for independent draws.
    np.testing.assert_allclose(counts[1:], gaps.size / 51, rtol=0.05)


def test_large_set_is_shuffled():
    order = host(50_000)
    correlation = np.corrcoef(order, np.arange(50_000))[0, 1]
    assert abs(correlation) < 0.02
    halves = [np.mean(order[start : start + 64] < 25_000) for start in range(0, 50_000 - 64, 64)]
    np.testing.assert_allclose(np.std(halves), 0.5 / 8, rtol=0.1)  # as 64 draws have


def test_empty_set_raises():
    with pytest.raises(ValueError, match="rows to shuffle, got 0"):
        permutation(np.arange(0), num_examples=0, seed=0, epoch=0, xp=np)
